"""What a person sees while training runs: one live line in a terminal, sparse lines in a file."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from mlx_companion.runtime.monitor import Advice
from mlx_companion.training.callbacks import Callback
from mlx_companion.training.state import RunInfo, SaveInfo, StepInfo, TrainSummary

_SMOOTHING = 0.9
_SECONDS_BETWEEN_LINES = 30.0


class RichProgress(Callback):
    """Shows step, loss, learning rate, useful tokens per second, padding, memory, time left.

    Args:
        console: where; default: standard error, so that standard output stays for results.
        unit: of the held-out loss.
    """

    def __init__(self, console: Console | None = None, unit: str = "nats per token") -> None:
        self._unit = unit
        self.console = console or Console(stderr=True)
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._loss: float | None = None
        self._targets = self._tokens = self._slots = 0
        self._seconds = 0.0
        self._next_line = 0.0

    def on_start(self, run: RunInfo) -> None:
        """Say what is about to be done and show the bar."""
        again = f", going on from step {run.step}" if run.step else ""
        self.console.print(
            f"Training {run.trainable / 1e6:.2f} M parameters on {run.rows} rows for "
            f"{run.total_steps} steps{again}",
            highlight=False,
        )
        if not self.console.is_terminal:
            return
        self._progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=20),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
            console=self.console,
        )
        self._task = self._progress.add_task("", total=run.total_steps, completed=run.step)
        self._progress.start()

    def on_step(self, step: StepInfo) -> None:
        """Show the step."""
        if not step.skipped:
            kept = self._loss if self._loss is not None else step.loss
            self._loss = _SMOOTHING * kept + (1 - _SMOOTHING) * step.loss
        self._targets += step.targets
        self._tokens += step.tokens
        self._slots += step.slots
        self._seconds += step.seconds
        text = self._describe(step)
        if self._progress is not None:
            # The total is an estimate where FLOPs end the run.
            total = step.total_steps
            self._progress.update(self._task, completed=step.step, total=total, description=text)
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + _SECONDS_BETWEEN_LINES
            self._print(f"step {step.step}/{step.total_steps}  {text}")

    def on_eval(self, step: int, loss: float) -> None:
        """Say the held-out loss."""
        self._print(f"step {step}: held-out loss {loss:.4f} {self._unit}")

    def on_save(self, save: SaveInfo) -> None:
        """Nothing: checkpoints are many and quiet."""

    def on_advice(self, advice: Advice) -> None:
        """Say why work is made smaller."""
        self._print(advice.reason or "back to the planned size of work")

    def on_end(self, summary: TrainSummary) -> None:
        """Say how it ended."""
        why = " (no gain any more)" if summary.stopped_early else ""
        skipped = f", {summary.skipped} skipped" if summary.skipped else ""
        self._print(
            f"{summary.steps} steps{why}{skipped}, {summary.targets} targets in "
            f"{summary.seconds:.0f} s, peak memory {summary.peak_mb:.0f} MB"
        )

    def on_close(self) -> None:
        """Leave the terminal as it was."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _describe(self, step: StepInfo) -> str:
        loss = "-" if self._loss is None else f"{self._loss:.3f}"
        return (
            f"loss {loss}  lr {step.lr:.1e}  {self._targets / self._seconds:.0f} targets/s "
            f"({self._tokens / self._seconds:.0f} tokens/s)  "
            f"padding {1 - self._tokens / self._slots:.0%}  {step.peak_mb:.0f} MB"
        )

    def _print(self, text: str) -> None:
        # Through the bar's own console, which moves the bar out of the way.
        self.console.print(text, highlight=False)
