"""Finite differences in float64: what gradients are held to when there is a formula in numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

_STEP = 1e-6


def slope(function: Callable[[np.ndarray], float], at: np.ndarray) -> np.ndarray:
    """Central differences of a function of one float64 array."""
    at = np.array(at, dtype=np.float64)
    found = np.zeros_like(at)
    for place in np.ndindex(at.shape):
        step = np.zeros_like(at)
        step[place] = _STEP
        found[place] = (function(at + step) - function(at - step)) / (2 * _STEP)
    return found


def assert_same(
    ours: Callable[[mx.array], Any],
    formula: Callable[[np.ndarray], float],
    at: np.ndarray,
    tolerance: float = 2e-5,
) -> None:
    """Value and gradient of a float32 MLX function agree with a float64 numpy formula."""
    value, gradient = mx.value_and_grad(ours)(mx.array(at.astype(np.float32)))
    at = at.astype(np.float32).astype(np.float64)
    expected = formula(at)
    assert abs(value.item() - expected) <= tolerance * max(1.0, abs(expected))
    wanted = slope(formula, at)
    scale = max(np.abs(wanted).max(), 1e-3)
    np.testing.assert_allclose(np.array(gradient), wanted, atol=tolerance * scale, rtol=0)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + e^-x)."""
    return 1 / (1 + np.exp(-x))
