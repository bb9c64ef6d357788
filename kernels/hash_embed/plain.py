"""Hash n-gram embeddings in plain MLX, a few gathered rows at a time.

Positions are taken in chunks whose gathered rows stay in the processor's cache: they are summed
while they are there, and memory holds only the result. The gradient adds the cotangent to the G
rows of each position, one table after the other, in one buffer of the table's size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from mlx_companion.kernels.hash_embed.reference import dtype_of, frozen
from mlx_companion.kernels.hash_embed.rows import Ngrams, rows_of
from mlx_companion.kernels.matrix import Matrix

# Gathered rows of a chunk, in bytes: smaller ones cost more in launches than they gain.
_CHUNK = 2**18
# MLX enters up to about so many chunks before the first is done, so that fewer of them
# need as much memory as all at once.
_AHEAD = 16


def hash_embed(
    ids: mx.array, table: Matrix, ngrams: Ngrams, documents: mx.array | None
) -> mx.array:
    """See the package's `hash_embed`."""
    rows = rows_of(ids, ngrams, documents)
    if table.quantized:
        return summed(frozen(table).rows, rows, table.shape[1], dtype_of(table))
    result: Any = _gather_sum(table.weight, rows)
    return result


def summed(
    gather: Callable[[mx.array], mx.array], rows: mx.array, width: int, dtype: mx.Dtype
) -> mx.array:
    """Sum of the gathered rows of each position.

    Args:
        gather: (...) int -> (..., D), the rows of a table.
        rows: (G, B, N) int.
        width, dtype: of the rows.

    Returns:
        (B, N, D).
    """
    tables, *shape = rows.shape
    by_position = rows.reshape(tables, -1).T
    count = by_position.shape[0]
    if not count or not tables:
        return mx.zeros((*shape, width), dtype=dtype)
    chunk = max(_CHUNK // (4 * tables * width), 1)
    if count <= _AHEAD * chunk:
        return _sum(gather(rows), 0)
    # One buffer, which each chunk writes a part of, and the next takes over.
    out = mx.zeros((count, width), dtype=dtype)
    for start in range(0, count, chunk):
        out[start : start + chunk] = _sum(gather(by_position[start : start + chunk]), 1)
    return out.reshape(*shape, width)


def _sum(gathered: mx.array, axis: int) -> mx.array:
    return gathered.astype(mx.float32).sum(axis=axis).astype(gathered.dtype)


@mx.custom_function
def _gather_sum(weight: mx.array, rows: mx.array) -> mx.array:
    return summed(lambda chunk: weight[chunk], rows, weight.shape[1], weight.dtype)


@_gather_sum.vjp
def _gather_sum_vjp(primals: Any, cotangent: mx.array, output: mx.array) -> Any:
    # Autodiff would make a gradient of the whole table for each of the chunks.
    weight, rows = primals
    return scattered(cotangent, rows, weight.shape[0]), mx.zeros_like(rows)


def scattered(cotangent: mx.array, rows: mx.array, height: int) -> mx.array:
    """The gradient of a table (height, D): the cotangent (B, N, D) added to `rows` (G, B, N)."""
    width = cotangent.shape[-1]
    # MLX's CPU adds one number at a time; as complex numbers that is two.
    paired = (
        cotangent.dtype == mx.float32
        and width % 2 == 0
        and mx.default_device().type == mx.DeviceType.cpu
    )
    if paired:
        cotangent, width = mx.contiguous(cotangent).view(mx.complex64), width // 2
    gradient = mx.zeros((height, width), dtype=cotangent.dtype)
    for table in range(rows.shape[0]):
        gradient = gradient.at[rows[table]].add(cotangent)
    return gradient.view(mx.float32) if paired else gradient
