"""Which micro-batches make up which step: a pure function of data, settings and seed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mlx_companion.text.sources import RowSource
from mlx_companion.training.config import TrainConfig


class Plan:
    """The steps of a run.

    Args:
        source: the training rows.
        config: `epochs`, `accumulate`, `max_steps` and `max_flops` are read.

    Attributes:
        total_steps: most steps of the run; None where only `max_flops` ends it.
    """

    def __init__(self, source: RowSource, config: TrainConfig) -> None:
        self.source = source
        self.accumulate = config.accumulate
        self._epoch: tuple[int, list[tuple[int, ...]]] | None = None
        self.total_steps = config.max_steps
        if config.max_flops is None:
            self.total_steps = self._steps_of(config.epochs, config.max_steps)

    def batches(self, epoch: int) -> list[tuple[int, ...]]:
        """The micro-batches of an epoch, as row indices."""
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = epoch, self.source.epoch(epoch)
        return self._epoch[1]

    def steps_in(self, epoch: int) -> int:
        """Steps of an epoch; the last one may hold fewer micro-batches than the others."""
        return -(-len(self.batches(epoch)) // self.accumulate)

    def steps(self, epoch: int, start: int) -> Iterator[list[tuple[int, ...]]]:
        """The steps of an epoch from micro-batch `start` on, each a list of row indices."""
        plan = self.batches(epoch)
        for at in range(start, len(plan), self.accumulate):
            yield plan[at : at + self.accumulate]

    def batch(self, indices: tuple[int, ...]) -> Any:
        """The micro-batch of those rows."""
        return self.source.batch(indices)

    def _steps_of(self, epochs: int, most: int | None) -> int:
        total = 0
        for epoch in range(epochs):
            if most is not None and total >= most:
                return most
            total += self.steps_in(epoch)
        return total if most is None else min(total, most)
