"""Cross-entropy of a chunk of logits on accelerators: one kernel forward, one backward.

Forward, a threadgroup takes a row: each thread keeps a running maximum and the sum of exponentials
relative to it, which SIMD groups and then the threadgroup merge. The logarithm of the sum is kept;
with it the backward pass is one independent number per logit.

Rounded logits (half, bfloat16) are read as they are and summed in float32.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import mlx.core as mx

from mlx_companion.kernels.launch import Kernel
from mlx_companion.kernels.linear_cross_entropy.logits import LogitsLoss

_MOST_THREADS = 1024
# Logits that a thread reads before it updates its maximum; fewer exponentials than one by one.
_READS = 4
_BLOCK = 256

LOSSES = Kernel(
    name="cross_entropy_losses",
    inputs=("logits", "labels", "sizes"),
    outputs=("losses", "normalizers"),
    source="""
    const int columns = sizes[1];
    const int row = int(threadgroup_position_in_grid.x);
    const int thread_id = int(thread_position_in_threadgroup.x);
    const int lane = thread_id % 32, group = thread_id / 32;
    threadgroup float group_largest[GROUPS];
    threadgroup float group_total[GROUPS];
    const size_t from = size_t(row) * columns;

    // Finite, so that no difference of infinities arises where a thread has read nothing.
    float largest = -3.0e38f, total = 0.0f;
    for (int start = thread_id; start < columns; start += 32 * GROUPS * READS) {
        float values[READS];
        float above = largest;
        for (int j = 0; j < READS; ++j) {
            const int column = start + j * 32 * GROUPS;
            values[j] = column < columns ? float(logits[from + column]) : -INFINITY;
            above = values[j] > above ? values[j] : above;
        }
        total *= metal::exp(largest - above);
        for (int j = 0; j < READS; ++j) {
            total += metal::exp(values[j] - above);
        }
        largest = above;
    }
    const float in_group = simd_max(largest);
    total = simd_sum(total * metal::exp(largest - in_group));
    if (lane == 0) {
        group_largest[group] = in_group;
        group_total[group] = total;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (thread_id == 0) {
        float above = group_largest[0];
        for (int g = 1; g < GROUPS; ++g) {
            above = group_largest[g] > above ? group_largest[g] : above;
        }
        float sum = 0.0f;
        for (int g = 0; g < GROUPS; ++g) {
            sum += group_total[g] * metal::exp(group_largest[g] - above);
        }
        const float log_sum = metal::precise::log(sum);
        losses[row] = log_sum + (above - float(logits[from + labels[row]]));
        normalizers[row] = log_sum + above;
    }
    """,
)

SLOPES = Kernel(
    name="cross_entropy_slopes",
    inputs=("logits", "labels", "normalizers", "scale", "sizes"),
    outputs=("slopes",),
    source="""
    const int columns = sizes[1];
    const int column = int(thread_position_in_grid.x);
    const int row = int(thread_position_in_grid.y);
    if (column < columns) {
        const size_t at = size_t(row) * columns + column;
        const float p = metal::exp(float(logits[at]) - normalizers[row]);
        slopes[at] = T(scale[row] * (column == labels[row] ? p - 1.0f : p));
    }
    """,
)


@lru_cache(maxsize=4)
def kernel_losses(impl: str) -> LogitsLoss:
    """The losses of logits, as `logits.plain_losses`, by "metal" or "cuda".

    Logits must have a size; other types than float32, float16 and bfloat16 are refused by MLX.
    """

    @mx.custom_function
    def function(logits: mx.array, labels: mx.array) -> Any:
        return _losses(logits, labels, impl)

    @function.vjp
    def function_vjp(primals: Any, cotangents: Any, outputs: Any) -> Any:
        logits, labels = primals
        return _slopes(logits, labels, outputs[1], cotangents[0], impl), mx.zeros_like(labels)

    def losses(logits: mx.array, labels: mx.array) -> mx.array:
        result: Any = function(logits, labels)
        return result[0]

    return losses


def _losses(logits: mx.array, labels: mx.array, impl: str) -> tuple[mx.array, mx.array]:
    rows, columns = logits.shape
    threads = min(_MOST_THREADS, -(-columns // (32 * _READS)) * 32)
    losses, normalizers = LOSSES(
        [logits, labels, mx.array([rows, columns], mx.int32)],
        impl=impl,
        template=[("GROUPS", threads // 32), ("READS", _READS)],
        grid=(rows * threads, 1, 1),
        threadgroup=(threads, 1, 1),
        shapes=[(rows,), (rows,)],
        dtypes=[mx.float32, mx.float32],
    )
    return losses, normalizers


def _slopes(
    logits: mx.array, labels: mx.array, normalizers: mx.array, scale: mx.array, impl: str
) -> mx.array:
    rows, columns = logits.shape
    (slopes,) = SLOPES(
        [logits, labels, normalizers, scale, mx.array([rows, columns], mx.int32)],
        impl=impl,
        template=[("T", logits.dtype)],
        grid=(-(-columns // _BLOCK) * _BLOCK, rows, 1),
        threadgroup=(_BLOCK, 1, 1),
        shapes=[logits.shape],
        dtypes=[logits.dtype],
    )
    return slopes
