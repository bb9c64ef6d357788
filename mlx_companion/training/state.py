"""How far a run has come, and what it reports: plain values that a checkpoint can hold."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any


@dataclass
class TrainState:
    """Progress of a run; a resumed run goes on from it as if nothing had happened.

    Attributes:
        step: optimizer steps done, skipped ones included.
        epoch: the epoch that the next step belongs to, from 0.
        batch: micro-batches of that epoch's plan that are done.
        targets: target tokens trained on so far.
        tokens: tokens of the rows trained on (prompts included, padding not).
        slots: token slots (padding included).
        flops: floating-point operations spent on them, where the trainer counts them.
        seconds: time spent training, evaluations and earlier runs included.
        skipped: steps whose loss or gradient was not finite.
        bad_in_row: how many of the last steps were skipped.
        epoch_loss, epoch_targets: sums over the present epoch (nats; target tokens).
        train_loss: mean loss per target token of the last whole epoch.
        valid_before, valid_last, valid_best: held-out losses (nats per target token): before the
            first step, at the last evaluation, lowest.
        best_step: step of `valid_best`.
        stale: evaluations in a row without a gain.
        stopped_early: patience ran out.
        finished: no step is left.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    targets: int = 0
    tokens: int = 0
    slots: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    skipped: int = 0
    bad_in_row: int = 0
    epoch_loss: float = 0.0
    epoch_targets: int = 0
    train_loss: float | None = None
    valid_before: float | None = None
    valid_last: float | None = None
    valid_best: float | None = None
    best_step: int | None = None
    stale: int = 0
    stopped_early: bool = False
    finished: bool = False

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> TrainState:
        """From what `to_json` gave, of this version or of one that knew fewer of the fields."""
        return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})

    def observe(self, loss: float, min_delta: float) -> bool:
        """Note a held-out loss; True when it is the lowest so far."""
        gained = self.valid_best is None or loss < self.valid_best - min_delta
        self.stale = 0 if gained else self.stale + 1
        self.valid_last = loss
        if self.step == 0:
            self.valid_before = loss
            self.stale = 0
        if self.valid_best is not None and loss >= self.valid_best:
            return False
        self.valid_best, self.best_step = loss, self.step
        return True


@dataclass(frozen=True)
class RunInfo:
    """What a run is about to do.

    Attributes:
        total_steps: steps of the whole run; fewer are done when patience runs out, and it is an
            estimate where FLOPs end the run.
        step: where it starts (0, or where a checkpoint was).
        rows: training rows.
        targets: target tokens of one epoch.
        streams: pieces of a micro-batch that run at the same time.
        trainable: number of trained parameters.
    """

    total_steps: int
    step: int
    rows: int
    targets: int
    streams: int
    trainable: int


@dataclass(frozen=True)
class StepInfo:
    """One optimizer step.

    Attributes:
        step: its number, from 1.
        total_steps: steps of the whole run, an estimate where FLOPs end it.
        epoch: from 0.
        loss: mean over its target tokens, nats; NaN or infinite when skipped.
        lr: learning rate.
        norm: global norm of the gradient of the mean loss, before clipping.
        targets, tokens, slots: its target tokens, tokens and token slots (padding included).
        seconds: time it took.
        skipped: it was not finite and changed nothing.
        peak_mb: highest memory of the process so far, MB.
        flops: floating-point operations of the run so far; 0 where they are not counted.
    """

    step: int
    total_steps: int
    epoch: int
    loss: float
    lr: float
    norm: float
    targets: int
    tokens: int
    slots: int
    seconds: float
    skipped: bool
    peak_mb: float
    flops: float = 0.0


@dataclass(frozen=True)
class SaveInfo:
    """A checkpoint was written."""

    step: int
    path: Path
    seconds: float


@dataclass(frozen=True)
class TrainSummary:
    """How a run ended.

    Attributes:
        steps: optimizer steps, skipped ones included.
        skipped: of these, steps that were not finite.
        epochs: whole epochs.
        train_loss: mean per target token over the last whole epoch (or the part of one), nats.
        valid_before, valid_after, valid_best: held-out loss before training, of the weights that
            the run ended with, and lowest; None without held-out data.
        best_step: step of `valid_best`.
        stopped_early: patience ran out.
        targets, tokens: target tokens and all tokens trained on (padding excluded).
        padding: share of token slots that were padding, 0-1.
        seconds: time spent, earlier runs of a resumed one included.
        targets_per_second: `targets` over the time spent in steps of this process.
        peak_mb: highest memory of the process, MB.
        flops: floating-point operations of training; 0 where they are not counted.
    """

    steps: int
    skipped: int
    epochs: int
    train_loss: float | None
    valid_before: float | None
    valid_after: float | None
    valid_best: float | None
    best_step: int | None
    stopped_early: bool
    targets: int
    tokens: int
    padding: float
    seconds: float
    targets_per_second: float
    peak_mb: float
    flops: float


def summarize(
    state: TrainState, *, valid_after: float | None, speed: float, peak_mb: float
) -> TrainSummary:
    """The summary of a run that ended in this state."""
    return TrainSummary(
        steps=state.step,
        skipped=state.skipped,
        epochs=state.epoch,
        train_loss=state.train_loss,
        valid_before=state.valid_before,
        valid_after=valid_after,
        valid_best=state.valid_best,
        best_step=state.best_step,
        stopped_early=state.stopped_early,
        targets=state.targets,
        tokens=state.tokens,
        padding=1 - state.tokens / state.slots if state.slots else 0.0,
        seconds=state.seconds,
        targets_per_second=speed,
        peak_mb=peak_mb,
        flops=state.flops,
    )
