"""The small network: gradients, optimizer, training, storage, faults."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from mlx.optimizers import AdamW

from mlx_companion.errors import ConfigError, SLMError, Stopped
from mlx_companion.runtime.stop import StopSwitch
from mlx_companion.slm.linear import fit_logistic
from mlx_companion.slm.network import (
    Network,
    NetworkConfig,
    _adamw,
    _kept,
    _slopes,
    fit_network,
)

PLAIN = NetworkConfig(input_dropout=0, dropout=0, smoothing=0)


def _either_or(count: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """One of two signs, but not both: no line tells them apart."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(count, 3)).astype(np.float32) * [1, 10, 0.1] + [0, 5, 0]
    return rows.astype(np.float32), ((rows[:, 0] > 0) != (rows[:, 1] > 5)).astype(np.int64)


def test_it_learns_what_a_line_cannot() -> None:
    rows, labels = _either_or()
    config = NetworkConfig(
        members=2, hidden=32, epochs=60, rate=1e-2, batch=32, input_dropout=0, dropout=0.1
    )
    network = fit_network(rows[:300], labels[:300], config=config)
    assert ((network.logits(rows[300:]) > 0) == labels[300:]).mean() > 0.9
    line = fit_logistic([rows[:300]], labels[:300])
    assert ((line.logits([rows[300:]])[:, 0] > 0) == labels[300:]).mean() < 0.7


def test_gradients_are_those_of_the_loss() -> None:
    rng = np.random.default_rng(0)
    values = [rng.normal(size=shape) for shape in ((5, 4), (4,), (4,), (1,))]
    x, targets, weights = rng.normal(size=(7, 5)), rng.random(7), rng.random(7)

    def loss(at: list[np.ndarray]) -> float:
        logits = np.maximum(x @ at[0] + at[1], 0) @ at[2] + at[3]
        losses = np.log1p(np.exp(-np.abs(logits))) + np.maximum(logits, 0) - targets * logits
        return float((weights * losses).mean())

    slopes = _slopes(values, x, targets, weights, PLAIN, rng)
    for which, value in enumerate(values):
        for index in np.ndindex(value.shape):
            moved = [[v.copy() for v in values] for _ in range(2)]
            moved[0][which][index] += 1e-5
            moved[1][which][index] -= 1e-5
            expected = (loss(moved[0]) - loss(moved[1])) / 2e-5
            assert slopes[which][index] == pytest.approx(expected, abs=1e-6)


def test_steps_are_those_of_mlx() -> None:
    rng = np.random.default_rng(0)
    start = rng.normal(size=(3, 2)).astype(np.float32)
    ours, theirs = [start.copy()], {"w": mx.array(start)}
    moments = [(np.zeros_like(start), np.zeros_like(start))]
    optimizer = AdamW(0.05, weight_decay=0.1, bias_correction=True)
    for step in range(1, 6):
        slope = rng.normal(size=(3, 2)).astype(np.float32)
        _adamw(ours, [slope], moments, 0.05, 0.1, step)
        theirs = optimizer.apply_gradients({"w": mx.array(slope)}, theirs)
    np.testing.assert_allclose(ours[0], np.array(theirs["w"]), atol=1e-5)


def test_dropout_keeps_the_mean() -> None:
    kept = _kept(np.random.default_rng(0), (400, 500), 0.3)
    assert kept.mean() == pytest.approx(1, abs=0.01)
    assert (kept == 0).mean() == pytest.approx(0.3, abs=0.01)
    assert _kept(np.random.default_rng(0), (4, 5), 0).min() == 1


def test_the_same_rows_give_the_same_network_and_weights_count() -> None:
    rows, labels = _either_or(200)
    config = NetworkConfig(members=1, hidden=8, epochs=3)
    first, again = (fit_network(rows, labels, config=config) for _ in range(2))
    np.testing.assert_array_equal(first.into, again.into)
    # Rows that weigh nothing might as well say the opposite.
    weights = np.r_[np.ones(100), np.zeros(100)]
    flipped = np.r_[labels[:100], 1 - labels[100:]]
    one, other = (
        fit_network(rows, y, row_weights=weights, config=config) for y in (labels, flipped)
    )
    np.testing.assert_array_equal(one.logits(rows), other.logits(rows))


def test_members_are_averaged() -> None:
    rows, labels = _either_or(200)
    both = fit_network(rows, labels, config=NetworkConfig(members=2, hidden=8, epochs=2))
    alone = fit_network(rows, labels, config=NetworkConfig(members=1, hidden=8, epochs=2))
    np.testing.assert_array_equal(both.into[:, :8], alone.into)
    np.testing.assert_allclose(both.out[:8], alone.out / 2)
    assert both.into.shape == (3, 16)


def test_storage_changes_little_and_faults_are_told() -> None:
    rows, labels = _either_or(100)
    network = fit_network(rows, labels, config=NetworkConfig(members=1, hidden=8, epochs=2))
    arrays = network.to_arrays("net")
    back = Network.from_arrays(arrays, "net")
    np.testing.assert_allclose(back.logits(rows), network.logits(rows), atol=0.01)
    with pytest.raises(SLMError, match="no network 'other'"):
        Network.from_arrays(arrays, "other")
    with pytest.raises(SLMError, match="do not fit"):
        Network.from_arrays(arrays | {"net.shift": np.zeros(3)}, "net")
    with pytest.raises(SLMError, match="3 columns"):
        network.logits(np.zeros((2, 4), dtype=np.float32))


@pytest.mark.parametrize("options", [{"members": 0}, {"dropout": 1.0}, {"smoothing": -0.1}])
def test_bad_settings_are_refused(options: dict) -> None:
    with pytest.raises(ConfigError, match="expected"):
        NetworkConfig(**options)


def test_it_can_be_stopped() -> None:
    rows, labels = _either_or(100)
    stop = StopSwitch()
    stop.request("test")
    with pytest.raises(Stopped):
        fit_network(rows, labels, stop=stop)
