"""The patch clock gives byte by byte what the rules give for the whole text."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from blt_rules import batches, configs
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_companion.blt.config import PATCH_MODES, PatchConfig
from mlx_companion.blt.patch_clock import PatchClock
from mlx_companion.blt.patchers import make_patching
from mlx_companion.errors import ConfigError

CAUSAL = [mode for mode in PATCH_MODES if mode != "topk"]


def closes_of(ids: np.ndarray, config: PatchConfig, entropies: np.ndarray) -> np.ndarray:
    """What the whole computation says."""
    return np.array(make_patching(ids, config, entropies).closes)


def same(one: PatchClock, other: PatchClock) -> bool:
    """Whether two clocks are in the same state."""
    return all((a == other.state()[name]).all() for name, a in one.state().items())


@given(batches(), configs(CAUSAL))
@settings(max_examples=200, deadline=None)
def test_steps_are_the_whole(batch: Any, config: PatchConfig) -> None:
    ids, entropies, _, _ = batch
    clock = PatchClock(config, len(ids))
    steps = [clock.step(ids[:, t], entropies[:, t]) for t in range(ids.shape[1])]
    assert (np.stack(steps, axis=1) == closes_of(ids, config, entropies)).all()


@given(batches(), configs(CAUSAL))
@settings(max_examples=200, deadline=None)
def test_the_clock_behind_a_prompt(batch: Any, config: PatchConfig) -> None:
    ids, entropies, _, lengths = batch
    stepped = PatchClock(config, len(ids))
    for t in range(ids.shape[1]):
        stepped.step(ids[:, t], entropies[:, t], active=t < lengths)
    assert same(PatchClock.after(config, ids, entropies, lengths), stepped)


@given(batches(), configs(CAUSAL), st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_rows_move_at_their_own_pace(batch: Any, config: PatchConfig, seed: int) -> None:
    ids, entropies, _, lengths = batch
    rng = np.random.default_rng(seed)
    clock = PatchClock(config, len(ids))
    expected = closes_of(ids, config, entropies)
    while (clock.position < lengths).any():
        at = np.minimum(clock.position, ids.shape[1] - 1)
        rows = np.arange(len(ids))
        active = (clock.position < lengths) & (rng.random(len(ids)) < 0.6)
        closes = clock.step(ids[rows, at], entropies[rows, at], active)
        assert (closes == (expected[rows, at] & active)).all()


def test_rows_are_taken_and_states_restored() -> None:
    rng = np.random.default_rng(5)
    ids, entropies = rng.integers(4, 260, (5, 30)), rng.random((5, 30))
    config = PatchConfig(mode="combined", threshold=0.4, rise_threshold=0.05, max_length=4)
    clock = PatchClock.after(config, ids[:, :20], entropies[:, :20])
    copy = PatchClock.restore(config, {name: a.tolist() for name, a in clock.state().items()})
    some = clock.take([3, 1])
    picked = clock.take(np.array([False, True, False, True, False]))
    assert some.rows == picked.rows == 2
    expected = closes_of(ids, config, entropies)
    for t in range(20, 30):
        assert (some.step(ids[[3, 1], t], entropies[[3, 1], t]) == expected[[3, 1], t]).all()
        assert (copy.step(ids[:, t], entropies[:, t]) == expected[:, t]).all()
    # Nothing of that moved the clock that they came from.
    assert (clock.position == 20).all()
    assert (picked.position == 20).all()


def test_what_a_clock_cannot_do() -> None:
    with pytest.raises(ConfigError, match="whole text"):
        PatchClock(PatchConfig(mode="topk"), 1)
    with pytest.raises(ConfigError, match="needs entropies"):
        PatchClock(PatchConfig(), 1).step([4])
    with pytest.raises(ConfigError, match="lacks inside, hit"):
        PatchClock.restore(PatchConfig(), {"position": [0], "entropy": [0.0]})
    assert PatchClock.after(PatchConfig(mode="byte"), np.zeros((2, 0))).position.tolist() == [0, 0]
