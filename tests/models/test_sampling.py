"""Which tokens may be drawn, and how often: numpy computes what the samplers should do."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mlx_companion.errors import GenerationError
from mlx_companion.models.sampling import GREEDY, Sampling

V = 40
DRAWS = 20_000


def logprobs_of(seed, vocabulary=V, spread=2.0):
    """Random log-probabilities (V,), float32."""
    logits = spread * np.random.default_rng(seed).standard_normal(vocabulary)
    return (logits - np.log(np.exp(logits).sum())).astype(np.float32)


def drawn(sampling, logprobs, draws=DRAWS, seed=0):
    """`draws` tokens from one distribution, as one batch."""
    mx.random.seed(seed)
    rows = mx.broadcast_to(mx.array(logprobs), (draws, len(logprobs)))
    return np.array(sampling.sampler()(rows))


def expected(logprobs, *, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """The distribution (V,) written out: top-k, then nucleus, then min-p, then temperature."""
    p = np.exp(logprobs.astype(np.float64))
    order = np.argsort(-p)
    kept = order[: top_k or None]
    share = p[kept] / p[kept].sum()
    nucleus = np.searchsorted(np.cumsum(share), top_p) + 1
    kept = kept[: min(nucleus, len(kept))]
    kept = kept[p[kept] >= min_p * p[kept].max()]
    result = np.zeros_like(p)
    result[kept] = p[kept] ** (1 / temperature)
    return result / result.sum()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"top_k": 5},
        {"top_k": 5, "temperature": 0.6},
        {"top_k": 5, "temperature": 2.0},
        {"top_k": 12, "top_p": 0.7},
        {"top_p": 0.7},
        {"top_k": 12, "min_p": 0.2},
        {"top_k": V, "temperature": 0.8},
        {"top_k": V + 100},
    ],
    ids=str,
)
def test_draws_follow_the_distribution(settings):
    logprobs = logprobs_of(1)
    p = expected(logprobs, **settings)
    counts = np.bincount(drawn(Sampling(**{"temperature": 1.0} | settings), logprobs), minlength=V)
    assert set(np.flatnonzero(counts)) <= set(np.flatnonzero(p))
    # Cells with few expected draws go together, as the chi-square test asks.
    common = p * DRAWS >= 10
    seen, due = counts[common].tolist(), (p[common] * DRAWS).tolist()
    if (rest := DRAWS - sum(due)) > 1e-6:
        seen, due = [*seen, DRAWS - sum(seen)], [*due, rest]
    assert stats.chisquare(seen, due).pvalue > 0.001


def test_the_chi_square_test_would_notice():
    counts = np.bincount(drawn(Sampling(temperature=0.9, top_k=5), logprobs_of(1)), minlength=V)
    p = expected(logprobs_of(1), top_k=5)
    kept = p > 0
    assert stats.chisquare(counts[kept], p[kept] * DRAWS).pvalue < 0.001


# Few values of what mlx-lm compiles its samplers for, so that they are compiled once each.
@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from([1, 2, 9, V - 1, V, V + 5]),
    st.sampled_from([0.05, 0.5, 0.9]),
    st.sampled_from([0.3, 3.0]),
)
def test_never_outside_top_k_and_its_nucleus(seed, k, top_p, temperature):
    logprobs = logprobs_of(seed)
    order = np.argsort(-logprobs)[:k]
    share = np.cumsum(np.exp(logprobs[order].astype(np.float64)))
    # The set holds `top_p` of what the k hold; a hair more for the rounding of float32.
    size = np.searchsorted(share / share[-1], top_p * (1 + 1e-4)) + 1
    found = drawn(Sampling(temperature=temperature, top_k=k, top_p=top_p), logprobs, 300, seed)
    assert set(found.tolist()) <= set(order[:size].tolist())


def test_rows_are_drawn_from_their_own_distributions():
    rows = np.stack([logprobs_of(seed, spread=4.0) for seed in range(6)])
    mx.random.seed(0)
    tokens = np.array(Sampling(temperature=1.0, top_k=2).sampler()(mx.array(rows)))
    assert tokens.shape == (6,)
    for row, token in zip(rows, tokens, strict=True):
        assert token in np.argsort(-row)[:2]


@pytest.mark.parametrize("top_k", [0, 1, 7, V, V + 1])
def test_temperature_zero_takes_the_most_likely(top_k):
    rows = np.stack([logprobs_of(seed) for seed in range(20)])
    tokens = np.array(Sampling(temperature=0.0, top_k=top_k).sampler()(mx.array(rows)))
    np.testing.assert_array_equal(tokens, rows.argmax(axis=1))
    warm = Sampling(temperature=1.5, top_k=1).sampler()(mx.array(rows))
    np.testing.assert_array_equal(np.array(warm), rows.argmax(axis=1))


def test_the_default_is_greedy_without_processors():
    assert Sampling() == GREEDY
    assert GREEDY.temperature == 0
    assert GREEDY.processors() == []
    assert len(Sampling(repetition_penalty=1.3).processors()) == 1


def test_the_penalty_forgets_what_is_out_of_its_window():
    (penalize,) = Sampling(repetition_penalty=2.0, repetition_context=2).processors()
    logits = mx.array([[1.0, -1.0, 3.0, 4.0]])
    found = np.array(penalize(mx.array([3, 0, 1, 1, 0]), logits))
    np.testing.assert_allclose(found, [[0.5, -2.0, 3.0, 4.0]])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", "warm"),
        ("temperature", None),
        ("top_k", -1),
        ("top_k", 2.5),
        ("top_k", float("nan")),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("top_p", float("nan")),
        ("min_p", -0.01),
        ("min_p", 1.5),
        ("min_p", float("nan")),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", float("nan")),
        ("repetition_context", 0),
        ("repetition_context", 1.5),
    ],
)
def test_values_that_cannot_be_used_are_refused(name, value):
    with pytest.raises(GenerationError, match=rf"{name}={value!r}.*give"):
        Sampling(**{name: value})
