"""Entropy with its probabilities written out, and decisions in double precision."""

from __future__ import annotations

import mlx.core as mx

from mlx_companion.kernels.byte_entropy.decision import ByteEntropy, Limits


def byte_entropy(logits: mx.array, limits: Limits) -> ByteEntropy:
    """As the op; the gradient is MLX's own."""
    p = mx.softmax(logits.astype(mx.float32), axis=-1)
    # An impossible value adds nothing, and its 0 * ln 0 must not become 0 * inf.
    log_p = mx.log(mx.where(p == 0, 1, p))
    entropy = -(p * log_p).sum(axis=-1)
    return ByteEntropy(entropy, _over(mx.stop_gradient(entropy), limits))


def _over(entropy: mx.array, limits: Limits) -> mx.array | None:
    if not limits.decides:
        return None
    # MLX has double precision on CPUs alone.
    with mx.stream(mx.cpu):
        h = entropy.astype(mx.float64)
        over = mx.ones(h.shape, dtype=mx.bool_)
        if limits.threshold is not None:
            over = over & (h > mx.array(limits.threshold, dtype=mx.float64))
        if limits.rise is not None:
            if not h.ndim:
                return mx.zeros((), dtype=mx.bool_)
            risen = h[..., 1:] - h[..., :-1] > mx.array(limits.rise, dtype=mx.float64)
            first = mx.zeros((*h.shape[:-1], 1), dtype=mx.bool_)
            over = over & mx.concatenate([first, risen], axis=-1)
        return over
