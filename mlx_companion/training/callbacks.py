"""What watches a run: callbacks, and the metrics file, which is one of them.

log = MetricsLog("run/metrics.jsonl")
Trainer(model, train, callbacks=[log, RichProgress()]).run()
"""

from __future__ import annotations

import errno
import json
import math
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlx_companion.errors import DiskFullError
from mlx_companion.runtime.files import atomic_write_text
from mlx_companion.runtime.monitor import Advice
from mlx_companion.training.state import RunInfo, SaveInfo, StepInfo, TrainSummary


class Callback:
    """Does nothing; override what is needed. An error in a callback ends the run."""

    def on_start(self, run: RunInfo) -> None:
        """Before the first step of this process."""

    def on_step(self, step: StepInfo) -> None:
        """After each step."""

    def on_eval(self, step: int, loss: float) -> None:
        """After each held-out evaluation: steps done, and the loss in nats per target token."""

    def on_save(self, save: SaveInfo) -> None:
        """After each checkpoint."""

    def on_advice(self, advice: Advice) -> None:
        """The monitor asks for smaller pieces of work, or (scale 1) for the planned ones again."""

    def on_end(self, summary: TrainSummary) -> None:
        """After the last step. Not called when a run is stopped or fails."""

    def on_close(self) -> None:
        """Always called at last, also after an error."""


class MetricsLog(Callback):
    """One JSON object per line and step or evaluation.

    A resumed run goes back to its checkpoint, so the lines of later steps are dropped first: the
    file always tells one run from its beginning.

    Args:
        path: the file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def on_start(self, run: RunInfo) -> None:
        """Keep the lines up to the step where the run starts."""
        kept = [line for line in self._lines() if _step_of(line) <= run.step] if run.step else []
        atomic_write_text(self.path, "".join(line + "\n" for line in kept))

    def on_step(self, step: StepInfo) -> None:
        """Append the step."""
        self._append("step", asdict(step))

    def on_eval(self, step: int, loss: float) -> None:
        """Append the evaluation."""
        self._append("eval", {"step": step, "loss": loss})

    def _append(self, event: str, values: dict[str, Any]) -> None:
        # NaN and infinity are not JSON.
        clean = {k: None if _not_finite(v) else v for k, v in values.items()}
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"event": event, **clean}) + "\n")
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise DiskFullError(
                f"no space left to write {self.path}; free some space and run it again: it goes "
                "on from the last checkpoint"
            ) from error

    def _lines(self) -> list[str]:
        if not os.path.exists(self.path):
            return []
        return self.path.read_text(encoding="utf-8").splitlines()


def _step_of(line: str) -> float:
    """The step of a line; infinite for a line that a kill cut short."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf


def _not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
