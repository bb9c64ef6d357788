"""Hash n-gram embeddings in plain MLX, a few gathered rows at a time.

Positions are taken in chunks whose gathered rows stay in the processor's cache: they are summed
while they are there, and memory holds little more than the result. The gradient adds the cotangent
to the G rows of each position, in one buffer of the table's size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from mlx_companion.kernels.hash_embed.reference import dtype_of, frozen
from mlx_companion.kernels.hash_embed.rows import Ngrams, rows_of
from mlx_companion.kernels.matrix import Matrix

# All in bytes of gathered rows, as float32. Up to so many are gathered at once, which is as fast
# while they stay in the cache that cores share. Of more, chunks are a share: MLX enters up to about
# 20 of them before the first is done, which is then a fifth of all; but not so small that launching
# them takes the time, nor so large that they leave the cache.
_WHOLE = 20_000_000
_SHARE, _SMALLEST, _LARGEST = 1 / 100, 2**18, 2**20
# So many chunks at most: what MLX records of them takes time and memory too.
_CHUNKS = 512

# (..., G) int, rows of each position -> their sum (..., 1, D).
Reader = Callable[[mx.array], mx.array]


def hash_embed(
    ids: mx.array, table: Matrix, ngrams: Ngrams, documents: mx.array | None
) -> mx.array:
    """See the package's `hash_embed`."""
    rows = rows_of(ids, ngrams, documents)
    if table.quantized:
        read = _packed_reader(frozen(table))
        return _in_chunks(read, rows, table.shape[1], dtype_of(table))
    result: Any = _gather_sum(table.weight, rows)
    return result


def _in_chunks(read: Reader, rows: mx.array, width: int, dtype: mx.Dtype) -> mx.array:
    """What `read` gives for all rows (B, N, G), a chunk of positions at a time: (B, N, D)."""
    *shape, tables = rows.shape
    count, each = math.prod(shape), 4 * tables * width
    if not count * each:
        return mx.zeros((*shape, width), dtype=dtype)
    if count * each <= _WHOLE:
        return read(rows).squeeze(-2)
    chunk = _positions(count, each)
    # One buffer, which each chunk writes a part of, and the next takes over.
    out = mx.zeros((count, 1, width), dtype=dtype)
    starts = range(0, count, chunk)
    parts = mx.split(rows.reshape(count, tables), list(starts[1:]))
    for start, part in zip(starts, parts, strict=True):
        out[start : start + chunk] = read(part)
    return out.reshape(*shape, width)


def _positions(count: int, each: int) -> int:
    """Positions of a chunk, of `count` that gather `each` bytes."""
    size = min(max(int(count * each * _SHARE), _SMALLEST), _LARGEST)
    return max(size // each, -(-count // _CHUNKS))


def _summed(gathered: mx.array) -> mx.array:
    """Over the tables, in float32: (..., G, D) -> (..., 1, D)."""
    if gathered.dtype == mx.float32:
        # A dimension kept is an operation saved, per chunk.
        return gathered.sum(axis=-2, keepdims=True)
    return gathered.astype(mx.float32).sum(axis=-2, keepdims=True).astype(gathered.dtype)


def _packed_reader(table: Matrix) -> Reader:
    """Of a quantized table. For packings into bytes in a third of MLX's operations: scaled values
    are summed, and biases by group.
    """
    if table.mode != "affine" or table.bits not in (2, 4, 8):
        return lambda rows: _summed(table.rows(rows))

    def read(rows: mx.array) -> mx.array:
        packed, scales, biases = (mx.take(part, rows, axis=0) for part in table.arrays)
        values = _unpacked(packed, table.bits).reshape(*scales.shape, table.group_size)
        scaled = values.astype(mx.float32) * scales[..., None].astype(mx.float32)
        offsets = biases.astype(mx.float32).sum(axis=-2, keepdims=True)[..., None]
        summed = scaled.sum(axis=-3, keepdims=True) + offsets
        return summed.flatten(-2).astype(scales.dtype)

    return read


def _unpacked(packed: mx.array, bits: int) -> mx.array:
    """Words (..., n) to the values in them, low bits first: (..., n * 32 / bits) uint8."""
    values = packed.view(mx.uint8)
    if bits == 8:
        return values
    mask = 2**bits - 1
    parts = [(values >> shift) & mask for shift in range(0, 8, bits)]
    return mx.stack(parts, axis=-1).flatten(-2)


@mx.custom_function
def _gather_sum(weight: mx.array, rows: mx.array) -> mx.array:
    def read(chunk: mx.array) -> mx.array:
        return _summed(mx.take(weight, chunk, axis=0))

    return _in_chunks(read, rows, weight.shape[1], weight.dtype)


@_gather_sum.vjp
def _gather_sum_vjp(primals: Any, cotangent: mx.array, output: mx.array) -> Any:
    # Autodiff would make a gradient of the whole table for each of the chunks.
    weight, rows = primals
    return _scattered(cotangent, rows, weight.shape[0]), mx.zeros_like(rows)


def _scattered(cotangent: mx.array, rows: mx.array, height: int) -> mx.array:
    """The gradient of a table (height, D): the cotangent (B, N, D) added to `rows` (B, N, G)."""
    width = cotangent.shape[-1]
    if not rows.size:
        return mx.zeros((height, width), dtype=cotangent.dtype)
    # MLX's CPU adds one number at a time; as complex numbers that is two.
    paired = (
        cotangent.dtype == mx.float32
        and width % 2 == 0
        and mx.default_device().type == mx.DeviceType.cpu
    )
    if paired:
        cotangent, width = cotangent.view(mx.complex64), width // 2
    by_table = mx.moveaxis(rows, -1, 0)
    added = mx.broadcast_to(cotangent, (*by_table.shape, width))
    gradient = mx.zeros((height, width), dtype=cotangent.dtype).at[by_table].add(added)
    return gradient.view(mx.float32) if paired else gradient
