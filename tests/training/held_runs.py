"""Training runs that wait to be killed, so that none can end before it is."""

from __future__ import annotations

import threading
from pathlib import Path

from mlx_companion.training import StepInfo
from mlx_companion.training.callbacks import Callback


class HeldRun(Callback):
    """Goes no further once the log has so many lines. Comes after the log in the callbacks.

    Args:
        path: the log.
        lines: at which it stays; None never stays.
    """

    def __init__(self, path: Path, lines: int | None) -> None:
        self.path, self.lines = path, lines

    def on_step(self, step: StepInfo) -> None:
        """Stay, perhaps for good."""
        self._stay()

    def on_eval(self, step: int, loss: float) -> None:
        """Likewise."""
        self._stay()

    def _stay(self) -> None:
        if self.lines is not None and len(self.path.read_bytes().splitlines()) >= self.lines:
            threading.Event().wait()
