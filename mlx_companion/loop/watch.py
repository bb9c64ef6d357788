"""Modules that remember: their state lies in the store and outlives the process.

The drift monitor compares replies with a baseline of earlier ones, and the tracker counts the
words that a person repeats. Both belong to the person, so they lie in the store, where `forget`
deletes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from mlx_companion.errors import CompanionError
from mlx_companion.runtime.logs import get_logger
from mlx_companion.slm.backbone import BaseSLMAdapter
from mlx_companion.slm.module import SLMModule
from mlx_companion.slm.results import DriftResult
from mlx_companion.store import Store, marks

__all__ = ["Watcher"]

_log = get_logger(__name__)
_QUIET = DriftResult(False, None, 0.0, [], "Nothing to do.", False)


class Monitor(Protocol):
    """What is needed of a drift monitor that watches a stream of replies."""

    version: str

    def observe(self, response: str, user: str | None = None) -> DriftResult | None:
        """One more reply and the message that it answered; None: nothing to say yet."""

    def state_dict(self) -> dict[str, Any]:
        """Where it stands, JSON values."""

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""

    def close(self) -> None:
        """Let go of what it holds."""


class Watcher(SLMModule[DriftResult]):
    """A drift monitor whose state lies in the store.

    Args:
        store: where.
        pack: folder of its pack; the shipped one by default.
        monitor: by default `DriftMonitor` with this pack.
        backbone: that the monitor reads replies with; the process's shared one by default.
    """

    name = "drift_monitor"

    def __init__(
        self,
        store: Store,
        pack: Path | None = None,
        *,
        monitor: Monitor | None = None,
        backbone: BaseSLMAdapter | None = None,
    ) -> None:
        if monitor is None:
            from mlx_companion.slm.drift import DriftMonitor

            monitor = DriftMonitor(pack=pack, backbone=backbone)
        self._store, self._monitor = store, monitor
        self._marks = marks(store)
        self.version = monitor.version
        state = store.module_states.get(self.name)
        if state is not None:
            try:
                monitor.load_state(state)
            except (CompanionError, KeyError, TypeError, ValueError) as error:
                # A state of another release: a new baseline is better than no monitor.
                _log.warning("the drift monitor begins anew", extra={"error": str(error)})

    def process_batch(self, items: Sequence[Mapping[str, Any]]) -> list[DriftResult]:
        """See replies, given as {"response", "user"}, in their order."""
        found = [self._monitor.observe(item["response"], item.get("user")) for item in items]
        state = self._monitor.state_dict()
        with self._store.transaction():
            # What was forgotten meanwhile must not come back, from a thread that is late either.
            if marks(self._store) == self._marks:
                self._store.module_states.set(self.name, state)
        return [one or _QUIET for one in found]

    def close(self) -> None:
        """Let the monitor go; its state is stored."""
        self._monitor.close()
