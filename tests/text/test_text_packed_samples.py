"""Packing whole samples into rows: complete, full, pure, and never over a row's room."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mlx_companion  # noqa: F401
from mlx_companion.errors import ConfigError, DataError
from mlx_companion.text.encode import Encoded
from mlx_companion.text.packed_samples import PackedSamples, best_fit, pack


def sample(length: int, first: int = 0) -> Encoded:
    return Encoded(list(range(first, first + length)), [False] + [True] * (length - 1))


def samples(count: int, seed: int = 0, longest: int = 90) -> list[Encoded]:
    lengths = np.random.default_rng(seed).integers(2, longest, count)
    return [sample(int(length), 1000 * number) for number, length in enumerate(lengths)]


def slow_best_fit(lengths: list[int], room: int, most: int) -> list[list[int]]:
    """The same rule by looking at every row."""
    rows: list[list[int]] = []
    for index, length in enumerate(lengths):
        left = [room - sum(lengths[i] for i in row) for row in rows]
        fitting = [
            (space, -number)
            for number, space in enumerate(left)
            if space >= length and space > 0 and len(rows[number]) < most
        ]
        if fitting:
            rows[-min(fitting)[1]].append(index)
        else:
            rows.append([index])
    return rows


@settings(max_examples=200, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=30),
    room=st.integers(1, 60),
    most=st.integers(1, 6),
)
def test_best_fit_as_by_looking_at_every_row(lengths: list[int], room: int, most: int) -> None:
    found = best_fit(np.array(lengths), range(len(lengths)), room, most)
    expected = slow_best_fit(lengths, room, most)
    # Rows with equal room are interchangeable.
    sums = [sorted(sum(lengths[i] for i in row) for row in rows) for rows in (found, expected)]
    assert sums[0] == sums[1]
    assert sorted(i for row in found for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= room or len(row) == 1 for row in found)
    assert all(len(row) <= most for row in found)


def test_every_sample_once_per_epoch_in_other_rows() -> None:
    rows = PackedSamples(samples(200), row_tokens=256, seed=3)
    first, second = rows.epoch(0), rows.epoch(1)
    for plan in (first, second):
        assert sorted(i for row in plan for i in row) == list(range(200))
        assert all(rows.tokens(row) <= 256 for row in plan)
    assert len({*map(frozenset, first)} & {*map(frozenset, second)}) < len(first) / 10
    assert rows.epoch(0) == first
    assert PackedSamples(samples(200), row_tokens=256, seed=3).epoch(1) == second
    assert PackedSamples(samples(200), row_tokens=256, seed=4).epoch(0) != first


def test_rows_are_nearly_full() -> None:
    rows = PackedSamples(samples(2000), row_tokens=512)
    plan = rows.epoch(0)
    assert sum(map(rows.tokens, plan)) / (512 * len(plan)) > 0.98


def test_a_row() -> None:
    encoded = [sample(3), sample(5, 10), sample(4, 20)]
    row = pack(encoded, (0, 1, 2))
    assert row.lengths == (5, 4, 3)
    assert row.indices == (1, 2, 0)
    assert np.array(row.tokens).tolist() == [[10, 11, 12, 13, 14, 20, 21, 22, 23, 0, 1, 2]]
    assert np.array(row.targets)[0, [0, 5, 9]].tolist() == [False] * 3
    assert [tokens.tolist() for tokens, _ in row.documents()][1] == [20, 21, 22, 23]


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 100])
def test_split_rows(parts: int) -> None:
    encoded = samples(20, seed=1)
    row = pack(encoded, range(20))
    split = row.split_rows(parts)
    assert len(split) == min(parts, 20)
    assert sorted(i for part in split for i in part.indices) == list(range(20))
    for part in split:
        for (tokens, targets), index in zip(part.documents(), part.indices, strict=True):
            assert tokens.tolist() == encoded[index].tokens
            assert targets.tolist() == encoded[index].targets
    if parts <= 3:
        sizes = [sum(part.lengths) for part in split]
        assert max(sizes) - min(sizes) < 90


def test_counts() -> None:
    encoded = samples(9)
    rows = PackedSamples(encoded, row_tokens=100, max_samples=2)
    assert rows.rows == 9
    assert rows.target_count == sum(s.target_count for s in encoded)
    plan = rows.epoch(0)
    assert max(map(len, plan)) == 2
    assert rows.slots(plan[0]) == rows.tokens(plan[0]) == np.array(rows.batch(plan[0]).tokens).size
    assert rows.padding_share(plan) == 0


def test_bad_arguments() -> None:
    for options in ({"row_tokens": 0}, {"max_samples": 0}):
        with pytest.raises(ConfigError, match="1 or more"):
            PackedSamples(samples(2), **options)
    with pytest.raises(DataError, match="no samples"):
        PackedSamples([])
    with pytest.raises(DataError, match="sample 1 has no token"):
        PackedSamples([sample(3), Encoded([1, 2], [False, False])])
