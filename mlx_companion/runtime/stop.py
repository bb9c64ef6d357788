"""The kill switch: stops any loop at its next safe point, by signal or by file, with nothing lost.

Long work takes a `StopSwitch` and calls `check()` between steps, where everything done so far is
on the disk. Ctrl-C (SIGINT) or SIGTERM asks for the stop; a second one interrupts at once. A
person or another process can also create the file `path`::

    with StopSwitch(path=data_dir() / "STOP") as stop:
        for step in steps:
            stop.check()
            step()
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from mlx_companion.errors import Stopped

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSwitch:
    """A request to stop that work honours at its safe points.

    Outside the main thread Python forbids signal handlers, so there only the file and `request`
    stop the work.

    Args:
        path: a file whose existence asks for the stop; None to listen to signals only.
        on_request: called once with the reason when a signal asks for the stop, for instance to
            tell the person that the current step is being finished.
    """

    def __init__(
        self, path: str | Path | None = None, *, on_request: Callable[[str], None] | None = None
    ) -> None:
        self.path = None if path is None else Path(path)
        self._on_request = on_request
        self._reason: str | None = None
        self._previous: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> str | None:
        """Why the work should stop, or None while it should go on."""
        if self._reason is None and self.path is not None and os.path.exists(self.path):
            self._reason = f"the file {self.path} exists"
        return self._reason

    def request(self, reason: str) -> None:
        """Ask for the stop from code; the first reason is kept."""
        if self._reason is None:
            self._reason = reason

    def check(self) -> None:
        """Return while the work should go on.

        Raises:
            Stopped: a stop was asked for.
        """
        reason = self.requested
        if reason is not None:
            raise Stopped(f"stopped at a safe point: {reason}")

    def __enter__(self) -> StopSwitch:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            # None stands for a handler that was not installed from Python; it cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self._reason is not None:
            raise KeyboardInterrupt(f"{name} after a stop was already asked for")
        self._reason = f"received {name}"
        if self._on_request is not None:
            self._on_request(self._reason)


class EitherSwitch(StopSwitch):
    """A switch that is thrown when another one is, and can be thrown without that one."""

    def __init__(self, other: StopSwitch) -> None:
        super().__init__()
        self._other = other

    @property
    def requested(self) -> str | None:
        """See the base class."""
        return super().requested or self._other.requested


class _Never(StopSwitch):
    """A switch that never stops; entering it leaves the signal handlers alone."""

    @property
    def requested(self) -> str | None:
        return None

    def request(self, reason: str) -> None:
        raise TypeError("NEVER cannot be asked to stop; pass a StopSwitch() instead")

    def __enter__(self) -> StopSwitch:
        return self


NEVER: StopSwitch = _Never()
