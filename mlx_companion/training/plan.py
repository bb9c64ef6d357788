"""Which micro-batches make up which step: a pure function of data, settings and seed."""

from __future__ import annotations

from collections.abc import Iterator

from mlx_companion.text.batches import Batch, LengthBuckets, collate
from mlx_companion.training.config import TrainConfig


class Plan:
    """The steps of a run.

    Args:
        buckets: the training rows.
        config: `epochs`, `accumulate` and `max_steps` are read.
    """

    def __init__(self, buckets: LengthBuckets, config: TrainConfig) -> None:
        self.buckets = buckets
        self.accumulate = config.accumulate
        self.epochs = config.epochs
        wanted = sum(self.steps_in(epoch) for epoch in range(config.epochs))
        self.total_steps = min(wanted, config.max_steps or wanted)

    def steps_in(self, epoch: int) -> int:
        """Steps of an epoch; the last one may hold fewer micro-batches than the others."""
        return -(-len(self.buckets.epoch(epoch)) // self.accumulate)

    def steps(self, epoch: int, start: int) -> Iterator[list[tuple[int, ...]]]:
        """The steps of an epoch from micro-batch `start` on, each a list of row indices."""
        plan = self.buckets.epoch(epoch)
        for at in range(start, len(plan), self.accumulate):
            yield plan[at : at + self.accumulate]

    def batch(self, indices: tuple[int, ...]) -> Batch:
        """The micro-batch of those rows."""
        return collate(self.buckets.encoded, indices, self.buckets.pad_to)
