"""The exponentials of the CPU against double precision, values and gradients."""

from __future__ import annotations

import mlx_companion  # noqa: F401  (loads a fast BLAS before MLX)

import mlx.core as mx  # isort: skip
import numpy as np  # isort: skip

from mlx_companion.kernels import fast_math  # isort: skip


def test_exp_agrees_with_double_precision() -> None:
    x = np.linspace(-60, 60, 100_001).astype(np.float32)
    got = np.array(fast_math.raw_exp(mx.array(x)), dtype=np.float64)
    assert np.abs(got / np.exp(x.astype(np.float64)) - 1).max() < 4e-6
    near = np.abs(x) < 5
    assert np.abs(got / np.exp(x.astype(np.float64)) - 1)[near].max() < 6e-7


def test_exp_outside_its_range_is_constant_and_nan_stays() -> None:
    got = fast_math.raw_exp(mx.array([-1e30, -mx.inf, -60.0, 60.0, mx.inf, mx.nan]))
    assert got[0].item() == got[1].item() == got[2].item() > 0
    assert got[3].item() == got[4].item() < mx.inf
    assert np.isnan(got[5].item())


def test_sigmoid_saturates() -> None:
    got = fast_math.raw_sigmoid(mx.array([-1e4, -30.0, 0.0, 30.0, 1e4]))
    np.testing.assert_allclose(np.array(got), [0.0, 0.0, 0.5, 1.0, 1.0], atol=1e-6)
