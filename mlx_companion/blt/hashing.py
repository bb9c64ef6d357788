"""Hash n-grams of a configuration: the table rows that stand for the last few bytes.

A byte alone says little; the n-grams that end in it say much, and a hash gives each n-gram a row
of a table without a vocabulary of n-grams. `kernels.hash_embed` defines the hash. Tables lie one
after the other, all group sizes of the first function first.

    rows = hash_ids(ids, config)                     # (B, N) -> (G, B, N)
    rows = hash_ids(last_eight, config, last=1)      # (B, 8) -> (G, B, 1), while generating
    e = hash_embed(ids, table, **hashed_by(config))  # rows, gathered and summed

Source: Pagnoni et al. 2024, arXiv 2412.09871, section 3.2.1; primes as in the released models.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from mlx_companion.blt.config import HashConfig
from mlx_companion.kernels.hash_embed import PRIMES, ngram_rows

__all__ = ["PRIMES", "hash_ids", "hashed_by"]


def hash_ids(
    ids: mx.array,
    config: HashConfig,
    documents: mx.array | None = None,
    *,
    last: int | None = None,
) -> mx.array:
    """The table rows of all n-grams that end at each position.

    Args:
        ids: (B, N) int, byte ids.
        config: group sizes, functions and V_h.
        documents: (B, N) int, equal along each text of a row: bytes of the text before count as
            the zeros before the row.
        last: how many positions at the end of each row are wanted; None for all.

    Returns:
        (G, B, N) or (G, B, last), int32 (int64 where there are more rows than that holds), G =
        functions x group sizes, function-major; rows of the one fused table.

    Raises:
        ConfigError: ids that are no integers (B, N), or fewer of them than `last`.
    """
    return ngram_rows(ids, **hashed_by(config), documents=documents, last=last)


def hashed_by(config: HashConfig) -> dict[str, Any]:
    """The arguments of the ops of `kernels.hash_embed` that a configuration decides."""
    return {
        "group_sizes": config.group_sizes,
        "primes": [PRIMES[function % len(PRIMES)] for function in range(config.functions)],
        "vocabulary": config.vocabulary,
    }
