"""Modules that remember: their state lies in the store and outlives the process.

The drift monitor compares replies with a baseline of earlier ones, and the tracker counts the
words that a person repeats. Both belong to the person, so they lie in the store, where `forget`
deletes them.

Several companions may watch for one person. Each reply is taken in inside the store's write lock,
by the state that lies there at that moment, whoever wrote it last: so all of them watch one stream,
in one order, and none erases what another one saw.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from mlx_companion.errors import CompanionError, DiskFullError, StoreError
from mlx_companion.runtime.logs import get_logger
from mlx_companion.slm.backbone import BaseSLMAdapter
from mlx_companion.slm.module import SLMModule
from mlx_companion.slm.results import DriftResult
from mlx_companion.store import Store, marks
from mlx_companion.store.values import dump_json

__all__ = ["Watcher"]

_log = get_logger(__name__)
# Replies kept until the store can be written again.
_MOST_DUE = 64
_QUIET = DriftResult(False, None, 0.0, [], "Nothing to do.", False)


class Monitor(Protocol):
    """What is needed of a drift monitor that watches a stream of replies."""

    version: str

    def measure(self, response: str, user: str | None = None) -> Any:
        """What is slow about one more reply and the message that it answered."""

    def take_in(self, seen: Any) -> DriftResult | None:
        """What was measured, within milliseconds; None: nothing to say yet."""

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
        self._lock = threading.Lock()
        self._due: list[Any] = []
        self._empty = monitor.state_dict()
        # The state that the monitor's memory is; None: it has taken in what is not stored.
        self._known: str | None = dump_json(self._empty)
        self._catch_up(store.module_states.get(self.name))

    def process_batch(self, items: Sequence[Mapping[str, Any]]) -> list[DriftResult]:
        """See replies, given as {"response", "user"}, in their order.

        Raises:
            StoreError: the store cannot be written; the replies are taken in with the next ones.
        """
        # Not in the store's lock: the backbone reads as long as it takes.
        seen = [self._monitor.measure(item["response"], item.get("user")) for item in items]
        with self._lock:
            self._due.extend(seen)
            found = self._take_in()
        return [one or _QUIET for one in found[len(found) - len(seen) :]]

    def _take_in(self) -> list[DriftResult | None]:
        """What each reply that is due leads to."""
        try:
            with self._store.transaction():
                found, known = self._taken_in()
        except (StoreError, DiskFullError):
            del self._due[:-_MOST_DUE]
            raise
        except BaseException:
            # Else the one that cannot be taken in would stand in the way of all later ones.
            self._due.clear()
            raise
        self._known = known
        self._due.clear()
        return found

    def _taken_in(self) -> tuple[list[DriftResult | None], str | None]:
        # What was forgotten meanwhile must not come back, from a thread that is late either.
        remembered = marks(self._store) == self._marks
        if remembered:
            self._catch_up(self._store.module_states.get(self.name))
        # Until the transaction has ended well.
        self._known = None
        found = [self._monitor.take_in(one) for one in self._due]
        if not remembered:
            return found, None
        state = self._monitor.state_dict()
        self._store.module_states.set(self.name, state)
        return found, dump_json(state)

    def _catch_up(self, stored: Any) -> None:
        """Go on from what is stored, unless the monitor's memory is that already."""
        state = self._empty if stored is None else stored
        if dump_json(state) == self._known:
            return
        try:
            self._monitor.load_state(state)
        except (CompanionError, KeyError, TypeError, ValueError) as error:
            # A state of another release: a new baseline is better than no monitor.
            _log.warning("the drift monitor begins anew", extra={"error": str(error)})
            self._monitor.load_state(self._empty)

    def close(self) -> None:
        """Let the monitor go; its state is stored."""
        self._monitor.close()
