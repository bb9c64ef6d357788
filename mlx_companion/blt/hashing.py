"""Hash n-grams: the rows of the embedding tables that stand for the last few bytes.

A byte alone says little; the n-grams that end in it say much, and a hash gives each n-gram a row
of a table without a vocabulary of n-grams. For group size g and hash function f with prime p_f::

    h[t] = sum over i < g of x[t - g + 1 + i] * p_f^i    modulo 2^64, read as a signed number
    row  = h[t] mod V_h                                  from 0 to V_h - 1

x are byte ids, and zero before the text begins. The wrap-around is part of the definition: trained
tables depend on it. Tables lie one after the other, all group sizes of the first function first.

    rows = hash_ids(ids, config)             # (B, N) -> (G, B, N)
    rows = hash_window(last_eight, config)   # (B, 8) -> (G, B), while generating

Source: Pagnoni et al. 2024, arXiv 2412.09871, section 3.2.1; primes as in the released models.
"""

from __future__ import annotations

from functools import lru_cache

import mlx.core as mx
import numpy as np

from mlx_companion.blt.config import HashConfig
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


def hash_ids(ids: mx.array, config: HashConfig, documents: mx.array | None = None) -> mx.array:
    """The table rows of all n-grams that end at each position.

    Args:
        ids: (B, N) int, byte ids.
        config: group sizes, functions and V_h.
        documents: (B, N) int, equal along each text of a row: bytes of the text before count as
            the zeros before the row.

    Returns:
        (G, B, N) int32 (int64 where there are more rows than that holds), G = functions x group
        sizes, function-major; rows of the one fused table.
    """
    if not config.tables:
        return mx.zeros((0, *ids.shape), dtype=mx.int32)
    largest = max(config.group_sizes)
    back = _bytes_back(ids, largest, documents)
    sums = []
    for function in range(config.functions):
        prime = mx.array(_prime(function), dtype=mx.uint64)
        by_size = [back[0]]
        for byte in back[1:]:
            # One byte more in front: every other power goes up by one.
            by_size.append(byte + prime * by_size[-1])
        sums += [by_size[size - 1] for size in config.group_sizes]
    return _rows(mx.stack(sums), config)


def hash_window(window: mx.array, config: HashConfig) -> mx.array:
    """The table rows of the n-grams that end at the last position of each row.

    Args:
        window: (B, W) int, the last ids of each row, newest last; W at least the largest group
            size, and zeros (not BOS) where the text is shorter.
        config: group sizes, functions and V_h.

    Returns:
        (G, B), what `hash_ids` gives for the last position.

    Raises:
        ConfigError: the window is shorter than the largest group.
    """
    if not config.tables:
        return mx.zeros((0, window.shape[0]), dtype=mx.int32)
    largest = max(config.group_sizes)
    if window.shape[1] < largest:
        raise ConfigError(
            f"the window has {window.shape[1]} bytes and the largest group {largest}; "
            "keep that many, with zeros in front of a shorter text"
        )
    last = window[:, -largest:].astype(mx.uint64)
    powers = mx.array(_powers(config))
    return _rows((powers[:, None] * last).sum(axis=-1), config)


def _bytes_back(ids: mx.array, count: int, documents: mx.array | None) -> list[mx.array]:
    """`count` arrays (B, N) uint64: the ids 0, 1, 2, ... positions back, zero before the text."""
    B, N = ids.shape
    # Unsigned, because overflow of signed numbers is undefined in C++.
    padded = mx.concatenate(
        [mx.zeros((B, count - 1), dtype=mx.uint64), ids.astype(mx.uint64)], axis=1
    )
    back = [padded[:, count - 1 - i : count - 1 - i + N] for i in range(count)]
    if documents is None or N == 0:
        return back
    position = _position_in_document(documents)
    return [mx.where(position >= i, shifted, 0) for i, shifted in enumerate(back)]


def _position_in_document(documents: mx.array) -> mx.array:
    """(B, N) int, positions since the number of the document last changed."""
    B, N = documents.shape
    begins = mx.concatenate(
        [mx.ones((B, 1), dtype=mx.bool_), documents[:, 1:] != documents[:, :-1]], axis=1
    )
    place = mx.arange(N)
    return place - mx.cummax(mx.where(begins, place, 0), axis=1)


def _rows(sums: mx.array, config: HashConfig) -> mx.array:
    """Sums (G, ...) uint64 to rows of the fused table."""
    within = mx.remainder(sums.view(mx.int64), config.vocabulary)
    offsets = mx.arange(config.tables, dtype=mx.int64) * config.vocabulary
    rows = within + offsets.reshape(-1, *[1] * (sums.ndim - 1))
    return rows.astype(mx.int32) if config.rows < 2**31 else rows


@lru_cache(maxsize=16)
def _powers(config: HashConfig) -> np.ndarray:
    """(G, W) uint64, the factor of each byte of a window; 0 before a smaller group begins."""
    largest = max(config.group_sizes)
    table = [
        [0] * (largest - size) + [pow(_prime(function), i, 2**64) for i in range(size)]
        for function in range(config.functions)
        for size in config.group_sizes
    ]
    return np.array(table, dtype=np.uint64)


def _prime(function: int) -> int:
    return PRIMES[function % len(PRIMES)]
