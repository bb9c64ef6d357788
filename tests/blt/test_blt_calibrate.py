"""Calibrated thresholds against trying every one, and statistics against counting by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from blt_rules import batches, row_patching
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_companion.blt.calibrate import calibrate_threshold, patch_statistics
from mlx_companion.blt.config import PATCH_MODES, PatchConfig
from mlx_companion.blt.patchers import make_patching
from mlx_companion.errors import ConfigError, DataError

MODES = ("entropy", "monotonic", "combined")


def mean_bytes(entropies: np.ndarray, config: PatchConfig, *layout: Any) -> float:
    """Mean patch length of a batch."""
    patching = make_patching(np.zeros(entropies.shape), config, entropies, *layout)
    lengths = layout[1] if len(layout) > 1 else None
    return patch_statistics(patching, lengths).mean


def all_means(entropies: np.ndarray, config: PatchConfig, *layout: Any) -> list[float]:
    """Mean patch lengths of thresholds between all values that could matter, and beyond them."""
    values = entropies.astype(np.float64)
    if config.mode == "monotonic":
        values = np.diff(values, axis=1)
    seen = np.unique(values)
    gaps = [seen[0] - 1, *(seen[1:] + seen[:-1]) / 2, seen[-1] + 1] if len(seen) else [0.0]
    return [mean_bytes(entropies, replace(config, threshold=float(t)), *layout) for t in gaps]


@given(batches(), st.sampled_from(MODES), st.none() | st.integers(1, 8), st.floats(0, 1))
@settings(max_examples=150, deadline=None)
def test_no_threshold_is_closer(
    batch: Any, mode: str, max_length: int | None, share: float
) -> None:
    _, entropies, documents, lengths = batch
    if not lengths.sum():
        lengths[0] = entropies.shape[1]
    config = PatchConfig(mode=mode, rise_threshold=0.3, max_length=max_length)
    means = all_means(entropies, config, documents, lengths)
    low, high = sorted((means[0], means[-1]))
    target = low + share * (high - low)
    theta = calibrate_threshold(entropies, target, config, documents, lengths)
    reached = mean_bytes(entropies, replace(config, threshold=theta), documents, lengths)
    assert abs(reached - target) <= min(abs(mean - target) for mean in means) + 1e-9


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("max_length", [None, 16])
def test_large_texts_meet_the_target(mode: str, max_length: int | None) -> None:
    entropies = np.random.default_rng(0).gamma(1.2, 1.0, (1, 50_000)).astype(np.float32)
    config = PatchConfig(mode=mode, rise_threshold=0.1, max_length=max_length)
    for target in (4.0, 4.5, 8.0):
        theta = calibrate_threshold(entropies, target, config)
        assert abs(mean_bytes(entropies, replace(config, threshold=theta)) - target) < 0.002


def test_the_threshold_is_no_observed_value() -> None:
    entropies = np.float32([[0, 1, 2, 3, 1, 2, 3, 1, 2, 3]])
    config = PatchConfig()
    thetas = [calibrate_threshold(entropies, t, config) for t in (1.0, 1.4, 2.0, 5.0)]
    assert thetas == [0.0, 1.5, 2.5, 4.0]
    for theta, starts in zip(thetas, (10, 7, 4, 2), strict=True):
        assert mean_bytes(entropies, PatchConfig(threshold=theta)) == 10 / starts


def test_lists_of_texts_and_packed_rows_are_alike() -> None:
    rng = np.random.default_rng(2)
    texts = [rng.random(n, dtype=np.float32) for n in (30, 1, 2, 77, 40)]
    config = PatchConfig(mode="monotonic", max_length=9)
    expected = calibrate_threshold(texts, 3.3, config)
    assert calibrate_threshold([mx.array(text)[None] for text in texts], 3.3, config) == expected
    packed = np.concatenate(texts)[None]
    numbers = np.repeat(np.arange(5), [len(text) for text in texts])[None]
    assert calibrate_threshold(packed, 3.3, config, numbers) == expected
    rows = np.full((5, 77), np.nan, dtype=np.float32)
    for row, text in zip(rows, texts, strict=True):
        row[: len(text)] = text
    lengths = [len(text) for text in texts]
    assert calibrate_threshold(mx.array(rows), 3.3, config, None, lengths) == expected


def test_targets_out_of_reach_say_what_is_in_reach() -> None:
    entropies = np.random.default_rng(1).random((1, 400))
    with pytest.raises(ConfigError, match=r"0.5 bytes .* from 1.00 to 200.00; choose"):
        calibrate_threshold(entropies, 0.5, PatchConfig())
    with pytest.raises(ConfigError, match=r'"entropy" and max_length 8, .* from 1.00 to 7.84'):
        calibrate_threshold(entropies, 9, PatchConfig(max_length=8))
    with pytest.raises(ConfigError, match="cannot be reached"):
        calibrate_threshold(entropies, float("nan"), PatchConfig())


def test_what_cannot_be_calibrated() -> None:
    for mode in set(PATCH_MODES) - set(MODES):
        with pytest.raises(ConfigError, match="has no threshold"):
            calibrate_threshold(np.ones((1, 9)), 3, PatchConfig(mode=mode))
    for nothing in ([], np.zeros((1, 0)), [np.zeros(0)]):
        with pytest.raises(DataError, match="no entropies"):
            calibrate_threshold(nothing, 3, PatchConfig())
    with pytest.raises(DataError, match="not finite"):
        calibrate_threshold(np.array([[0.0, np.inf]]), 1, PatchConfig())


@given(batches())
@settings(max_examples=50, deadline=None)
def test_statistics_are_those_of_the_counted_patches(batch: Any) -> None:
    ids, entropies, documents, lengths = batch
    lengths[0] = max(lengths[0], 1)
    config = PatchConfig(threshold=0.8, max_length=6)
    sizes: list[int] = []
    for row, n in enumerate(lengths):
        opens, _ = row_patching(
            ids[row, :n].tolist(), entropies[row, :n].tolist(), config, documents[row, :n].tolist()
        )
        for opened in opens:
            sizes += [1] if opened else []
            sizes[-1] += not opened
    found = patch_statistics(make_patching(ids, config, entropies, documents, lengths), lengths)
    assert (found.bytes, found.patches, found.max) == (sum(sizes), len(sizes), max(sizes))
    assert found.mean == pytest.approx(np.mean(sizes))
    assert found.median == np.median(sizes)
    assert found.p95 == pytest.approx(np.percentile(sizes, 95))
    assert found.histogram == {n: sizes.count(n) for n in sorted(set(sizes))}
    assert json.loads(json.dumps(found.to_dict()))["patches"] == len(sizes)


def test_no_bytes_have_no_statistics() -> None:
    patching = make_patching(np.zeros((2, 3)), PatchConfig(mode="byte"))
    with pytest.raises(DataError, match="no bytes"):
        patch_statistics(patching, [0, 0])
