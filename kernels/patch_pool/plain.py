"""Pooling in plain MLX: a scatter forwards, running counts backwards.

The gradient of a maximum needs the first byte that has it. That is the one where a running count
of bytes equal to their patch's maximum, less what the count was before the patch, is 1; a second
scatter, of positions, would take several times as long.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from mlx_companion.kernels.patches import highest_so_far, left_out, starts


def pool(h: mx.array, ids: mx.array, count: int, mode: str) -> mx.array:
    """See `patch_pool`."""
    B, N, D = h.shape
    rows = h.astype(mx.float32).reshape(B * N, D)
    own = _own(ids, count)
    if mode == "max":
        begins = starts(highest_so_far(ids, count), count)[:, :-1] + (mx.arange(B) * N)[:, None]
        pooled: Any = _maximum(rows, own, mx.minimum(begins.reshape(-1), B * N - 1))
    else:
        pooled = mx.zeros((B * count + 1, D)).at[own].add(rows)
        if mode == "mean":
            sizes = mx.zeros((B * count + 1, 1)).at[own].add(1)
            pooled = pooled * mx.reciprocal(mx.maximum(sizes, 1))
    return pooled[:-1].reshape(B, count, D).astype(h.dtype)


def _own(ids: mx.array, count: int) -> mx.array:
    """(B * N,) int32, patches in a count over all rows; one more for all bytes left out."""
    B = ids.shape[0]
    own = ids + (mx.arange(B) * count)[:, None]
    return mx.where(left_out(ids, count), B * count, own).reshape(-1)


@mx.custom_function
def _maximum(h: mx.array, own: mx.array, begins: mx.array) -> mx.array:
    """(B * P + 1, D); `begins` (B * P,) are the first bytes of patches."""
    lowest = mx.full((begins.shape[0], h.shape[1]), -mx.inf)
    # Bytes left out are equal to nothing, and so not counted in the backward pass.
    unequal = mx.full((1, h.shape[1]), mx.inf)
    return _filled(mx.concatenate([lowest, unequal]).at[own].maximum(h))


@_maximum.vjp
def _maximum_vjp(primals: Any, cotangent: mx.array, output: mx.array) -> Any:
    h, own, begins = primals
    # Equals are counted over all rows at once, which needs a type that holds one per byte.
    narrow = h.shape[0] < 2**15
    equal = (_equal_narrow if narrow else _equal)(h, output[own])
    counted = mx.cumsum(equal, axis=0)
    before = counted[begins] - equal[begins]
    # The row of bytes left out has no cotangent, so that any count does.
    before = mx.concatenate([before, before[:1]])
    dh = _first_only(equal, counted, before[own], cotangent[own])
    return dh, mx.zeros_like(own), mx.zeros_like(begins)


@mx.compile
def _filled(pooled: mx.array) -> mx.array:
    return mx.where(pooled == -mx.inf, 0.0, pooled)


@mx.compile
def _equal(h: mx.array, pooled: mx.array) -> mx.array:
    return (h == pooled).astype(mx.int32)


@mx.compile
def _equal_narrow(h: mx.array, pooled: mx.array) -> mx.array:
    return (h == pooled).astype(mx.int16)


@mx.compile
def _first_only(equal: mx.array, counted: mx.array, before: mx.array, slope: mx.array) -> mx.array:
    return mx.where((equal > 0) & (counted - before == 1), slope, 0.0)
