"""Blends of experts: against scipy's own minimum, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from mlx_companion.errors import SLMError
from mlx_companion.slm.blend import Blend, fit_blend


def test_the_fit_is_the_minimum_of_the_weighted_logistic_loss() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 400)
    signs = 2 * labels - 1
    experts = {"a": signs + rng.normal(0, 2, 400), "b": 30 * signs + rng.normal(0, 40, 400)}
    counts = rng.uniform(0.5, 2, 400)
    blend = fit_blend(experts, labels, counts)

    def loss(values: np.ndarray) -> float:
        logits = values[0] * experts["a"] + values[1] * experts["b"] + values[2]
        return float((counts * np.logaddexp(0, -signs * logits)).mean())

    best = minimize(loss, np.zeros(3), method="Nelder-Mead", options={"fatol": 1e-12}).fun
    ours = loss(np.array([blend.weights["a"], blend.weights["b"], blend.offset]))
    assert ours == pytest.approx(best, rel=1e-4)
    expected = 1 / (1 + np.exp(-sum(blend.weights[n] * experts[n] for n in "ab") - blend.offset))
    assert blend(experts) == pytest.approx(expected)


def test_settings_bring_it_back_and_log_odds_can_be_lowered() -> None:
    blend = Blend({"a": 2.0, "b": -1.0}, 0.5)
    assert Blend.from_settings(blend.to_settings()) == blend
    logits = {"a": np.array([0.0, 1.0]), "b": np.array([0.0, 1.0]), "unused": np.array([9.0, 9.0])}
    lower = blend.lowered(0.5)(logits)
    assert np.log(lower / (1 - lower)) == pytest.approx([0.0, 1.0])


def test_missing_logits_and_broken_settings_are_refused() -> None:
    with pytest.raises(SLMError, match="no logits of b"):
        Blend({"a": 1.0, "b": 1.0}, 0.0)({"a": np.zeros(1)})
    for broken in ({}, {"weights": {"a": "x"}, "offset": 0}, {"weights": [1], "offset": 0}):
        with pytest.raises(SLMError, match="weights of experts"):
            Blend.from_settings(broken)
