"""The self-improvement loop, one step per file, in the order in which they run.

collect -> generate -> judge -> replay -> train -> gate -> deploy -> summary, report

rounds      runs them, and goes on where an interrupted round stopped
served      the served path, used by chat and by the gate alike
judges/     what makes a reply good
statistics  paired tests, margins, the error ledger's arithmetic
config      all settings
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlx_companion.loop.config import LoopConfig
    from mlx_companion.loop.deploy import diff, promote, rollback
    from mlx_companion.loop.rounds import RoundResult, improve
    from mlx_companion.loop.served import ServedModel

__all__ = ["LoopConfig", "RoundResult", "ServedModel", "diff", "improve", "promote", "rollback"]

_LAZY = {
    "LoopConfig": "config",
    "RoundResult": "rounds",
    "ServedModel": "served",
    "diff": "deploy",
    "improve": "rounds",
    "promote": "deploy",
    "rollback": "deploy",
}


def __getattr__(name: str) -> object:
    # Lazy, because the packaged data and the settings are read where no model is needed.
    from importlib import import_module

    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
