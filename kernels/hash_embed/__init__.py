"""Hash n-gram embeddings: what a byte model knows of the last few bytes, in one operation.

    e[t] = sum over functions f and group sizes g of  table[f, g][h_fg[t] mod V_h]
    h_fg[t] = sum over i < g of x[t - g + 1 + i] * p_f^i      modulo 2^64, read as a signed number

    e = hash_embed(ids, Matrix(weight), group_sizes=(3, 4), primes=PRIMES[:1], vocabulary=500002)
    rows = ngram_rows(ids, (3, 4), PRIMES[:1], 500002)        # where a table is not MLX's

The composition of MLX's operations holds G rows of the table per byte; this op holds a few hundred
kilobytes of them at a time, and a kernel none. `README.md` has the arithmetic.

Source: Pagnoni et al. 2024, arXiv 2412.09871, section 3.2.1; primes as in the released models.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from mlx_companion.errors import ConfigError
from mlx_companion.kernels.dispatch import Impl, choose
from mlx_companion.kernels.hash_embed import body, plain, reference
from mlx_companion.kernels.hash_embed.rows import PRIMES, Ngrams, ngram_rows
from mlx_companion.kernels.matrix import Matrix

__all__ = ["PRIMES", "hash_embed", "ngram_rows"]


def hash_embed(
    ids: mx.array,
    table: Matrix,
    *,
    group_sizes: Sequence[int],
    primes: Sequence[int],
    vocabulary: int,
    documents: mx.array | None = None,
    last: int | None = None,
    impl: Impl = "auto",
) -> mx.array:
    """The summed table rows of the n-grams that end at each position.

    Sums are taken in float32. The gradient of a plain table is dense, (rows, D); a quantized table
    has none.

    Args:
        ids: (B, N) int, byte ids. Negative ones are the signed numbers that they are.
        table: (rows, D), plain or quantized; rows = functions x group sizes x vocabulary, in that
            order.
        group_sizes: n of the n-grams.
        primes: one per hash function.
        vocabulary: V_h, rows of each table.
        documents: (B, N) int, equal along each text of a row: bytes of the text before count as
            the zeros before the row.
        last: how many positions at the end of each row are wanted; None for all.
        impl: which implementation, see `kernels.dispatch`. The kernels read plain tables and affine
            ones of 2, 4 or 8 bits; "auto" takes the plain form for the others.

    Returns:
        (B, N, D), or (B, last, D), of the table's type.

    Raises:
        ConfigError: arguments that do not fit each other, or a table that the kernel cannot read.
        HardwareError: a kernel was asked for that this machine cannot run.
    """
    ngrams = Ngrams.of(group_sizes, primes, vocabulary, last)
    ngrams.check(ids, documents)
    _check_table(table, ngrams)
    chosen = choose(impl, "hash_embed")
    if chosen in ("metal", "cuda"):
        reason = body.unreadable(table, ngrams)
        if reason is None:
            return body.hash_embed(ids, table, ngrams, documents, impl=chosen)
        if impl != "auto":
            raise ConfigError(f'the hash_embed kernel cannot read {reason}; use impl="plain"')
        chosen = "plain"
    form = reference if chosen == "reference" else plain
    return form.hash_embed(ids, table, ngrams, documents)


def _check_table(table: Matrix, ngrams: Ngrams) -> None:
    if table.weight.ndim != 2:
        raise ConfigError(f"the hash table has shape {table.weight.shape}; expected (rows, D)")
    rows, width = table.shape
    if rows != ngrams.rows:
        raise ConfigError(
            f"the hash table has {rows} rows; {len(ngrams.primes)} functions x "
            f"{len(ngrams.sizes)} group sizes x vocabulary {ngrams.vocabulary} need {ngrams.rows}"
        )
    if table.scales is None:
        return
    expected = (rows, width // table.group_size)
    for name in ("scales", "biases"):
        part = getattr(table, name)
        if part is not None and part.shape != expected:
            raise ConfigError(
                f"the quantized hash table has {name} {part.shape}, but its {width} columns in "
                f"{table.bits} bits and groups of {table.group_size} need {expected}; "
                "pass the group_size and bits that it was quantized with"
            )
