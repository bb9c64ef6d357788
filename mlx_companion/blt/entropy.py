"""Entropy of next-byte predictions, in nats: what decides where patches begin.

The work is `kernels.byte_entropy`'s; here it meets output heads. Logits are large beside the
entropies (V = 260 numbers for one), so a head is applied to some positions at a time.
"""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

from mlx_companion.kernels.byte_entropy import byte_entropy

# Positions at a time: at V = 260 their logits take 2 MB, which caches hold.
CHUNK = 2048


def entropy(logits: mx.array) -> mx.array:
    """Entropy of softmax(logits).

    Args:
        logits: (..., V), any float type; -inf for impossible values, one at least finite.

    Returns:
        (...) float32, nats, from 0 to ln V; exact to 1e-5.
    """
    return byte_entropy(logits).entropy


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
    rows = hidden.reshape(-1, hidden.shape[-1])
    pieces: list[mx.array] = []
    for at in range(0, rows.shape[0], chunk):
        piece = rows[at : at + chunk]
        if pieces:
            # One after the other, so that the memory of one piece serves the next.
            piece = mx.depends(piece, pieces[-1])
        pieces.append(entropy(head(piece)))
    joined = mx.concatenate(pieces) if pieces else mx.zeros((0,))
    return joined.reshape(hidden.shape[:-1])
