"""The loss of packed rows: the cross-entropy of every next id that counts.

    Trainer(ByteLM(config), PackedRows(text, context=1024), loss=PackedLoss())

The gradient in the logits is computed with the loss, from the same exponentials, and kept; MLX
would take the logits' exponentials again, one number after the other on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_companion.text.packing import PackedBatch
from mlx_companion.training.losses import cross_entropy_with_gradient

Forward = Callable[[nn.Module, PackedBatch], mx.array]


def call_with_documents(model: nn.Module, batch: PackedBatch) -> mx.array:
    """Logits (B, N, V) of a model that is called with ids and documents."""
    return model(batch.ids, documents=batch.documents)


class PackedLoss:
    """Cross-entropy of the next ids (nats), summed over those that count.

    Args:
        forward: (model, batch) to logits (B, N, V).
    """

    def __init__(self, forward: Forward = call_with_documents) -> None:
        self.forward = forward

    def ready(self, model: nn.Module) -> None:
        """Nothing to find out about the model."""

    def __call__(self, model: nn.Module, batch: PackedBatch) -> tuple[mx.array, mx.array]:
        """(sum in nats, number of targets)."""
        logits = self.forward(model, batch)
        flat = logits.reshape(-1, logits.shape[-1]).astype(mx.float32)
        weights = batch.mask.reshape(-1)
        return cross_entropy(flat, batch.targets.reshape(-1), weights), weights.sum()


def cross_entropy(logits: mx.array, labels: mx.array, weights: mx.array) -> mx.array:
    """Weighted sum of cross-entropies in nats, with its gradient in the logits.

    Args:
        logits: (M, V) float32.
        labels: (M,) int.
        weights: (M,) float32; they and the labels get no gradient.
    """
    # A custom function's own type says nothing about its results.
    function: Any = _with_gradient
    return function(logits, labels, weights)[0]


@mx.custom_function
def _with_gradient(
    logits: mx.array, labels: mx.array, weights: mx.array
) -> tuple[mx.array, mx.array]:
    return cross_entropy_with_gradient(logits, labels, weights)


@_with_gradient.vjp
def _with_gradient_vjp(primals: Any, cotangents: Any, outputs: Any) -> Any:
    _, labels, weights = primals
    return cotangents[0] * outputs[1], mx.zeros_like(labels), mx.zeros_like(weights)
