"""Batches: nothing lost, nothing twice, little padding; beside what mlx-lm's batches do."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx_lm.tuner.datasets import CacheDataset, TextDataset
from mlx_lm.tuner.trainer import iterate_batches

from mlx_companion.errors import ConfigError, DataError
from mlx_companion.text.batches import LengthBuckets, collate
from mlx_companion.text.encode import Encoded


def row(length: int, first: int = 1) -> Encoded:
    return Encoded([first] * length, [False] + [True] * (length - 1))


def lognormal_lengths(count: int) -> list[int]:
    draws = np.random.default_rng(0).lognormal(mean=4.6, sigma=0.8, size=count)
    return np.clip(draws.astype(int), 8, 1024).tolist()


lengths = st.lists(st.integers(2, 300), min_size=1, max_size=60)


@given(
    lengths,
    st.integers(1, 600),
    st.none() | st.integers(1, 9),
    st.integers(0, 2**40),
    st.integers(0, 5),
    st.sampled_from([1, 8]),
)
def test_each_sample_once_and_the_budget_held(
    sizes: list[int], budget: int, max_rows: int | None, seed: int, epoch: int, pad_to: int
) -> None:
    rows = [row(size) for size in sizes]
    buckets = LengthBuckets(rows, batch_tokens=budget, max_rows=max_rows, seed=seed, pad_to=pad_to)
    plan = buckets.epoch(epoch)
    assert sorted(index for batch in plan for index in batch) == list(range(len(sizes)))
    slots = 0
    for batch in plan:
        assert max_rows is None or len(batch) <= max_rows
        padded = -(-max(sizes[index] for index in batch) // pad_to) * pad_to
        assert len(batch) == 1 or len(batch) * padded <= budget
        slots += len(batch) * padded
    assert buckets.padding_share(plan) == pytest.approx(1 - sum(sizes) / slots)
    assert plan == LengthBuckets(
        list(rows), batch_tokens=budget, max_rows=max_rows, seed=seed, pad_to=pad_to
    ).epoch(epoch)


def test_every_epoch_mixes_rows_and_order_anew() -> None:
    rows = [row(size) for size in lognormal_lengths(200)]
    buckets = LengthBuckets(rows, batch_tokens=2048, seed=3)
    epochs = [buckets.epoch(number) for number in range(3)]
    companies = [{frozenset(batch) for batch in plan} for plan in epochs]
    for one, other in ((0, 1), (1, 2), (0, 2)):
        shared = companies[one] & companies[other]
        assert len(shared) < len(companies[one]) / 3
    assert LengthBuckets(rows, batch_tokens=2048, seed=4).epoch(0) != epochs[0]


def test_batches_do_not_come_in_order_of_length() -> None:
    rows = [row(size) for size in lognormal_lengths(400)]
    plan = LengthBuckets(rows, batch_tokens=1024).epoch(0)
    widths = [max(len(rows[index].tokens) for index in batch) for batch in plan]
    assert abs(np.corrcoef(np.arange(len(widths)), widths)[0, 1]) < 0.4


def test_little_padding_where_mlx_lm_pads_half() -> None:
    sizes = lognormal_lengths(512)

    class Words:
        eos_token_id = 0

        def encode(self, text: str) -> list[int]:
            return [1] * text.count("w") + [0]

    texts = [{"text": "w" * (size - 1)} for size in sizes]
    theirs = CacheDataset(TextDataset(texts, Words()))
    slots = used = 0
    for tokens, spans in iterate_batches(theirs, 8, 1024, seed=0):
        slots += tokens.size
        used += int(spans[:, 1].sum())
    buckets = LengthBuckets([row(size) for size in sizes], batch_tokens=10**6, max_rows=8)
    ours = [buckets.padding_share(buckets.epoch(number)) for number in range(5)]
    assert 1 - used / slots > 0.45
    assert max(ours) < 0.12


@pytest.mark.parametrize("seed", range(3))
def test_padding_stays_low_under_a_token_budget(seed: int) -> None:
    rows = [row(size) for size in lognormal_lengths(400)]
    buckets = LengthBuckets(rows, batch_tokens=2048, seed=seed)
    assert buckets.padding_share(buckets.epoch(0)) < 0.12


def test_all_samples_seen_where_mlx_lm_drops_the_remainder() -> None:
    samples = [[number] * (5 + number) for number in range(1, 12)]
    theirs = CacheDataset(TextDataset([{"text": sample} for sample in samples], _Given()))
    seen = {
        int(first)
        for tokens, _ in islice(iterate_batches(theirs, 4, 64, loop=True, seed=0), 200)
        for first in np.array(tokens)[:, 0]
    }
    assert len(seen) == 8

    rows = [row(len(sample), sample[0]) for sample in samples]
    ours = LengthBuckets(rows, batch_tokens=10**6, max_rows=4)
    once = {int(first) for batch in ours.batches(0) for first in np.array(batch.tokens)[:, 0]}
    assert once == set(range(1, 12))


class _Given:
    """A tokenizer whose texts are token lists already."""

    eos_token_id = -1

    def encode(self, tokens: list[int]) -> list[int]:
        return list(tokens)


def test_collate_pads_behind_and_never_trains_on_padding() -> None:
    rows = [
        Encoded([5, 6, 7], [False, True, True]),
        Encoded([8, 9], [False, True]),
        Encoded([1, 0, 2, 3], [False, False, True, False]),
    ]
    batch = collate(rows, (2, 1), pad_to=3)
    assert batch.tokens.tolist() == [[1, 0, 2, 3, 0, 0], [8, 9, 0, 0, 0, 0]]
    assert batch.targets.tolist() == [
        [False, False, True, False, False, False],
        [False, True, False, False, False, False],
    ]
    assert batch.lengths.tolist() == [4, 2]
    assert batch.indices == (2, 1)
    assert [str(a.dtype) for a in (batch.tokens, batch.targets)] == [
        "mlx.core.int32",
        "mlx.core.bool",
    ]


@given(lengths, st.integers(0, 3))
def test_batches_carry_the_rows_unchanged(sizes: list[int], epoch: int) -> None:
    rows = [Encoded(list(range(1, n + 1)), [i % 3 == 1 for i in range(n)]) for n in sizes]
    for batch in LengthBuckets(rows, batch_tokens=512).batches(epoch):
        tokens, targets = np.array(batch.tokens), np.array(batch.targets)
        for at, index in enumerate(batch.indices):
            size = sizes[index]
            assert tokens[at, :size].tolist() == rows[index].tokens
            assert targets[at, :size].tolist() == rows[index].targets
            assert not targets[at, size:].any()


def test_resuming_inside_an_epoch() -> None:
    buckets = LengthBuckets([row(size) for size in lognormal_lengths(50)], batch_tokens=600)
    whole = [batch.indices for batch in buckets.batches(2)]
    assert [batch.indices for batch in buckets.batches(2, start=3)] == whole[3:]


def test_a_sample_over_the_budget_goes_alone() -> None:
    buckets = LengthBuckets([row(50), row(3), row(4)], batch_tokens=16)
    assert sorted(map(sorted, buckets.epoch(0))) == [[0], [1, 2]]


@pytest.mark.parametrize("limits", [{"batch_tokens": 0}, {"max_rows": 0}, {"pad_to": 0}])
def test_limits_are_checked(limits: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(limits))} must be 1 or more"):
        LengthBuckets([row(4)], **limits)


def test_what_cannot_be_trained_on_is_refused() -> None:
    with pytest.raises(DataError, match="no samples"):
        LengthBuckets([])
    with pytest.raises(DataError, match="sample 1 has no token to train on"):
        LengthBuckets([row(4), Encoded([1, 2], [False, False])])
