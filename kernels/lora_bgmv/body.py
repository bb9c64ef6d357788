"""`lora_bgmv` on accelerators: shrink, z = s_i x A_i, then expand, y + z B_i.

Both read each adapter value once per `TOKENS` tokens. Shrinking splits the input width over the
lanes of all SIMD groups of a threadgroup, each lane summing `RANKS` columns of A; expanding gives
every output to a thread, neighbours reading neighbouring values of B. z stays float32.

A row has few tokens here (decoding); the gradient is that of the plain form, made of products.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import mlx.core as mx

from mlx_companion.kernels.launch import Kernel
from mlx_companion.kernels.lora_bgmv.plain import plain_update

# Above, matrix units are faster than the dot products of these bodies.
MOST_TOKENS = 16
_RANKS = 8
_GROUPS = 8
_WIDTH = 256

SHRINK = Kernel(
    name="lora_bgmv_shrink",
    inputs=("x", "a", "index", "scale", "sizes"),
    outputs=("z",),
    source="""
    const int length = sizes[0], k_size = sizes[1], ranks = sizes[2], adapters = sizes[3];
    const int tiles = (length + TOKENS - 1) / TOKENS;
    const int row = int(threadgroup_position_in_grid.z) / tiles;
    const int first = (int(threadgroup_position_in_grid.z) % tiles) * TOKENS;
    const int rank0 = int(threadgroup_position_in_grid.y) * RANKS;
    const int thread_id = int(thread_position_in_threadgroup.x);
    const int lane = thread_id % 32, group = thread_id / 32;
    threadgroup float partial[GROUPS * TOKENS * RANKS];

    const int adapter = index[row];
    const bool active = adapter >= 0 && adapter < adapters;
    float sums[TOKENS * RANKS];
    for (int c = 0; c < TOKENS * RANKS; ++c) {
        sums[c] = 0.0f;
    }
    if (active) {
        for (int k = thread_id; k < k_size; k += 32 * GROUPS) {
            const size_t from = (size_t(adapter) * k_size + k) * ranks + rank0;
            float column[RANKS];
            for (int j = 0; j < RANKS; ++j) {
                column[j] = rank0 + j < ranks ? float(a[from + j]) : 0.0f;
            }
            for (int t = 0; t < TOKENS; ++t) {
                if (first + t < length) {
                    const float value = float(x[(size_t(row) * length + first + t) * k_size + k]);
                    for (int j = 0; j < RANKS; ++j) {
                        sums[t * RANKS + j] += value * column[j];
                    }
                }
            }
        }
    }
    for (int c = 0; c < TOKENS * RANKS; ++c) {
        const float sum = simd_sum(sums[c]);
        if (lane == 0) {
            partial[group * TOKENS * RANKS + c] = sum;
        }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (int c = thread_id; c < TOKENS * RANKS; c += 32 * GROUPS) {
        const int t = first + c / RANKS, j = rank0 + c % RANKS;
        if (t < length && j < ranks) {
            float total = 0.0f;
            for (int g = 0; g < GROUPS; ++g) {
                total += partial[g * TOKENS * RANKS + c];
            }
            z[(size_t(row) * length + t) * ranks + j] = active ? total * scale[adapter] : 0.0f;
        }
    }
    """,
)

EXPAND = Kernel(
    name="lora_bgmv_expand",
    inputs=("y", "z", "b", "index", "sizes"),
    outputs=("out",),
    source="""
    const int length = sizes[0], width = sizes[1], ranks = sizes[2], adapters = sizes[3];
    const int tiles = (length + TOKENS - 1) / TOKENS;
    const int row = int(threadgroup_position_in_grid.y) / tiles;
    const int first = (int(threadgroup_position_in_grid.y) % tiles) * TOKENS;
    const int o = int(thread_position_in_grid.x);
    if (o >= width) {
        return;
    }
    const int adapter = index[row];
    const bool active = adapter >= 0 && adapter < adapters;
    float sums[TOKENS];
    for (int t = 0; t < TOKENS; ++t) {
        sums[t] = 0.0f;
    }
    if (active) {
        for (int j = 0; j < ranks; ++j) {
            const float value = float(b[(size_t(adapter) * ranks + j) * width + o]);
            for (int t = 0; t < TOKENS; ++t) {
                if (first + t < length) {
                    sums[t] += z[(size_t(row) * length + first + t) * ranks + j] * value;
                }
            }
        }
    }
    for (int t = 0; t < TOKENS; ++t) {
        if (first + t < length) {
            const size_t at = (size_t(row) * length + first + t) * width + o;
            // A row without an adapter keeps its bits.
            out[at] = active ? T(float(y[at]) + sums[t]) : y[at];
        }
    }
    """,
)


def kernel_update(
    y: mx.array,
    x: mx.array,
    a: mx.array,
    b: mx.array,
    index: mx.array,
    scale: mx.array,
    impl: str,
) -> mx.array:
    """As `plain_update`, with "metal" or "cuda"; arrays must not be empty."""
    result: Any = _function(impl)(y, x, a.astype(x.dtype), b.astype(x.dtype), index, scale)
    return result


@lru_cache(maxsize=4)
def _function(impl: str) -> Any:
    @mx.custom_function
    def update(
        y: mx.array, x: mx.array, a: mx.array, b: mx.array, index: mx.array, scale: mx.array
    ) -> mx.array:
        return _launched(y, x, a, b, index, scale, impl)

    @update.vjp
    def update_vjp(primals: Any, cotangent: mx.array, output: mx.array) -> Any:
        y, x, a, b, index, scale = primals

        def plain(y: mx.array, x: mx.array, a: mx.array, b: mx.array, s: mx.array) -> mx.array:
            return plain_update(y, x, a, b, index, s, None)

        dy, dx, da, db, ds = mx.vjp(plain, [y, x, a, b, scale], [cotangent])[1]
        return dy, dx, da, db, mx.zeros_like(index), ds

    return update


def _launched(
    y: mx.array,
    x: mx.array,
    a: mx.array,
    b: mx.array,
    index: mx.array,
    scale: mx.array,
    impl: str,
) -> mx.array:
    B, L, width = y.shape
    n, k_size, ranks = a.shape
    tokens = 1 if L == 1 else 4
    tiles = B * -(-L // tokens)
    index = index.astype(mx.int32)
    (z,) = SHRINK(
        [x, a, index, scale.astype(mx.float32), mx.array([L, k_size, ranks, n], mx.int32)],
        impl=impl,
        template=[("TOKENS", tokens), ("RANKS", _RANKS), ("GROUPS", _GROUPS)],
        grid=(32 * _GROUPS, -(-ranks // _RANKS), tiles),
        threadgroup=(32 * _GROUPS, 1, 1),
        shapes=[(B, L, ranks)],
        dtypes=[mx.float32],
    )
    (out,) = EXPAND(
        [y, z, b, index, mx.array([L, width, ranks, n], mx.int32)],
        impl=impl,
        template=[("T", y.dtype), ("TOKENS", tokens)],
        grid=(-(-width // _WIDTH) * _WIDTH, tiles, 1),
        threadgroup=(_WIDTH, 1, 1),
        shapes=[y.shape],
        dtypes=[y.dtype],
    )
    return out
