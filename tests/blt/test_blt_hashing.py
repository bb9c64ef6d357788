"""Hash n-grams against NumPy's int64, whole numbers of Python, and transformers' answers."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_companion.blt.config import HashConfig
from mlx_companion.blt.hashing import PRIMES, hash_ids
from mlx_companion.errors import ConfigError
from mlx_companion.text.byte_text import encode_bytes


def big_integer_row(window: Sequence[int], prime: int, vocabulary: int) -> int:
    """The definition with whole numbers of any size, wrapped to signed 64 bits at the end."""
    total = sum(x * prime**i for i, x in enumerate(window)) % 2**64
    signed = total - 2**64 if total >= 2**63 else total
    return signed % vocabulary


def numpy_rows(ids: np.ndarray, group: int, prime: int, vocabulary: int) -> np.ndarray:
    """(B, N) -> (B, N): windows times powers in int64, which wraps."""
    padded = np.pad(ids.astype(np.int64), ((0, 0), (group - 1, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, group, axis=1)
    powers = np.cumprod([1] + [prime] * (group - 1), dtype=np.int64)
    return (windows * powers).sum(axis=-1, dtype=np.int64) % vocabulary


def expected_rows(ids: np.ndarray, config: HashConfig) -> np.ndarray:
    """All tables by `numpy_rows`."""
    tables = [(f, g) for f in range(config.functions) for g in config.group_sizes]
    return np.stack(
        [
            numpy_rows(ids, g, PRIMES[f % 11], config.vocabulary) + i * config.vocabulary
            for i, (f, g) in enumerate(tables)
        ]
    )


@pytest.mark.parametrize("group", range(1, 13))
@pytest.mark.parametrize("functions", [1, 3])
def test_bit_equal_to_numpy(group: int, functions: int) -> None:
    ids = np.random.default_rng(group).integers(0, 260, (3, 200))
    config = HashConfig((group,), functions, 500002)
    assert np.array_equal(np.array(hash_ids(mx.array(ids), config)), expected_rows(ids, config))


def test_released_shape_and_every_prime() -> None:
    ids = np.random.default_rng(0).integers(0, 260, (2, 300))
    for config in (HashConfig(), HashConfig((3, 4, 5, 6, 7, 8), 13, 9973), HashConfig((8, 3), 2)):
        rows = hash_ids(mx.array(ids.astype(np.int32)), config)
        assert rows.dtype == mx.int32
        assert np.array_equal(np.array(rows), expected_rows(ids, config))


@given(
    st.lists(st.integers(0, 259), min_size=1, max_size=12),
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.integers(1, 12),
    st.integers(1, 10**7),
)
@settings(max_examples=150, deadline=None)
def test_bit_equal_to_whole_numbers(
    row: list[int], groups: list[int], functions: int, vocabulary: int
) -> None:
    config = HashConfig(tuple(groups), functions, vocabulary)
    rows = np.array(hash_ids(mx.array([row]), config))[:, 0]
    table = 0
    for function in range(functions):
        for group in groups:
            padded = [0] * (group - 1) + row
            for t in range(len(row)):
                window = padded[t : t + group]
                within = big_integer_row(window, PRIMES[function % 11], vocabulary)
                assert rows[table, t] == within + table * vocabulary
            table += 1


def test_sums_that_wrap_to_negative_numbers_and_around() -> None:
    # 259 p^2 is over 2^63 for the first prime; p^7 of the second is over 2^227.
    config = HashConfig((3, 8), 2, 500002)
    ids = [255, 256, 257, 258, 259, 259, 259, 259]
    totals = [sum(x * PRIMES[0] ** i for i, x in enumerate(ids[t - 2 : t + 1])) for t in (2, 7)]
    assert all(total % 2**64 >= 2**63 for total in totals) or any(t >= 2**64 for t in totals)
    rows = np.array(hash_ids(mx.array([ids]), config))
    assert (rows >= 0).all()
    assert rows[1, 0, 7] == 500002 + big_integer_row(ids, PRIMES[0], 500002)
    assert rows[3, 0, 7] == 3 * 500002 + big_integer_row(ids, PRIMES[1], 500002)
    # The plain sum of whole numbers gives another row: the wrap-around is part of it.
    assert rows[1, 0, 7] - 500002 != sum(x * PRIMES[0] ** i for i, x in enumerate(ids)) % 500002


@given(st.integers(1, 3), st.integers(1, 40), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_documents_are_hashed_as_if_alone(rows: int, length: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 260, (rows, length))
    # Numbers may come again in a row: only neighbours are compared.
    documents = np.cumsum(rng.random((rows, length)) < 0.2, axis=1) % 3
    config = HashConfig((1, 3, 5, 8), 2, 9973)
    packed = np.array(hash_ids(mx.array(ids), config, mx.array(documents)))
    for row in range(rows):
        cuts = np.flatnonzero(np.diff(documents[row])) + 1
        pieces = [hash_ids(mx.array(p[None]), config) for p in np.split(ids[row], cuts)]
        assert np.array_equal(packed[:, row], np.array(mx.concatenate(pieces, axis=2))[:, 0])


def test_a_window_gives_the_last_positions() -> None:
    ids = np.concatenate([encode_bytes("Größe 中 x")[None]] * 2)
    config = HashConfig((3, 4, 8), 3, 9973)
    rows = np.array(hash_ids(mx.array(ids), config))
    padded = np.pad(ids, ((0, 0), (12, 0)))
    for t in range(3, ids.shape[1]):
        for width, last in ((8, 1), (12, 1), (11, 4), (12, 0)):
            window = mx.array(padded[:, t + 13 - width : t + 13])
            ours = np.array(hash_ids(window, config, last=last))
            assert np.array_equal(ours, rows[:, :, t + 1 - last : t + 1])


def test_many_rows_need_64_bits() -> None:
    config = HashConfig((3, 4), 1, 2**31)
    ids = np.array([[7, 250, 19, 33]])
    rows = hash_ids(mx.array(ids), config)
    assert rows.dtype == mx.int64
    assert np.array_equal(np.array(rows), expected_rows(ids, config))


def test_no_tables_and_no_bytes() -> None:
    assert hash_ids(mx.zeros((2, 5), dtype=mx.int32), HashConfig(functions=0)).shape == (0, 2, 5)
    assert hash_ids(mx.zeros((2, 8), dtype=mx.int32), HashConfig((), 2), last=1).shape == (0, 2, 1)
    empty = mx.zeros((2, 0), dtype=mx.int32)
    assert hash_ids(empty, HashConfig()).shape == (6, 2, 0)
    assert hash_ids(empty, HashConfig(), empty).shape == (6, 2, 0)


def test_a_short_window_is_refused() -> None:
    with pytest.raises(ConfigError, match="last is 8, but a row has 7 ids"):
        hash_ids(mx.zeros((1, 7), dtype=mx.int32), HashConfig(), last=8)


def test_transformers_hashes_alike() -> None:
    torch = pytest.importorskip("torch")
    from transformers.models.blt.modeling_blt import byte_group_hash_function

    ids = np.random.default_rng(1).integers(0, 260, (2, 100))
    for group in range(3, 9):
        for prime, function in ((PRIMES[0], 1), (PRIMES[1], 2)):
            config = HashConfig((group,), function, 500002)
            theirs = byte_group_hash_function(torch.tensor(ids), group, prime, 500002).numpy()
            ours = np.array(hash_ids(mx.array(ids), config))[-1] - (function - 1) * 500002
            assert np.array_equal(ours, theirs)
