"""Operations over patches of unequal length: pooling, and attention within and across them.

Bytes carry the number of their patch; nothing here makes a matrix of patches by bytes, so memory
grows linearly with length whatever the patches are.

    pooled = pool_max(h, patch_ids, P)            # (B, N, D) -> (B, P, D)
    out = attend_within(q, k, v, patch_ids)       # k queries of a patch over its own bytes
    out = attend_source(q, k, v, source)          # a byte over the k vectors of one patch
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from mlx_companion.kernels.fast_math import exp, softmax

_LOWEST = -1e30


def pool_max(h: mx.array, patch_ids: mx.array, count: int) -> mx.array:
    """Elementwise maximum over the bytes of each patch.

    Args:
        h: (B, N, D) byte states.
        patch_ids: (B, N) int, from 0 up.
        count: P; patches without bytes give 0.

    Returns:
        (B, P, D). The gradient goes to the first byte that has the maximum.
    """
    B, N, D = h.shape
    result: Any = _pool_max(h.reshape(B * N, D), _flat(patch_ids, count), _rows(B, count))
    return result.reshape(B, count, D)


def attend_within(q: mx.array, k: mx.array, v: mx.array, patch_ids: mx.array) -> mx.array:
    """Attention of each patch's queries over the bytes of that patch.

    Args:
        q: (B, P, J, H, W), J queries per patch.
        k, v: (B, N, H, W).
        patch_ids: (B, N) int.

    Returns:
        (B, P, J, H, W); 0 for patches without bytes.
    """
    B, P, J, H, W = q.shape
    N = k.shape[1]
    flat = _flat(patch_ids, P)
    own = (q * W**-0.5).reshape(B * P, J, H, W)[flat]
    scores = (own * k.reshape(B * N, 1, H, W)).sum(axis=-1)
    # Any number above the scores does for the shift; no gradient has to pass through it.
    largest = mx.stop_gradient(mx.full((B * P, J, H), _LOWEST).at[flat].maximum(scores))
    weights = exp(scores - largest[flat])
    total = mx.zeros((B * P, J, H)).at[flat].add(weights)
    weighted = weights[..., None] * v.reshape(B * N, 1, H, W)
    summed = mx.zeros((B * P, J, H, W)).at[flat].add(weighted)
    return (summed / mx.maximum(total, 1e-30)[..., None]).reshape(B, P, J, H, W)


def attend_source(q: mx.array, k: mx.array, v: mx.array, source: mx.array) -> mx.array:
    """Attention of each byte over the vectors of one patch.

    Args:
        q: (B, N, H, W).
        k, v: (B, P, J, H, W), J vectors per patch.
        source: (B, N) int, the patch that each byte reads.

    Returns:
        (B, N, H, W).
    """
    B, N, H, W = q.shape
    _, P, J, _, _ = k.shape
    flat = _flat(source, P)
    keys = k.reshape(B * P, J, H, W)[flat]
    values = v.reshape(B * P, J, H, W)[flat]
    scores = ((q * W**-0.5).reshape(B * N, 1, H, W) * keys).sum(axis=-1)
    weights = softmax(scores.swapaxes(1, 2)).swapaxes(1, 2)
    return (weights[..., None] * values).sum(axis=1).reshape(B, N, H, W)


def _flat(ids: mx.array, count: int) -> mx.array:
    """Patch numbers of all rows in one count: (B, N) -> (B * N,)."""
    return (ids + (mx.arange(ids.shape[0]) * count)[:, None]).reshape(-1)


def _rows(rows: int, count: int) -> mx.array:
    # Only its length is used: a custom function takes arrays, not numbers.
    return mx.zeros((rows * count, 0))


@mx.custom_function
def _pool_max(h: mx.array, flat: mx.array, like: mx.array) -> mx.array:
    pooled = mx.full((like.shape[0], h.shape[1]), _LOWEST).at[flat].maximum(h)
    return mx.where(pooled == _LOWEST, 0.0, pooled)


@_pool_max.vjp
def _pool_max_vjp(primals: Any, cotangent: mx.array, output: mx.array) -> Any:
    h, flat, like = primals
    position = mx.arange(h.shape[0])[:, None]
    there = h == output[flat]
    candidates = mx.where(there, position, h.shape[0])
    first = mx.full(output.shape, h.shape[0], dtype=mx.int32).at[flat].minimum(candidates)
    dh = mx.where(position == first[flat], cotangent[flat], 0.0)
    return dh, mx.zeros_like(flat), mx.zeros_like(like)
