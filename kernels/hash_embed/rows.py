"""Hash n-grams: which rows of the tables stand for the bytes that end at each position.

Sums of products wrap at 2^64; trained tables depend on it. Everything is computed without signs,
because signed overflow is undefined in C++, and read as a signed number at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from mlx_companion.errors import ConfigError

# One per hash function, used again from the start when there are more functions.
PRIMES = (
    1000000007,
    5915587277,
    1500450271,
    3267000013,
    5754853343,
    4093082899,
    9576890767,
    3628273133,
    2860486313,
    5463458053,
    3367900313,
)


class Ngrams(NamedTuple):
    """What is hashed, and how; hashable.

    Attributes:
        sizes: n of the n-grams.
        primes: one per hash function, modulo 2^64.
        vocabulary: V_h, rows of each table.
        last: how many positions at the end of each row are wanted; None for all.
    """

    sizes: tuple[int, ...]
    primes: tuple[int, ...]
    vocabulary: int
    last: int | None = None

    @classmethod
    def of(
        cls, sizes: Sequence[int], primes: Sequence[int], vocabulary: int, last: int | None
    ) -> Ngrams:
        """Checked. Raises ConfigError for a value outside its range."""
        if any(size < 1 for size in sizes):
            raise ConfigError(f"group_sizes is {tuple(sizes)}; each must be 1 or more")
        if vocabulary < 1:
            raise ConfigError(f"vocabulary is {vocabulary}; expected 1 or more rows per table")
        if last is not None and last < 0:
            raise ConfigError(f"last is {last}; expected a number of positions, or None for all")
        return cls(tuple(sizes), tuple(prime % 2**64 for prime in primes), vocabulary, last)

    @property
    def tables(self) -> int:
        """G."""
        return len(self.sizes) * len(self.primes)

    @property
    def rows(self) -> int:
        """Rows of all tables together."""
        return self.tables * self.vocabulary

    @property
    def largest(self) -> int:
        """The largest group size, 1 where there is none."""
        return max(self.sizes, default=1)

    def count(self, length: int) -> int:
        """How many positions of a row are wanted."""
        return length if self.last is None else self.last

    def check(self, ids: mx.array, documents: mx.array | None) -> None:
        """Raises ConfigError where the ids cannot be hashed."""
        if ids.ndim != 2 or not mx.issubdtype(ids.dtype, mx.integer):
            raise ConfigError(f"ids are {ids.dtype} of shape {ids.shape}; expected integers (B, N)")
        if self.count(ids.shape[1]) > ids.shape[1]:
            raise ConfigError(f"last is {self.last}, but a row has {ids.shape[1]} ids")
        if documents is None:
            return
        if documents.shape != ids.shape or not mx.issubdtype(documents.dtype, mx.integer):
            raise ConfigError(
                f"documents are {documents.dtype} of shape {documents.shape}; expected integers "
                f"of the ids' shape {ids.shape}"
            )


def ngram_rows(
    ids: mx.array,
    group_sizes: Sequence[int],
    primes: Sequence[int],
    vocabulary: int,
    documents: mx.array | None = None,
    *,
    last: int | None = None,
) -> mx.array:
    """The table rows of the n-grams that end at each position.

    Args:
        ids, group_sizes, primes, vocabulary, documents, last: see `hash_embed`.

    Returns:
        (G, B, N) or (G, B, last), int32 (int64 where there are more rows than that holds);
        G = functions x group sizes, function-major; rows of the one table of all.

    Raises:
        ConfigError: arguments that do not fit each other.
    """
    ngrams = Ngrams.of(group_sizes, primes, vocabulary, last)
    ngrams.check(ids, documents)
    return mx.moveaxis(rows_of(ids, ngrams, documents), -1, 0)


def rows_of(ids: mx.array, ngrams: Ngrams, documents: mx.array | None) -> mx.array:
    """The rows of each position side by side, (B, N, G), of checked arguments."""
    B, N = ids.shape
    count = ngrams.count(N)
    if not ngrams.tables:
        return mx.zeros((B, count, 0), dtype=mx.int32)
    sums = _last_sums if count == 1 else _sums
    within = mx.remainder(sums(ids, ngrams, documents, count).view(mx.int64), ngrams.vocabulary)
    rows = within + mx.arange(ngrams.tables, dtype=mx.int64) * ngrams.vocabulary
    return rows.astype(mx.int32) if ngrams.rows < 2**31 else rows


def position_in_document(documents: mx.array) -> mx.array:
    """(B, N) int, positions since the number of the document last changed."""
    B, N = documents.shape
    begins = mx.concatenate(
        [mx.ones((B, 1), dtype=mx.bool_), documents[:, 1:] != documents[:, :-1]], axis=1
    )
    place = mx.arange(N)
    return place - mx.cummax(mx.where(begins, place, 0), axis=1)


def unsigned(*numbers: int) -> mx.array:
    """(n,) uint64; MLX itself takes no numbers of Python over 2^63."""
    return mx.array(np.array(numbers, dtype=np.uint64))


def _sums(ids: mx.array, ngrams: Ngrams, documents: mx.array | None, count: int) -> mx.array:
    """h of the last `count` positions: (B, count, G) uint64."""
    back = _bytes_back(ids, ngrams.largest, count, documents)
    sums = []
    for prime in ngrams.primes:
        factor = unsigned(prime)
        by_size = [back[0]]
        for byte in back[1:]:
            # One byte more in front: every other power goes up by one.
            by_size.append(byte + factor * by_size[-1])
        sums += [by_size[size - 1] for size in ngrams.sizes]
    return mx.stack(sums, axis=-1)


def _last_sums(ids: mx.array, ngrams: Ngrams, documents: mx.array | None, count: int) -> mx.array:
    """h of the last position: (B, 1, G) uint64; one product instead of a step per byte."""
    window = _padded(ids, ngrams.largest)
    if documents is not None and ids.shape[1]:
        reach = position_in_document(documents)[:, -1:]
        window = mx.where(reach >= mx.arange(ngrams.largest - 1, -1, -1), window, 0)
    return (window[:, None, None] * mx.array(_powers(ngrams))).sum(axis=-1)


def _bytes_back(
    ids: mx.array, steps: int, count: int, documents: mx.array | None
) -> list[mx.array]:
    """`steps` arrays (B, count) uint64: the ids 0, 1, 2, ... back, zero before the text."""
    padded = _padded(ids, steps - 1 + count)
    back = [padded[:, steps - 1 - i : steps - 1 - i + count] for i in range(steps)]
    if documents is None or count == 0:
        return back
    position = position_in_document(documents)[:, -count:]
    return [mx.where(position >= i, shifted, 0) for i, shifted in enumerate(back)]


def _padded(ids: mx.array, length: int) -> mx.array:
    """The last `length` ids of each row, zeros in front of shorter ones: (B, length) uint64."""
    B, N = ids.shape
    recent = ids[:, max(N - length, 0) :].astype(mx.uint64)
    if length <= N:
        return recent
    return mx.concatenate([mx.zeros((B, length - N), dtype=mx.uint64), recent], axis=1)


@lru_cache(maxsize=16)
def _powers(ngrams: Ngrams) -> np.ndarray:
    """(G, largest size) uint64, the factor of each byte of a window; 0 before a smaller group."""
    table = [
        [0] * (ngrams.largest - size) + [pow(prime, i, 2**64) for i in range(size)]
        for prime in ngrams.primes
        for size in ngrams.sizes
    ]
    return np.array(table, dtype=np.uint64)
