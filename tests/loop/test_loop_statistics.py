"""The gate's statistics against enumeration, scipy and simulation."""

from __future__ import annotations

import math
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mlx_companion.loop.statistics import (
    alpha_for_use,
    clustered_lower_bound,
    detectable_effect,
    mcnemar_greater,
)

PAIRS = st.lists(st.tuples(st.booleans(), st.booleans()), max_size=14)


def p_by_enumeration(pairs):
    """The share of all ways to flip the discordant pairs that gain at least as much."""
    changes = [after - before for before, after in pairs if before != after]
    flips = list(product((-1, 1), repeat=len(changes)))
    return sum(sum(flip) >= sum(changes) for flip in flips) / len(flips)


@given(PAIRS)
def test_mcnemar_is_the_sign_test_over_all_flips(pairs):
    before, after = [p[0] for p in pairs], [p[1] for p in pairs]
    assert mcnemar_greater(before, after) == pytest.approx(p_by_enumeration(pairs), abs=1e-12)


@given(st.integers(0, 200), st.integers(0, 200), st.integers(0, 50))
def test_mcnemar_equals_the_binomial_tail(gains, losses, same):
    before = [False] * gains + [True] * losses + [True] * same
    after = [True] * gains + [False] * losses + [True] * same
    n = gains + losses
    tail = sum(math.comb(n, k) for k in range(gains, n + 1)) / 2**n
    assert mcnemar_greater(before, after) == pytest.approx(tail, rel=1e-9)


def test_mcnemar_of_published_counts_and_of_none():
    # 50 gains against 10 losses: p = 1.6e-7 two-sided in the literature's rounding.
    before, after = [False] * 50 + [True] * 10, [True] * 50 + [False] * 10
    expected = stats.binomtest(50, 60, 0.5, alternative="greater").pvalue
    assert mcnemar_greater(before, after) == pytest.approx(expected)
    assert expected < 1.6e-7
    assert mcnemar_greater(after, before) > 0.999999
    assert mcnemar_greater([], []) == 1.0
    assert mcnemar_greater([True, False], [True, False]) == 1.0
    assert mcnemar_greater(np.array(before), np.array(after)) == pytest.approx(expected)
    with pytest.raises(ValueError, match="2 and 1"):
        mcnemar_greater([True, True], [True])


def test_mcnemar_keeps_its_level_under_no_change():
    rng = np.random.default_rng(0)
    ps = []
    for _ in range(2000):
        before, after = rng.random((2, 100)) < 0.4
        ps.append(mcnemar_greater(before, after))
    assert np.mean(np.array(ps) < 0.05) < 0.05
    assert np.mean(np.array(ps) < 0.05) > 0.015, "a test that never rejects has no power"


def cluster_names(clusters, size):
    return [f"topic-{k}" for k in range(clusters) for _ in range(size)]


def test_the_bound_of_equal_clusters_is_that_of_their_means():
    rng = np.random.default_rng(1)
    means = rng.normal(0.1, 0.3, 60)
    values = np.repeat(means, 4)
    found = clustered_lower_bound(values, cluster_names(60, 4), resamples=8000)
    expected = means.mean() - 1.645 * means.std() / math.sqrt(60)
    assert found == pytest.approx(expected, abs=0.004)


def test_the_bound_covers_the_true_mean_as_often_as_it_says():
    rng = np.random.default_rng(2)
    clusters, size, covered, by_items = 40, 6, 0, 0
    for trial in range(400):
        effect = rng.normal(0.05, 0.2, clusters)
        values = np.repeat(effect, size) + rng.normal(0, 0.1, clusters * size)
        names = cluster_names(clusters, size)
        bound = clustered_lower_bound(values, names, resamples=400, seed=trial)
        covered += bound <= 0.05
        each = [str(i) for i in range(len(values))]
        by_items += clustered_lower_bound(values, each, resamples=400, seed=trial) <= 0.05
    assert 0.92 <= covered / 400 <= 0.98
    assert by_items / 400 < 0.85, "resampling items instead would claim too much"


