"""Pooling in plain MLX."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from mlx_companion.kernels.patches import left_out

_LOWEST = -mx.inf


def pool(h: mx.array, ids: mx.array, count: int, mode: str) -> mx.array:
    """See `patch_pool`."""
    B, N, D = h.shape
    rows = (mx.arange(B) * (count + 1))[:, None]
    flat = (mx.where(left_out(ids, count), count, ids) + rows).reshape(-1)
    like = mx.zeros((B * (count + 1), 0))
    if mode == "max":
        result: Any = _pool_max(h.reshape(B * N, D), flat, like)
        return result.reshape(B, count + 1, D)[:, :count]
    summed = mx.zeros((B * (count + 1), D)).at[flat].add(h.reshape(B * N, D).astype(mx.float32))
    if mode == "mean":
        sizes = mx.zeros((B * (count + 1), 1)).at[flat].add(1)
        summed = summed / mx.maximum(sizes, 1)
    return summed.astype(h.dtype).reshape(B, count + 1, D)[:, :count]


@mx.custom_function
def _pool_max(h: mx.array, flat: mx.array, like: mx.array) -> mx.array:
    pooled = mx.full((like.shape[0], h.shape[1]), _LOWEST, dtype=h.dtype).at[flat].maximum(h)
    return mx.where(pooled == _LOWEST, mx.array(0, dtype=h.dtype), pooled)


@_pool_max.vjp
def _pool_max_vjp(primals: Any, cotangent: mx.array, output: mx.array) -> Any:
    h, flat, like = primals
    position = mx.arange(h.shape[0])[:, None]
    there = h == output[flat]
    candidates = mx.where(there, position, h.shape[0])
    first = mx.full(output.shape, h.shape[0], dtype=mx.int32).at[flat].minimum(candidates)
    dh = mx.where(position == first[flat], cotangent[flat], mx.array(0, dtype=h.dtype))
    return dh, mx.zeros_like(flat), mx.zeros_like(like)
