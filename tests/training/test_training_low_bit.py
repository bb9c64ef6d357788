"""AdamW in 8 bits beside MLX's AdamW: where it goes, what it holds, and that it repeats."""

from __future__ import annotations

import mlx_companion  # noqa: F401  (loads a fast BLAS before MLX)

import mlx.core as mx  # isort: skip
import mlx.nn as nn  # isort: skip
import numpy as np  # isort: skip
import pytest  # isort: skip
from mlx.optimizers import AdamW, Optimizer  # isort: skip
from mlx.utils import tree_flatten, tree_unflatten  # isort: skip

from mlx_companion.training.config import TrainConfig  # isort: skip
from mlx_companion.training.low_bit import SMALLEST, AdamW8bit  # isort: skip
from mlx_companion.training.optimizers import optimizer_for  # isort: skip

BETAS = [0.9, 0.999]


def plain(lr: float) -> AdamW:
    return AdamW(lr, betas=BETAS, eps=1e-8, weight_decay=0.01, bias_correction=True)


def low(lr: float, seed: int = 0) -> AdamW8bit:
    return AdamW8bit(lr, BETAS, 1e-8, 0.01, seed)


def network(seed: int, hidden: int = 128) -> nn.Module:
    mx.random.seed(seed)
    return nn.Sequential(nn.Linear(32, hidden), nn.Tanh(), nn.Linear(hidden, 8))


def trained(
    optimizer: Optimizer, steps: int, state: dict | None = None, first: int = 0
) -> nn.Module:
    """A student that learns a teacher, from `first` on."""
    student, teacher = network(0), network(1, 32)
    if state is None:
        optimizer.init(student.trainable_parameters())
    else:
        student.update(tree_unflatten(list(state["parameters"].items())))
        optimizer.state = tree_unflatten(list(state["optimizer"].items()))
    slope = nn.value_and_grad(student, lambda x, y: ((student(x) - y) ** 2).mean())
    for step in range(first, steps):
        x = mx.random.normal((64, 32), key=mx.random.key(step))
        _, gradients = slope(x, teacher(x))
        optimizer.update(student, gradients)
        mx.eval(student.parameters(), optimizer.state)
    return student


def held_out(student: nn.Module) -> float:
    x = mx.random.normal((2000, 32), key=mx.random.key(10**6))
    return float(((student(x) - network(1, 32)(x)) ** 2).mean())


def named(tree: object) -> dict[str, mx.array]:
    return dict(tree_flatten(tree))


def test_it_learns_as_adamw_does() -> None:
    full, small = held_out(trained(plain(3e-3), 300)), held_out(trained(low(3e-3), 300))
    assert full < 0.2 * held_out(network(0))
    assert small == pytest.approx(full, rel=0.1)


def test_the_first_update_is_exactly_adamws() -> None:
    """Moments are rounded behind the update, never before it."""
    weights = {"w": mx.random.normal((80, 100), key=mx.random.key(0))}
    gradient = {"w": mx.random.normal((80, 100), key=mx.random.key(1))}
    got, expected = low(1e-2), plain(1e-2)
    got.init(weights)
    expected.init(weights)
    a, b = got.apply_gradients(gradient, weights), expected.apply_gradients(gradient, weights)
    np.testing.assert_allclose(np.array(a["w"]), np.array(b["w"]), rtol=1e-5, atol=1e-6)


def test_second_moments_do_not_stand_still() -> None:
    """A thousandth per step is less than a step of the code; on average it must go through."""
    weights = {"w": mx.zeros((64, 256))}
    optimizer = low(0.0)
    optimizer.init(weights)
    for size, steps in ((1.0, 60), (0.1, 400)):
        gradient = {"w": mx.full((64, 256), size)}
        for _ in range(steps):
            optimizer.apply_gradients(gradient, weights)
            mx.eval(optimizer.state)
    state = optimizer.state["w"]
    root = np.array(state["r_max"]) * 2.0 ** ((np.array(state["r"]).astype(float) - 255) / 16)
    v = 1 - 0.999**60
    v = v * 0.999**400 + 0.01 * (1 - 0.999**400)
    assert (root**2).mean() == pytest.approx(v, rel=0.03)


def test_state_takes_a_quarter_of_the_memory_and_small_arrays_are_plain() -> None:
    weights = {"large": mx.zeros((512, 512)), "odd": mx.zeros((61, 71)), "small": mx.zeros((63,))}
    optimizer = low(1e-3)
    optimizer.init(weights)
    mx.eval(optimizer.state)

    def held(name: str) -> int:
        return sum(value.nbytes for value in named(optimizer.state[name]).values())

    assert held("large") / (512 * 512 * 8) < 0.3
    assert SMALLEST <= 61 * 71
    assert set(optimizer.state["small"]) == {"m", "v"}
    got = optimizer.apply_gradients({k: mx.ones_like(v) for k, v in weights.items()}, weights)
    for name, value in got.items():
        np.testing.assert_allclose(np.array(value), -1e-3, rtol=1e-4, err_msg=name)


def test_half_precision_parameters_stay_so() -> None:
    weights = {"w": mx.ones((64, 100), dtype=mx.bfloat16)}
    optimizer = low(1e-2)
    optimizer.init(weights)
    got = optimizer.apply_gradients({"w": mx.ones((64, 100), dtype=mx.bfloat16)}, weights)
    assert got["w"].dtype == mx.bfloat16
    assert (got["w"] < 1).all().item()


def test_runs_repeat_and_go_on_from_their_state_exactly() -> None:
    straight, optimizer = low(1e-3), low(1e-3)
    expected = trained(straight, 12)
    half = trained(optimizer, 6)
    kept = {"parameters": named(half.parameters()), "optimizer": named(optimizer.state)}
    resumed = trained(low(1e-3), 12, state=kept, first=6)
    for name, value in named(expected.parameters()).items():
        assert mx.array_equal(named(resumed.parameters())[name], value).item(), name
    other = trained(low(1e-3, seed=1), 12)
    assert not mx.array_equal(other.layers[0].weight, expected.layers[0].weight).item()


def test_settings_ask_for_it() -> None:
    model = network(0)
    optimizer = optimizer_for(TrainConfig(optimizer="adamw8bit", seed=3), model)
    kinds = {type(one) for one in getattr(optimizer, "optimizers", [optimizer])}
    assert kinds == {AdamW8bit}
    optimizer.init(model.trainable_parameters())
    assert any(name.endswith("layers.0.weight.r") for name in named(optimizer.state))
