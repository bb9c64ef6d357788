"""Cross-entropy of logits that are there, with the gradient from the same exponentials."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from mlx_companion.kernels import fast_math

# Where a gradient is traced MLX does not fuse, and every operation of `shifted` is a pass of its
# own: over 1 MB, which stays in a CPU's cache, they take 2 ns per number, over 8 MB 9 ns.
_PASS_ELEMENTS = 2**18

# (logits (n, V), labels (n,)) to losses (n,), float32 nats, with a gradient in the logits.
LogitsLoss = Callable[[mx.array, mx.array], mx.array]


def plain_losses(logits: mx.array, labels: mx.array) -> mx.array:
    """-log softmax(logits)[label]: (n, V) and (n,) int in [0, V) -> (n,) float32."""
    function: Any = _losses
    return function(logits, labels)[0]


def shifted(logits: mx.array, largest: mx.array) -> mx.array:
    """e^(logits - largest), in float32, for differences of at most about 0."""
    return (_fast if fast_math.wanted() else _exact)(logits, largest)


def _fast_shifted(logits: mx.array, largest: mx.array) -> mx.array:
    return fast_math.exp_below(logits - largest)


def _exact_shifted(logits: mx.array, largest: mx.array) -> mx.array:
    return mx.exp(logits - largest)


_fast = mx.compile(_fast_shifted)
_exact = mx.compile(_exact_shifted)


@mx.custom_function
def _losses(logits: mx.array, labels: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    logits = logits.astype(mx.float32)
    height = max(1, _PASS_ELEMENTS // logits.shape[1])
    parts = [_powers(logits[i : i + height]) for i in range(0, len(logits), height)]
    largest, powers, total = (
        mx.concatenate(list(part)) if len(parts) > 1 else part[0]
        for part in zip(*parts, strict=True)
    )
    chosen = mx.take_along_axis(logits, labels[:, None], axis=-1)
    # Two differences: the larger of `largest` and the logarithm would swallow the other.
    return (mx.log(total) + (largest - chosen))[:, 0], powers, total


def _powers(logits: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    largest = logits.max(axis=-1, keepdims=True)
    powers = shifted(logits, largest)
    return largest, powers, powers.sum(axis=-1, keepdims=True)


@_losses.vjp
def _losses_vjp(primals: Any, cotangents: Any, outputs: Any) -> Any:
    logits, labels = primals
    _, powers, total = outputs
    scale = cotangents[0]
    slope = powers * (scale[:, None] / total)
    slope = slope.at[mx.arange(labels.size), labels].subtract(scale)
    return slope.astype(logits.dtype), mx.zeros_like(labels)
