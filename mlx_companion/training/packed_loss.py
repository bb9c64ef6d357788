"""The loss of packed rows: the cross-entropy of every next id that counts.

    Trainer(ByteLM(config), PackedRows(text, context=1024), loss=PackedLoss())

Of the model it needs hidden states and the output layer, which the loss runs itself
(`kernels.linear_cross_entropy`).
"""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn

from mlx_companion.kernels.linear_cross_entropy import Head, linear_cross_entropy
from mlx_companion.models.heads import head_trains, identity
from mlx_companion.text.packing import PackedBatch

Forward = Callable[[nn.Module, PackedBatch], tuple[mx.array, Head]]


def call_with_documents(model: nn.Module, batch: PackedBatch) -> tuple[mx.array, Head]:
    """Of a model with `hidden` and `lm_head`, as byte models have them: states and output layer.

    A model without is called with ids and documents, and its result taken as logits.
    """
    if hasattr(model, "hidden") and hasattr(model, "lm_head"):
        return model.hidden(batch.ids, batch.documents), model.lm_head
    return model(batch.ids, documents=batch.documents), identity


class PackedLoss:
    """Cross-entropy of the next ids (nats), summed over those that count.

    Args:
        forward: (model, batch) to hidden states (B, N, D) and the layer that makes logits of them.
    """

    def __init__(self, forward: Forward = call_with_documents) -> None:
        self.forward = forward

    def ready(self, model: nn.Module) -> None:
        """Nothing to find out about the model."""

    def __call__(self, model: nn.Module, batch: PackedBatch) -> tuple[mx.array, mx.array]:
        """(sum in nats, number of targets)."""
        hidden, head = self.forward(model, batch)
        weights = batch.mask.reshape(-1)
        losses = linear_cross_entropy(
            hidden.reshape(-1, hidden.shape[-1]),
            head,
            batch.targets.reshape(-1),
            weights=weights,
            head_gradient=head_trains(head),
            gradient=model.training,
        )
        return losses.sum(), weights.sum()
