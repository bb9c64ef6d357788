"""The held-out loss: one number per evaluation, the same rows and weights every time."""

from __future__ import annotations

import mlx.nn as nn

from mlx_companion.text.sources import RowSource
from mlx_companion.training.gradients import GradientEngine


def mean_loss(model: nn.Module, engine: GradientEngine, valid: RowSource) -> float:
    """Loss per target token over all rows, without dropout.

    Args:
        model: put into evaluation mode, and back into the mode it was in.
        engine: computes the loss of a batch.
        valid: the rows; each counts by its targets.

    Returns:
        Nats per target token.
    """
    was_training = model.training
    model.eval()
    try:
        parts = [engine.evaluate(valid.batch(indices)) for indices in valid.epoch(0)]
    finally:
        model.train(was_training)
    return sum(loss for loss, _ in parts) / sum(count for _, count in parts)
