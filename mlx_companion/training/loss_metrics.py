"""Figures that a loss knows and the trainer does not ask for: rewards, margins, clipping, KL.

A loss notes sums and counts while it runs; a callback takes their means after each step:

    loss = PreferenceLoss("dpo")
    log = LossMetricsLog(loss.metrics, "run/preference.jsonl")
    Trainer(model, rows, valid=held_out, loss=loss, callbacks=[log]).run()
    # {"event": "step", "step": 1, "reward_chosen": 0.02, "accuracy": 0.75, ...}
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import mlx.core as mx

from mlx_companion.errors import ConfigError
from mlx_companion.training.callbacks import MetricsLog
from mlx_companion.training.state import StepInfo

T = TypeVar("T")

# By then all but the newest were computed with their losses.
_MOST_PENDING = 64

Noted = dict[str, tuple[mx.array, mx.array]]


class MetricSums:
    """Sums and counts, kept apart for training and for evaluation.

    They are noted inside of what MLX differentiates, where nothing can be computed yet, and become
    numbers when they are taken.
    """

    def __init__(self) -> None:
        self._pending: dict[bool, list[Noted]] = {True: [], False: []}
        self._sums: dict[bool, dict[str, tuple[float, float]]] = {True: {}, False: {}}

    def note(self, training: bool, noted: Noted) -> None:
        """Add values.

        Args:
            training: whether the model trains or is evaluated.
            noted: (sum, count) scalars by name; they get no gradient.
        """
        own = {name: (mx.stop_gradient(s), mx.stop_gradient(n)) for name, (s, n) in noted.items()}
        self._pending[training].append(own)

    def settle(self) -> None:
        """Keep memory bounded where nobody takes the figures; call it where a loss prepares."""
        for training, pending in self._pending.items():
            if len(pending) > _MOST_PENDING:
                self._add(training, pending[:-2])
                del pending[:-2]

    def take(self, training: bool) -> dict[str, float]:
        """Means of what was noted since the last time; names without any count are left out."""
        self._add(training, self._pending[training])
        self._pending[training].clear()
        sums, self._sums[training] = self._sums[training], {}
        return {name: total / count for name, (total, count) in sums.items() if count}

    def _add(self, training: bool, pending: list[Noted]) -> None:
        sums = self._sums[training]
        for noted in pending:
            for name, (total, count) in noted.items():
                before = sums.get(name, (0.0, 0.0))
                sums[name] = before[0] + float(total), before[1] + float(count)


class LossMetricsLog(MetricsLog):
    """One JSON object per line and step or evaluation, like `MetricsLog`, of a loss's own figures.

    Args:
        metrics: of the loss.
        path: the file.
    """

    def __init__(self, metrics: MetricSums, path: str | Path) -> None:
        super().__init__(path)
        self.metrics = metrics

    def on_step(self, step: StepInfo) -> None:
        """Append the step's figures."""
        self._append("step", {"step": step.step, "loss": step.loss, **self.metrics.take(True)})

    def on_eval(self, step: int, loss: float) -> None:
        """Append the evaluation's figures."""
        self._append("eval", {"step": step, "loss": loss, **self.metrics.take(False)})


def mean_of(values: mx.array) -> tuple[mx.array, mx.array]:
    """(sum, count) of all values."""
    return values.astype(mx.float32).sum(), mx.array(float(values.size))


def mean_where(values: mx.array, weights: mx.array) -> tuple[mx.array, mx.array]:
    """(sum, count) of the values whose weight is 1, not 0."""
    return (values * weights).sum(), weights.sum()


def by_name(given: T | str, known: Mapping[str, T], what: str) -> T:
    """A loss's objective: the one given, or the one of that name.

    Args:
        given: an objective, or a name.
        known: objectives by name.
        what: what they are, for the message.

    Raises:
        ConfigError: none has that name.
    """
    if not isinstance(given, str):
        return given
    if given not in known:
        raise ConfigError(f"no {what} is called '{given}'; use {', '.join(known)}")
    return known[given]
