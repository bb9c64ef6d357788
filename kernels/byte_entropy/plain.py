"""Entropy in plain MLX, for CPUs above all: H = ln Z - (sum of e^s s) / Z with s = z - max z.

No probability is divided out and no logarithm taken of one. Logits are large beside entropies, so
rows are worked through in pieces that caches hold (a quarter of the time of all at once, with
memory that does not grow), and the two sums are products with a vector of ones, which BLAS does
faster than MLX sums rows. For a row or a few, where starting an operation costs more than it does,
softmax and one fused pass are fewer operations.
"""

from __future__ import annotations

import mlx.core as mx

from mlx_companion.kernels.byte_entropy.gradient import in_pieces, raw_exp, with_gradient
from mlx_companion.kernels.fast_math import LOWEST

# So many logits are few: 9 predictions of a byte.
FEW = 2400
# Below so many logits, starting a matrix product costs more than it saves.
_SUMS = 1 << 13
# MLX adds up a row one number after the other: beyond so many, rounding costs more than 1e-5.
_LONG = 320
# Nothing beside a probability that counts; a float32.
_TINY = 1e-30


def entropy(logits: mx.array) -> mx.array:
    """(..., V), not empty -> (...) float32, nats."""
    if logits.size <= FEW and logits.shape[-1] <= _LONG:
        few: mx.array = _few(logits)
        return few
    rows = logits.reshape(-1, logits.shape[-1])
    return _many(rows)[0].reshape(logits.shape[:-1])


@mx.compile
def _few(logits: mx.array) -> mx.array:
    p = mx.softmax(logits.astype(mx.float32), axis=-1)
    # MLX's own gradient of this is -p (ln p + H), with nothing from what is impossible. Rounding
    # may take a probability above 1, and the entropy below 0.
    return (-p * mx.log(mx.clip(p, _TINY, 1.0))).sum(axis=-1)


def _forward(logits: mx.array) -> tuple[mx.array, ...]:
    return in_pieces(_piece, logits)


def _piece(logits: mx.array) -> tuple[mx.array, ...]:
    """(M, V) -> entropy, largest logit and ln Z, (M, 1) each."""
    logits = logits.astype(mx.float32)
    largest = logits.max(axis=-1, keepdims=True)
    # On CPUs compiled code is slow where arrays are broadcast, so the difference is not in it.
    weights, moments = _weights(logits - largest)
    total = _sum(weights)
    log_total = mx.log(total)
    return mx.maximum(log_total - _sum(moments) / total, 0.0), largest, log_total


def _sum(x: mx.array) -> mx.array:
    """(M, V) -> (M, 1)."""
    if x.size < _SUMS and x.shape[-1] <= _LONG:
        return x.sum(axis=-1, keepdims=True)
    return x @ mx.ones((x.shape[-1], 1))


@mx.compile
def _weights(shifted: mx.array) -> tuple[mx.array, mx.array]:
    # An impossible value must not give 0 * inf.
    shifted = mx.maximum(shifted, LOWEST)
    weights = raw_exp(shifted)
    return weights, weights * shifted


_many = with_gradient(_forward)
