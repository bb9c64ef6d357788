"""Rounds run one after the other on a terminal: each shown as it ends, progress beside it.

One round at a time, so that its tables appear when it ends and a stop in the third loses
nothing of the first two.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rich.console import Console

from mlx_companion.errors import LoopError
from mlx_companion.loop.config import LoopConfig
from mlx_companion.loop.console import RichProgress
from mlx_companion.loop.progress import Silent
from mlx_companion.loop.round_view import print_round
from mlx_companion.loop.switch import long_work

__all__ = ["shown_rounds"]


def shown_rounds(
    settings: LoopConfig,
    *,
    out: Console,
    err: Console,
    quiet: bool = False,
    clear_stop: bool = False,
    poison: Any = None,
) -> dict[str, Any]:
    """Run `settings.rounds` rounds and show them; the report of the last one that was run.

    Args:
        out, err: where results and progress go.
        quiet: show nothing.
        clear_stop: take the kill switch back first.
        poison: see `rounds.improve`.

    Raises:
        LoopError: the first round may not begin. A limit that ends a later one is only told.
    """
    from mlx_companion.loop import improve

    report: dict[str, Any] = {}
    one = replace(settings, rounds=1)
    for _ in range(settings.rounds):
        with (
            RichProgress(err) as progress,
            long_work(clear_stop=clear_stop, say=progress.note) as switch,
        ):
            listener = Silent() if quiet else progress
            try:
                result = improve(one, progress=listener, switch=switch, poison=poison)[0]
            except LoopError as error:
                if not report:
                    raise
                progress.note(f"No further round: {error}.")
                return report
        report = result.report
        if not quiet:
            print_round(out, report)
            print(f"\nReport: {result.html}")
    return report
