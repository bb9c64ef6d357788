"""A running companion as others see it: its modules after the last reply, kept in the store.

Why: the orchestrator's picture of its modules lives in the process that talks, and who asks for it
(`mlx-companion slm status`) is another one. So after every reply a companion leaves the picture in
the store, without results, and takes it back when it ends::

    presence = Presence(store)
    presence.tell("v0002", orchestrator.status())
    running(store)                    # in another process: a Running, or None
    presence.leave()

Whether it still runs is asked of the operating system: a process may be killed, and a number may
have gone to another process, which then has begun at another time. Of several companions on one
store the one that spoke last is seen. `forget` takes the picture along, as it may quote faults.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psutil

from mlx_companion.slm.health import ModuleStatus
from mlx_companion.store import Store
from mlx_companion.store.values import now

__all__ = ["Presence", "Running", "running"]

_MODULE, _NAME = "companion", "running"
_SAME_SECONDS = 1.0


@dataclass(frozen=True)
class Running:
    """A companion that another process may see.

    Attributes:
        pid: of its process.
        alive: that process is there; False for one that ended without a word.
        version: of the model that answers.
        at: its last reply, ISO 8601 in UTC.
        memory_mb: that its process takes (MB); 0 when it is gone.
        modules: as they were after that reply.
    """

    pid: int
    alive: bool
    version: str
    at: str
    memory_mb: float
    modules: list[ModuleStatus]


class Presence:
    """Tells others about this process's companion.

    Args:
        store: where.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._told = False

    def tell(self, version: str, modules: Sequence[ModuleStatus]) -> None:
        """Leave a picture in place of the one before.

        Raises:
            StoreError: the store cannot be written.
        """
        self._told = True
        pictures = [_without_result(one.to_dict()) for one in modules]
        value = {"pid": os.getpid(), "began": _began(os.getpid()), "version": version, "at": now()}
        self._store.module_states.set(_MODULE, {**value, "modules": pictures}, _NAME)

    def leave(self) -> None:
        """Take the picture back, unless another companion has left its own meanwhile.

        Raises:
            StoreError: the store cannot be written.
        """
        if not self._told:
            return
        with self._store.transaction():
            value = self._store.module_states.get(_MODULE, _NAME)
            if value is not None and value["pid"] == os.getpid():
                self._store.module_states.set(_MODULE, None, _NAME)
        self._told = False


def running(store: Store) -> Running | None:
    """The companion that spoke last and has not ended; None when there is none."""
    value = store.module_states.get(_MODULE, _NAME)
    try:
        pid, began = int(value["pid"]), value["began"]
        modules = [ModuleStatus.from_dict(one) for one in value["modules"]]
        found = _began(pid)
        # Some systems compute it from the time since the start, and a clock that is set moves it.
        alive = found is not None and abs(found - float(began)) < _SAME_SECONDS
        memory = _memory_mb(pid) if alive else 0.0
        return Running(pid, alive, value["version"], value["at"], memory, modules)
    except (KeyError, TypeError, ValueError):
        # Nobody's, or that of a release that told something else.
        return None


def _without_result(picture: dict[str, Any]) -> dict[str, Any]:
    last = picture["last"]
    return picture | {"last": None if last is None else {**last, "result": None}}


def _began(pid: int) -> float | None:
    """When a process began, seconds; None when it is gone or a zombie."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        if process.status() != psutil.STATUS_ZOMBIE:
            return float(process.create_time())
    return None


def _memory_mb(pid: int) -> float:
    with contextlib.suppress(psutil.Error):
        return float(psutil.Process(pid).memory_info().rss) / 1e6
    return 0.0
