"""`linear_cross_entropy`, slow and obvious: all logits at once, MLX's own gradient."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from mlx_companion.kernels.linear_cross_entropy.heads import OutputLayer


def reference(hidden: mx.array, labels: mx.array, layer: OutputLayer) -> mx.array:
    """-log softmax(logits)[label] of each row: (N, D), (N,) int in [0, V) -> (N,) float32."""
    if not layer.trained:
        # A head that is not trained stays out of the gradient even where it could get one.
        return _frozen(hidden, labels, layer)
    return _losses(layer.call(hidden, layer.trained), labels)


def _losses(logits: mx.array, labels: mx.array) -> mx.array:
    logits = logits.astype(mx.float32)
    chosen = mx.take_along_axis(logits, labels[:, None], axis=-1)[:, 0]
    return mx.logsumexp(logits, axis=-1) - chosen


def _frozen(hidden: mx.array, labels: mx.array, layer: OutputLayer) -> mx.array:
    def losses(hidden: mx.array, labels: mx.array) -> mx.array:
        return _losses(layer.call(hidden, ()), labels)

    function: Any = mx.custom_function(losses)

    @function.vjp
    def slopes(primals: Any, cotangent: mx.array, output: mx.array) -> Any:
        hidden, labels = primals
        (slope,) = mx.vjp(lambda h: losses(h, labels), [hidden], [cotangent])[1]
        return slope, mx.zeros_like(labels)

    result: mx.array = function(hidden, labels)
    return result
