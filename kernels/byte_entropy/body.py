"""`byte_entropy` on accelerators: a SIMD group per row, two passes, decisions in the same kernel.

A threadgroup takes `ROWS` rows and, where rises matter, the row before its first one too, whose
entropy another threadgroup also computes: that costs one row in `ROWS` and saves a launch.
"""

from __future__ import annotations

from functools import lru_cache

import mlx.core as mx

from mlx_companion.kernels.byte_entropy.decision import ByteEntropy, Limits, rounded
from mlx_companion.kernels.byte_entropy.gradient import Forward, with_gradient
from mlx_companion.kernels.launch import Kernel

GROUPS = 8
ROWS = 32

KERNEL = Kernel(
    name="byte_entropy",
    inputs=("logits", "limits", "length"),
    outputs=("entropy", "largest", "log_total", "over"),
    source="""
    const int lane = int(thread_index_in_simdgroup);
    const int count = logits_shape[0], V = logits_shape[1];
    const int first = int(threadgroup_position_in_grid.x) * ROWS;
    // Of the row before the tile, then of the tile.
    threadgroup float tile[ROWS + 1];

    for (int slot = int(simdgroup_index_in_threadgroup); slot <= ROWS; slot += GROUPS) {
        const int row = first + slot - 1;
        if (row < 0 || row >= count || (slot == 0 && !RISE)) {
            continue;
        }
        auto z = logits + size_t(row) * V;
        float top = -INFINITY;
        for (int v = lane; v < V; v += 32) {
            top = metal::max(top, static_cast<float>(z[v]));
        }
        top = simd_max(top);
        float total = 0.0f, moment = 0.0f;
        for (int v = lane; v < V; v += 32) {
            float s = static_cast<float>(z[v]) - top;
            // Impossible values must not give 0 * inf; unlike max, this keeps what is no number.
            s = s < -60.0f ? -60.0f : s;
            const float weight = metal::exp(s);
            total += weight;
            moment += weight * s;
        }
        total = simd_sum(total);
        moment = simd_sum(moment);
        const float log_z = metal::log(total);
        float h = log_z - moment / total;
        h = h < 0.0f ? 0.0f : h;
        if (lane == 0) {
            tile[slot] = h;
            if (slot > 0) {
                entropy[row] = h;
                largest[row] = top;
                log_total[row] = log_z;
            }
        }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);

    const int slot = int(thread_position_in_threadgroup.x) + 1;
    const int row = first + slot - 1;
    if (slot <= ROWS && row < count) {
        const float h = tile[slot];
        bool yes = h > limits[0];
        if (RISE) {
            // h - before = s + error exactly, see decision.py.
            const bool begins = row % length[0] == 0;
            const float before = begins ? 0.0f : tile[slot - 1];
            const float s = h - before;
            const float taken = s - h;
            const float error = (h - (s - taken)) - (before + taken);
            yes = yes && !begins && (s > limits[1] || (s == limits[1] && error > limits[2]));
        }
        over[row] = yes;
    }
    """,
)


def byte_entropy(logits: mx.array, limits: Limits, impl: str) -> ByteEntropy:
    """As the op, for logits that are not empty."""
    shape = logits.shape[:-1]
    length = shape[-1] if shape else 1
    results = with_gradient(_launched(limits, length, impl))(logits.reshape(-1, logits.shape[-1]))
    over = results[3].reshape(shape) if limits.decides else None
    return ByteEntropy(results[0].reshape(shape), over)


@lru_cache(maxsize=64)
def _launched(limits: Limits, length: int, impl: str) -> Forward:
    numbers, lengths = mx.array(rounded(limits)), mx.array([length], dtype=mx.int32)

    def forward(logits: mx.array) -> tuple[mx.array, ...]:
        count = logits.shape[0]
        tiles = (count + ROWS - 1) // ROWS
        results = KERNEL(
            [logits, numbers, lengths],
            impl=impl,
            template=[("ROWS", ROWS), ("GROUPS", GROUPS), ("RISE", limits.rise is not None)],
            grid=(tiles * GROUPS * 32, 1, 1),
            threadgroup=(GROUPS * 32, 1, 1),
            shapes=[(count, 1)] * 4,
            dtypes=[mx.float32, mx.float32, mx.float32, mx.bool_],
        )
        return tuple(results)

    return forward