def test_the_bound_weighs_clusters_by_their_size():
    values = [1.0] * 30 + [0.0] * 10
    names = ["big"] * 30 + ["small"] * 10
    assert clustered_lower_bound(values, names, alpha=0.5) == pytest.approx(0.75)
    # Both draws are the small one with probability 1/4.
    assert clustered_lower_bound(values, names, alpha=0.2) == 0.0
    assert clustered_lower_bound(values, names, alpha=0.3) == pytest.approx(0.75)


def test_the_bound_repeats_and_does_not_depend_on_order():
    rng = np.random.default_rng(3)
    values, names = rng.normal(size=60), cluster_names(12, 5)
    bound = clustered_lower_bound(values, names)
    assert clustered_lower_bound(values, names) == bound
    assert clustered_lower_bound(values.tolist(), tuple(names)) == bound
    assert bound < values.mean()
    inside = np.concatenate([rng.permutation(np.arange(5)) + 5 * k for k in range(12)])
    assert clustered_lower_bound(values[inside], names) == pytest.approx(bound)
    assert clustered_lower_bound(values, names, alpha=0.01) < bound


def test_the_bound_of_one_topic_is_not_certain():
    values = np.random.default_rng(5).normal(0.1, 0.5, 50)
    found = clustered_lower_bound(values, ["only"] * 50, resamples=8000)
    expected = values.mean() - 1.645 * values.std() / math.sqrt(50)
    assert found == pytest.approx(expected, abs=0.01)


def test_budgets_of_all_uses_stay_below_the_total():
    spent = [alpha_for_use(0.05, use) for use in range(1, 20_001)]
    assert sum(spent) < 0.05
    assert sum(spent) > 0.0499
    assert all(a > b > 0 for a, b in pairwise(spent))
    assert spent[0] == pytest.approx(0.05 * 6 / math.pi**2)
    assert alpha_for_use(0.01, 3) == pytest.approx(alpha_for_use(0.05, 3) / 5)
    for use in (0, -1):
        with pytest.raises(ValueError, match=f"got {use}"):
            alpha_for_use(0.05, use)


def simulated_power(items, effect, discordant, alpha, trials=4000):
    """How often the exact test finds this effect."""
    rng = np.random.default_rng(4)
    share = max(discordant, effect)
    changed = rng.binomial(items, share, trials)
    gains = rng.binomial(changed, (share + effect) / (2 * share))
    p = np.where(changed == 0, 1.0, stats.binom.sf(gains - 1, changed, 0.5))
    return float((p < alpha).mean())


@pytest.mark.parametrize("items", [40, 100, 160, 400])
@pytest.mark.parametrize("alpha", [0.05, 0.0304, 0.002])
@pytest.mark.parametrize("discordant", [0.2, 0.4])
def test_the_detectable_effect_is_found_as_often_as_said(items, alpha, discordant):
    effect = detectable_effect(items, discordant=discordant, alpha=alpha)
    assert 0 < effect <= 1
    power = simulated_power(items, effect, discordant, alpha)
    assert 0.78 <= power <= 0.82, f"power {power:.3f} at an effect of {effect:.3f}"


def test_the_detectable_effect_shrinks_with_items_and_grows_with_caution():
    effects = [detectable_effect(n) for n in (1, 5, 20, 80, 160, 400, 5000)]
    assert effects == sorted(effects, reverse=True)
    assert effects[0] == detectable_effect(0) == 1.0
    assert effects[-1] < 0.03
    cautious = [detectable_effect(160, alpha=a) for a in (0.2, 0.05, 0.01, 1e-4, 1e-8)]
    assert cautious == sorted(cautious)
    noisy = [detectable_effect(160, discordant=d) for d in (0.05, 0.2, 0.5, 0.9)]
    assert noisy == sorted(noisy)
    assert detectable_effect(160, power=0.9) > detectable_effect(160, power=0.5)


def test_the_power_that_the_design_reckons_with():
    # "100 items see +10 points two times in three, 400 items see +5" (a fifth of pairs change).
    assert simulated_power(100, 0.10, 0.2, 0.05) == pytest.approx(2 / 3, abs=0.12)
    assert detectable_effect(100, discordant=0.2, power=2 / 3) == pytest.approx(0.10, abs=0.02)
    assert detectable_effect(400, discordant=0.2, power=2 / 3) == pytest.approx(0.05, abs=0.01)
