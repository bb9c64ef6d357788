"""Cross-entropy of a linear layer and its gradients in double precision, and how to compare."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from mlx_companion.kernels.linear_cross_entropy import linear_cross_entropy
from mlx_companion.kernels.matrix import Matrix

# Of a value's largest element: float32 rounding, and exponentials that are exact to 4e-6.
TOLERANCE = 1e-5
ALL = ("hidden", "matrix", "bias", "weights")

Arrays = dict[str, np.ndarray]


def drawn(N: int, D: int, V: int, seed: int = 0, scale: float = 3.0) -> Arrays:
    """Hidden states, a matrix, a bias, labels and weights, some of them 0."""
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0.5, 2.0, N)
    weights[1::3] = 0.0
    return {
        "hidden": rng.standard_normal((N, D)).astype(np.float32),
        "matrix": (scale * D**-0.5 * rng.standard_normal((V, D))).astype(np.float32),
        "bias": rng.standard_normal(V).astype(np.float32),
        "labels": rng.integers(0, V, N).astype(np.int32),
        "weights": weights.astype(np.float32),
        "slope": rng.standard_normal(N).astype(np.float32),
    }


def exact_losses(a: Arrays, hidden: np.ndarray | None = None) -> np.ndarray:
    """Weighted losses (N,) in float64."""
    logits, p = exact_softmax(a, hidden)
    picked = p[np.arange(len(p)), a["labels"]]
    assert logits.dtype == np.float64
    return -np.log(picked) * a["weights"].astype(np.float64)


def exact_softmax(a: Arrays, hidden: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    states = a["hidden"].astype(np.float64) if hidden is None else hidden
    logits = states @ a["matrix"].astype(np.float64).T + a["bias"].astype(np.float64)
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return logits, shifted / shifted.sum(axis=-1, keepdims=True)


def exact_gradients(a: Arrays) -> dict[str, np.ndarray]:
    """Of sum_i slope_i loss_i, in float64."""
    _, p = exact_softmax(a)
    unit = -np.log(p[np.arange(len(p)), a["labels"]])
    slope = p.copy()
    slope[np.arange(len(p)), a["labels"]] -= 1
    slope *= (a["weights"].astype(np.float64) * a["slope"])[:, None]
    return {
        "hidden": slope @ a["matrix"].astype(np.float64),
        "matrix": slope.T @ a["hidden"].astype(np.float64),
        "bias": slope.sum(axis=0),
        "weights": unit * a["slope"],
    }


def assert_close(got: mx.array, expected: np.ndarray, tolerance: float = TOLERANCE) -> None:
    found = np.array(got.astype(mx.float32), dtype=np.float64)
    assert found.shape == expected.shape
    scale = max(1.0, float(np.abs(expected).max(initial=0)))
    assert np.abs(found - expected).max(initial=0) <= tolerance * scale


def check(a: Arrays, names: tuple[str, ...] = ("hidden", "weights"), **options: Any) -> None:
    """Losses, and gradients in `names`, against double precision."""
    labels, slope = mx.array(a["labels"]), mx.array(a["slope"])

    def total(parts: dict[str, mx.array]) -> tuple[mx.array, mx.array]:
        losses = linear_cross_entropy(
            parts["hidden"],
            Matrix(parts["matrix"]),
            labels,
            weights=parts["weights"],
            bias=parts["bias"],
            **options,
        )
        return (losses * slope).sum(), losses

    parts = {name: mx.array(a[name]) for name in ALL}
    (_, losses), slopes = mx.value_and_grad(total)(parts)
    assert losses.dtype == mx.float32
    assert_close(losses, exact_losses(a))
    expected = exact_gradients(a)
    for name in names:
        assert_close(slopes[name], expected[name])
