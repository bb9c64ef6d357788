"""Linear heads: against a plain Newton solver, and what calibration and small weights keep."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from mlx_companion.errors import ConfigError, SLMError
from mlx_companion.slm.linear import (
    Calibration,
    LinearHead,
    fit_isotonic,
    fit_logistic,
    fit_platt,
    out_of_fold,
    sigmoid,
    softmax,
)


def _rows(seed: int = 0, count: int = 400) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 4))
    chance = 1 / (1 + np.exp(-(x @ [2.0, -1.0, 0.5, 0.0] + 0.3)))
    return x, (rng.random(count) < chance).astype(int)


def _newton(x: np.ndarray, y: np.ndarray, weights: np.ndarray, penalty: float) -> np.ndarray:
    """Weights and bias of the same problem on standardized columns, by Newton's method."""
    scaled = np.c_[(x - x.mean(0)) / x.std(0), np.ones(len(x))]
    strength = np.diag([penalty] * x.shape[1] + [0.0])
    beta = np.zeros(scaled.shape[1])
    share = weights / weights.sum()
    for _ in range(50):
        p = 1 / (1 + np.exp(-scaled @ beta))
        gradient = scaled.T @ ((p - y) * share) + strength @ beta
        hessian = (scaled * (p * (1 - p) * share)[:, None]).T @ scaled + strength
        beta -= np.linalg.solve(hessian, gradient)
    return scaled @ beta


def test_dense_rows_agree_with_newton() -> None:
    x, y = _rows()
    weights = np.random.default_rng(1).uniform(0.2, 3, len(x))
    head = fit_logistic([x], y, penalties=0.01, row_weights=weights)
    np.testing.assert_allclose(
        head.logits([x])[:, 0], _newton(x, y, weights, 0.01), rtol=1e-3, atol=1e-3
    )


def test_blocks_side_by_side_are_one_block() -> None:
    x, y = _rows()
    one = fit_logistic([x], y, penalties=0.02).logits([x])
    two = fit_logistic([x[:, :1], x[:, 1:]], y, penalties=0.02).logits([x[:, :1], x[:, 1:]])
    np.testing.assert_allclose(one, two, atol=2e-3)


def test_sparse_rows_are_taken_as_they_are() -> None:
    x, y = _rows()
    scaled = (x - x.mean(0)) / x.std(0)
    sparse = fit_logistic([csr_matrix(scaled)], y, penalties=0.02)
    dense = fit_logistic([x], y, penalties=0.02)
    np.testing.assert_allclose(sparse.logits([csr_matrix(scaled)]), dense.logits([x]), atol=3e-3)


def test_several_classes() -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 300)
    x = np.eye(3)[y] + rng.normal(scale=0.3, size=(300, 3))
    head = fit_logistic([x], y, penalties=1e-3)
    logits = head.logits([x])
    assert logits.shape == (300, 3)
    assert (logits.argmax(1) == y).mean() > 0.95
    assert softmax(logits).sum(1) == pytest.approx(np.ones(300))
    # With two columns for two classes the shares are those of the single column.
    two = y < 2
    pair = fit_logistic([x[two]], y[two], penalties=1e-3)
    assert pair.logits([x[two]]).shape == (two.sum(), 1)


def test_row_weights_are_repetitions() -> None:
    x, y = _rows(count=80)
    counts = np.random.default_rng(2).integers(1, 4, len(x))
    again = np.repeat(np.arange(len(x)), counts)
    # As sparse, so that the columns are not scaled by other deviations.
    weighted = fit_logistic([csr_matrix(x)], y, penalties=0.01, row_weights=counts)
    repeated = fit_logistic([csr_matrix(x[again])], y[again], penalties=0.01)
    np.testing.assert_allclose(weighted.weights[0], repeated.weights[0], atol=2e-3)


def test_out_of_fold_never_sees_its_fold() -> None:
    x, y = _rows(count=60)
    folds = np.arange(60) % 3
    first = out_of_fold([x], y, folds, penalties=0.01)
    changed = y.copy()
    changed[0] = 1 - changed[0]
    second = out_of_fold([x], changed, folds, penalties=0.01)
    np.testing.assert_array_equal(first[folds == 0], second[folds == 0])
    assert not np.array_equal(first[folds == 1], second[folds == 1])


@pytest.mark.parametrize(("kind", "error"), [("float32", 1e-6), ("float16", 5e-3), ("int8", 5e-2)])
def test_small_weights_stay_close(kind: str, error: float) -> None:
    x, y = _rows()
    head = fit_logistic([x, csr_matrix(x)], y, penalties=0.01)
    arrays = head.to_arrays("h", [kind, "float32"])
    again = LinearHead.from_arrays(arrays, "h")
    assert arrays["h.0"].dtype == np.dtype(kind)
    blocks = [x, csr_matrix(x)]
    assert np.abs(again.logits(blocks) - head.logits(blocks)).max() < error * 4


def test_damaged_heads_are_named() -> None:
    x, y = _rows(count=50)
    arrays = fit_logistic([x], y).to_arrays("h")
    with pytest.raises(SLMError, match="no head 'other'"):
        LinearHead.from_arrays(arrays, "other")
    with pytest.raises(SLMError, match="do not fit"):
        LinearHead.from_arrays(arrays | {"h.bias": np.zeros(3, np.float32)}, "h")
    with pytest.raises(SLMError, match="columns"):
        LinearHead.from_arrays(arrays, "h").logits([x[:, :2]])


def test_platt_mends_logits_that_are_too_sure() -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(scale=1.5, size=4000)
    labels = (rng.random(4000) < sigmoid(true)).astype(int)
    found = fit_platt(true * 3 + 1, labels)
    assert found.slope == pytest.approx(1 / 3, abs=0.04)
    assert found.offset == pytest.approx(-1 / 3, abs=0.12)
    assert float(found(np.array([1.0]))[0]) == pytest.approx(0.5, abs=0.03)


def test_isotonic_is_ascending_and_close() -> None:
    rng = np.random.default_rng(0)
    true = rng.uniform(-4, 4, 5000)
    labels = (rng.random(5000) < sigmoid(true)).astype(int)
    found = fit_isotonic(true, labels)
    grid = np.linspace(-3.5, 3.5, 50)
    values = found(grid)
    assert (np.diff(values) >= 0).all()
    assert np.abs(values - sigmoid(grid)).mean() < 0.03


def test_a_sigmoid_of_any_logit_is_a_share() -> None:
    values = Calibration()(np.array([-1e6, 0.0, 1e6]))
    assert values.tolist() == [0.0, 0.5, 1.0]


@pytest.mark.parametrize(
    ("labels", "options"),
    [
        ([0, 0, 0], {}),
        ([0, 1], {}),
        ([], {}),
        ([0, 1, 0], {"penalties": [1.0, 1.0]}),
        ([0, 1, 0], {"penalties": -1.0}),
        ([0, 1, 0], {"row_weights": np.ones(2)}),
    ],
)
def test_rows_that_do_not_fit_are_refused(labels: list[int], options: dict) -> None:
    with pytest.raises(ConfigError):
        fit_logistic([np.ones((3, 2))], labels, **options)
