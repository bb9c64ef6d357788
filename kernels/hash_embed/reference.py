"""Hash n-gram embeddings as the definition reads: every window, every gathered row, autodiff."""

from __future__ import annotations

import mlx.core as mx

from mlx_companion.kernels.hash_embed.rows import Ngrams, unsigned
from mlx_companion.kernels.matrix import Matrix


def hash_embed(
    ids: mx.array, table: Matrix, ngrams: Ngrams, documents: mx.array | None
) -> mx.array:
    """See the package's `hash_embed`."""
    B, N = ids.shape
    start = N - ngrams.count(N)
    shape = (B, N - start, table.shape[1])
    if not ngrams.tables or 0 in shape:
        return mx.zeros(shape, dtype=dtype_of(table))
    rows = mx.stack(
        [
            _within(ids, size, prime, ngrams.vocabulary, documents)
            for prime in ngrams.primes
            for size in ngrams.sizes
        ]
    )
    rows = rows + mx.arange(ngrams.tables).reshape(-1, 1, 1) * ngrams.vocabulary
    gathered = frozen(table).rows(rows[:, :, start:])
    return gathered.astype(mx.float32).sum(axis=0).astype(gathered.dtype)


def frozen(table: Matrix) -> Matrix:
    """Without gradient where the table is quantized."""
    if not table.quantized:
        return table
    return table.with_arrays([mx.stop_gradient(part) for part in table.arrays])


def dtype_of(table: Matrix) -> mx.Dtype:
    """The type of the table's rows."""
    if table.scales is None:
        return table.weight.dtype
    # Scales of the modes without biases are exponents.
    return table.scales.dtype if table.biases is not None else mx.bfloat16


def _within(
    ids: mx.array, size: int, prime: int, vocabulary: int, documents: mx.array | None
) -> mx.array:
    """h mod V_h of one group size: (B, N) int64."""
    N = ids.shape[1]
    place = mx.arange(N)
    total = mx.zeros(ids.shape, dtype=mx.uint64)
    same = mx.ones(ids.shape, dtype=mx.bool_)
    for back in range(min(size, N)):
        source = mx.maximum(place - back, 0)
        same = mx.logical_and(same, place >= back)
        if documents is not None and back:
            before = documents[:, source] == documents[:, mx.minimum(source + 1, N - 1)]
            same = mx.logical_and(same, before)
        power = unsigned(pow(prime, size - 1 - back, 2**64))
        total = total + mx.where(same, ids[:, source].astype(mx.uint64), 0) * power
    return mx.remainder(total.view(mx.int64), vocabulary)
