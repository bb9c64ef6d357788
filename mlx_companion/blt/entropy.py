"""Entropy of next-byte predictions, in nats: what decides where patches begin.

    H = -sum over v of p(v) ln p(v),   p = softmax(logits)

computed as ln Z - (sum of e^s s) / Z with s = logits - max and Z = sum of e^s, so that no
probability is ever divided out or its logarithm taken. Logits are large beside the entropies
(V = 260 numbers for one), so both functions work through them in pieces.
"""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

from mlx_companion.kernels.fast_math import exp

# e^-60 is 1e-26: such a byte adds nothing, and an impossible one (-inf) must not give 0 * inf.
_LOWEST = -60.0
# Positions at a time: at V = 260 a piece takes 2 MB per intermediate array, which caches hold.
CHUNK = 2048


def entropy(logits: mx.array, chunk: int = CHUNK) -> mx.array:
    """Entropy of softmax(logits).

    Args:
        logits: (..., V), any float type; -inf for impossible values, one at least finite.
        chunk: positions computed at a time.

    Returns:
        (...) float32, nats, from 0 to ln V; exact to 1e-5.
    """
    return _in_pieces(_entropy, logits, chunk)


def entropies_of_hidden(
    hidden: mx.array, head: Callable[[mx.array], mx.array], chunk: int = CHUNK
) -> mx.array:
    """Entropy of the predictions of an output head, without all logits at once.

    Args:
        hidden: (..., D) states.
        head: from (M, D) to logits (M, V).
        chunk: positions computed at a time.

    Returns:
        (...) float32, nats.
    """
    return _in_pieces(lambda piece: _entropy(head(piece)), hidden, chunk)


def _entropy(logits: mx.array) -> mx.array:
    """(M, V) -> (M,)."""
    logits = logits.astype(mx.float32)
    shifted = mx.maximum(logits - logits.max(axis=-1, keepdims=True), _LOWEST)
    weights = exp(shifted)
    total = weights.sum(axis=-1)
    return mx.maximum(mx.log(total) - (weights * shifted).sum(axis=-1) / total, 0.0)


def _in_pieces(function: Callable[[mx.array], mx.array], x: mx.array, chunk: int) -> mx.array:
    """Apply (M, K) -> (M,) to x (..., K), `chunk` rows at a time."""
    rows = x.reshape(-1, x.shape[-1])
    if not rows.shape[0]:
        return mx.zeros(x.shape[:-1])
    pieces: list[mx.array] = []
    for at in range(0, rows.shape[0], chunk):
        piece = rows[at : at + chunk]
        if pieces:
            # One after the other, so that the memory of one piece serves the next.
            piece = mx.depends(piece, pieces[-1])
        pieces.append(function(piece))
    return mx.concatenate(pieces).reshape(x.shape[:-1])
