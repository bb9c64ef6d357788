"""The two-sample tests of the drift monitor, against scipy and by their error rates."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mlx_companion.errors import SLMError
from mlx_companion.slm.drift_evidence import excess_p
from mlx_companion.slm.drift_probes import sign_flip_test
from mlx_companion.slm.drift_sequential import Watch
from mlx_companion.slm.drift_statistics import energy_distance, holm, permutation_test


def test_energy_distance_is_scipys_in_one_dimension() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=17), rng.normal(0.7, 2, size=23)
    # scipy gives the root.
    expected = stats.energy_distance(first, second) ** 2
    assert energy_distance(first[:, None], second[:, None]) == pytest.approx(expected, rel=1e-9)


def test_column_p_values_agree_with_scipys_permutation_test() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=(9, 1)), rng.normal(0.9, 1, size=(11, 1))
    ours = permutation_test(first, second, columns=(first, second), permutations=9999, seed=3)
    theirs = stats.permutation_test(
        (first[:, 0], second[:, 0]),
        lambda a, b: np.abs(a.mean() - b.mean()),
        n_resamples=9999,
        alternative="greater",
        rng=5,
    )
    assert ours.p_columns[0] == pytest.approx(theirs.pvalue, abs=0.02)
    # In one dimension the distance between means orders relabellings as the difference does.
    assert ours.p_mean == pytest.approx(ours.p_columns[0], abs=1e-12)
    assert ours.effects[0] == pytest.approx(float(second.mean() - first.mean()))


def test_exact_p_values_of_a_tiny_sample() -> None:
    first, second = np.array([[0.0], [1.0], [2.0]]), np.array([[10.0], [11.0], [12.0]])
    found = permutation_test(first, second, permutations=20_000, seed=0)
    # Two of the twenty ways to split six rows are as extreme.
    assert found.p_mean == pytest.approx(0.1, abs=0.01)


def test_false_alarm_rate_is_the_level_at_the_smallest_baselines() -> None:
    rng = np.random.default_rng(2)
    p_values = []
    for seed in range(200):
        # Heavy tails and different scales: exactness asks for exchangeability only.
        rows = rng.standard_t(2, size=(18, 6)) * np.arange(1, 7)
        found = permutation_test(rows[:12], rows[12:], permutations=99, seed=seed)
        p_values.append((found.p_mean, found.p_energy))
    for column in np.array(p_values).T:
        assert (column <= 0.05).mean() <= 0.09
        assert 0.4 <= column.mean() <= 0.6


def test_power_against_a_moved_and_a_spread_out_sample() -> None:
    rng = np.random.default_rng(3)
    moved = permutation_test(rng.normal(size=(20, 5)), rng.normal(1.0, 1, size=(20, 5)))
    wider = permutation_test(rng.normal(size=(40, 3)), rng.normal(0, 4, size=(40, 3)))
    assert moved.p_mean < 0.01
    assert moved.effect > 1
    assert wider.p_energy < 0.01


def test_equal_rows_give_no_evidence() -> None:
    rows = np.ones((5, 3))
    found = permutation_test(rows, rows, columns=(rows, rows))
    assert found.p_mean == found.p_energy == 1.0
    assert found.effect == pytest.approx(0)
    assert (found.p_columns == 1).all()


@pytest.mark.parametrize(
    ("first", "second"), [((1, 3), (5, 3)), ((5, 3), (1, 3)), ((5, 3), (5, 4)), ((5,), (5,))]
)
def test_samples_that_cannot_be_compared(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    with pytest.raises(SLMError, match=r"rows|shapes"):
        permutation_test(np.zeros(first), np.zeros(second))


@given(st.lists(st.floats(0.0001, 1), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_holm_is_scipys_step_down(values: list[float]) -> None:
    p_values = np.array(values)
    ordered = np.sort(p_values)
    expected = np.maximum.accumulate(np.minimum(ordered * np.arange(len(values), 0, -1), 1))
    assert np.sort(holm(p_values)) == pytest.approx(expected)
    assert (holm(p_values) >= p_values - 1e-12).all()


def test_sign_flips_see_a_shift_of_pairs_and_nothing_else() -> None:
    rng = np.random.default_rng(4)
    assert sign_flip_test(rng.normal(0.8, 1, size=(20, 3))) < 0.01
    quiet = [sign_flip_test(rng.normal(size=(12, 3)), 99, seed) for seed in range(100)]
    assert np.mean(np.array(quiet) <= 0.05) <= 0.12


def test_the_watch_keeps_its_bound_at_any_time() -> None:
    rng = np.random.default_rng(5)
    crossed = 0
    for _ in range(200):
        watch = Watch(rng.normal(size=20))
        crossed += any(watch.add(x) is not None and watch.wealth > 20 for x in rng.normal(size=150))
    # Ville: at most one in twenty ever crosses 20.
    assert crossed / 200 <= 0.07


def test_the_watch_grows_rich_on_a_shift_and_survives_json() -> None:
    rng = np.random.default_rng(6)
    watch = Watch(rng.normal(size=60))
    for value in rng.normal(3.0, 1, size=30):
        watch.add(float(value))
    assert watch.wealth > 1000
    again = Watch.from_state(json.loads(json.dumps(watch.state())))
    assert again.add(0.3) == watch.add(0.3)
    assert again.wealth == watch.wealth


def test_the_watch_forgets_what_is_long_ago() -> None:
    watch = Watch()
    for value in range(2000):
        watch.add(float(value % 7))
    assert len(watch.state()["seen"]) == 512


def test_excess_p_is_the_tail_of_a_simulated_beta_binomial() -> None:
    rng = np.random.default_rng(7)
    rates = rng.beta(0.6 + 1, 9.4 + 11, size=200_000)
    drawn = rng.binomial(12, rates)
    for marked in (1, 2, 4):
        expected = (drawn >= marked).mean()
        assert excess_p(1, 12, marked, 12, 0.06) == pytest.approx(expected, abs=0.005)


def test_excess_p_grows_with_the_baselines_marks_and_falls_with_its_size() -> None:
    assert excess_p(0, 12, 0, 12, 0.06) == 1
    assert excess_p(0, 12, 4, 12, 0.06) < 0.01 < excess_p(2, 12, 4, 12, 0.06)
    assert excess_p(0, 48, 3, 12, 0.06) < excess_p(0, 6, 3, 12, 0.06)
