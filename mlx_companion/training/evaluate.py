"""The held-out loss: one number per evaluation, the same rows and weights every time."""

from __future__ import annotations

import mlx.nn as nn

from mlx_companion.text.sources import RowSource
from mlx_companion.training.distributed import ALONE, Ranks
from mlx_companion.training.gradients import GradientEngine


def mean_loss(
    model: nn.Module, engine: GradientEngine, valid: RowSource, ranks: Ranks = ALONE
) -> float:
    """Loss per target token over all rows, without dropout.

    Args:
        model: put into evaluation mode, and back into the mode it was in.
        engine: computes the loss of a batch.
        valid: the rows; each counts by its targets.
        ranks: those that share the work; all of them get the result.

    Returns:
        Nats per target token.
    """
    was_training = model.training
    model.eval()
    try:
        batches = valid.epoch(0)
        dealt = ranks.deal(map(valid.batch, batches), len(batches))
        # A weight of 0 marks what is run for the sake of the other ranks.
        results = [(engine.evaluate(part.batch), part.weight != 0) for part in dealt]
    finally:
        model.train(was_training)
    parts = [result for result, counts in results if counts]
    loss, count = ranks.sums(sum(loss for loss, _ in parts), sum(count for _, count in parts))
    return loss / count
