"""Muon against NumPy, groups of parameters, and what the learning rate of each is."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.optimizers import AdamW
from mlx.utils import tree_flatten, tree_unflatten
from packed_models import TinyByteModel, byte_model

from mlx_companion.errors import ConfigError
from mlx_companion.training import TrainConfig
from mlx_companion.training.optimizers import (
    GroupedOptimizer,
    Muon,
    RowwiseRMS,
    optimizer_for,
    parameter_groups,
    use_streams,
)
from mlx_companion.training.schedule import decay, learning_rate, learning_rate_at


class Matrices(nn.Module):
    """A wide, a tall and a square matrix, and a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = mx.random.normal((6, 20), key=mx.random.key(0))
        self.tall = mx.random.normal((20, 6), key=mx.random.key(1))
        self.square = mx.random.normal((8, 8), key=mx.random.key(2))
        self.vector = mx.random.normal((5,), key=mx.random.key(3))


def gradients(model: nn.Module, seed: int) -> Any:
    keys = iter(mx.random.split(mx.random.key(seed), 100))
    named = tree_flatten(model.trainable_parameters())
    return tree_unflatten([(n, mx.random.normal(v.shape, key=next(keys))) for n, v in named])


def named(tree: Any) -> dict[str, np.ndarray]:
    return {name: np.array(value) for name, value in tree_flatten(tree)}


def newton_schulz(matrix: np.ndarray) -> np.ndarray:
    """The published iteration on singular values, through an SVD."""
    u, s, vt = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    s = s / (np.sqrt((s**2).sum()) + 1e-7)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return (u * s) @ vt


@pytest.mark.parametrize("streams", [0, 2])
def test_muon_is_the_published_update(streams: int) -> None:
    model = Matrices()
    config = TrainConfig(optimizer="muon", momentum=0.9, weight_decay=0.1)
    optimizer = optimizer_for(config, model)
    use_streams(optimizer, [mx.new_stream(mx.cpu) for _ in range(streams)])
    optimizer.init(model.trainable_parameters())
    expected = named(model.parameters())
    momenta = {name: np.zeros_like(value) for name, value in expected.items()}
    for step, lr in enumerate([0.01, 0.02, 0.005]):
        slopes = gradients(model, step)
        optimizer.learning_rate = lr
        optimizer.update(model, slopes)
        for name in ("wide", "tall", "square"):
            slope = named(slopes)[name]
            momenta[name] = 0.9 * momenta[name] + 0.1 * slope
            update = newton_schulz(0.1 * slope + 0.9 * momenta[name])
            scale = 0.2 * max(update.shape) ** 0.5
            expected[name] = expected[name] * (1 - lr * 0.1) - lr * scale * update
            np.testing.assert_allclose(named(model)[name], expected[name], atol=2e-5)


def test_updates_of_muon_and_adamw_are_of_one_size() -> None:
    sizes = {}
    for name in ("adamw", "muon"):
        model = Matrices()
        before = named(model.parameters())
        config = TrainConfig(optimizer=name, weight_decay=0.0)
        optimizer = optimizer_for(config, model)
        optimizer.learning_rate = 1e-2
        for step in range(60):
            before = named(model.parameters())
            optimizer.update(model, gradients(model, step))
        moved = named(model.parameters())
        sizes[name] = {k: np.sqrt(((moved[k] - before[k]) ** 2).mean()) for k in before}
    for matrix in ("wide", "tall", "square"):
        assert 0.3 < sizes["muon"][matrix] / sizes["adamw"][matrix] < 3
    assert sizes["muon"]["vector"] == sizes["adamw"]["vector"]


def test_which_parameters_go_to_muon() -> None:
    model = TinyByteModel()
    model.odd_name = nn.Embedding(7, 4)
    model.encoder_hash_tok_embedding = nn.Linear(3, 4, bias=False)
    model.patch_embedding_projection = nn.Linear(3, 4)
    groups = parameter_groups(TrainConfig(optimizer="muon"), model)
    muon = {name for name, group in groups.items() if group.rule == "muon"}
    hidden = {"layers.0.weight", "layers.1.weight", "patch_embedding_projection.weight"}
    assert muon == hidden
    flat = {name for name, group in groups.items() if not group.decays}
    assert flat == {
        "layers.0.bias",
        "layers.1.bias",
        "norm.weight",
        "patch_embedding_projection.bias",
    }
    plain = parameter_groups(TrainConfig(), model)
    assert {group.rule for group in plain.values()} == {"adamw"}


class Table(nn.Module):
    """A hash table and a matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder_hash_tok_embedding = nn.Embedding(5, 3)
        self.layer = nn.Linear(3, 3, bias=False)


def test_hash_tables_have_one_moment_per_row() -> None:
    model = Table()
    config = TrainConfig(optimizer="muon", betas=(0.9, 0.8), weight_decay=0.5)
    optimizer = optimizer_for(config, model)
    assert isinstance(optimizer, GroupedOptimizer)
    expected = np.array(model.encoder_hash_tok_embedding.weight, dtype=np.float64)
    moments = np.zeros((5, 1))
    for step, lr in enumerate([0.1, 0.2, 0.05], start=1):
        slopes = gradients(model, step)
        # Row 4 never has a gradient, row 3 only in the first step.
        rows = mx.array([1.0, 1.0, 1.0, float(step == 1), 0.0])[:, None]
        name = "encoder_hash_tok_embedding"
        slopes[name]["weight"] = slopes[name]["weight"] * rows
        slope = np.array(slopes[name]["weight"], dtype=np.float64)
        optimizer.learning_rate = lr
        optimizer.update(model, slopes)
        moments = 0.8 * moments + 0.2 * (slope**2).mean(axis=1, keepdims=True)
        size = np.sqrt(np.maximum(moments / (1 - 0.8**step), 1e-20))
        expected = expected * (1 - lr * 0.5) - lr * slope / size
        found = np.array(model.encoder_hash_tok_embedding.weight)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    (rule,) = [o for o in optimizer.optimizers if isinstance(o, RowwiseRMS)]
    assert rule.state["encoder_hash_tok_embedding"]["weight"]["v"].shape == (5, 1)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_only_matrices_and_tables_decay(name: str) -> None:
    model = byte_model()
    model.norm.weight = model.norm.weight * 3
    before = named(model.parameters())
    optimizer = optimizer_for(TrainConfig(optimizer=name, weight_decay=0.5), model)
    optimizer.learning_rate = 0.1
    optimizer.update(model, tree_unflatten([(k, mx.zeros(v.shape)) for k, v in before.items()]))
    for key, value in named(model.parameters()).items():
        factor = 1 - 0.1 * 0.5 if value.ndim == 2 else 1.0
        np.testing.assert_allclose(value, factor * before[key], rtol=1e-6)


def test_one_group_is_plain_adamw() -> None:
    model = nn.Linear(3, 3, bias=False)
    assert type(optimizer_for(TrainConfig(), model)) is AdamW
    assert type(optimizer_for(TrainConfig(optimizer="muon"), model)) is Muon
    ratios = TrainConfig(lr_ratios={"*": 0.5})
    assert float(optimizer_for(ratios, model).learning_rate) == pytest.approx(3e-4)


def test_learning_rates_in_ratios() -> None:
    def moved(ratios: dict[str, float]) -> dict[str, np.ndarray]:
        model = byte_model()
        before = named(model.parameters())
        optimizer = optimizer_for(TrainConfig(weight_decay=0, lr_ratios=ratios), model)
        optimizer.learning_rate = 1e-2
        assert float(optimizer.learning_rate) == pytest.approx(1e-2)
        optimizer.update(model, gradients(model, 0))
        return {k: v - before[k] for k, v in named(model.parameters()).items()}

    plain = moved({})
    scaled = moved({"*embed*": 3.0, "*lm_head*": 0.5, "*": 2.0, "layers.*": 9.0})
    for key, value in plain.items():
        ratio = 3.0 if "embed" in key else 0.5 if "lm_head" in key else 2.0
        np.testing.assert_allclose(scaled[key], ratio * value, rtol=1e-3, atol=1e-6)


def test_a_grouped_state_goes_through_names_and_back() -> None:
    model, other = byte_model(), byte_model()
    config = TrainConfig(optimizer="muon", lr_ratios={"layers.1.*": 2.0})
    one, two = optimizer_for(config, model), optimizer_for(config, other)
    assert isinstance(one, GroupedOptimizer)
    for step in range(2):
        one.update(model, gradients(model, step))
    two.init(other.trainable_parameters())
    state = tree_flatten(one.state)
    assert {k: v.shape for k, v in state} == {k: v.shape for k, v in tree_flatten(two.state)}
    two.state = tree_unflatten(state)
    other.load_weights(tree_flatten(model.parameters()))
    for optimizer, module in ((one, model), (two, other)):
        optimizer.learning_rate = 3e-3
        optimizer.update(module, gradients(module, 5))
    ours, theirs = named(model.parameters()), named(other.parameters())
    assert all(np.array_equal(ours[key], theirs[key]) for key in ours)


def test_a_trapezoid() -> None:
    options: dict[str, Any] = {"schedule": "trapezoid", "decay_ratio": 0.2, "final_lr_ratio": 0.1}
    config = TrainConfig(lr=1e-3, warmup_steps=10, **options)
    got = [learning_rate(step, 111, config) for step in range(111)]
    np.testing.assert_allclose(got[:10], [1e-3 * (i + 1) / 11 for i in range(10)])
    np.testing.assert_allclose(got[10:91], 1e-3)
    np.testing.assert_allclose(got[90:], np.linspace(1e-3, 1e-4, 21))
    # A longer run is the same up to where the shorter one falls.
    longer = [learning_rate(step, 1011, config) for step in range(90)]
    assert longer == got[:90]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant", "trapezoid"])
def test_the_rate_by_progress_agrees_with_the_rate_by_step(schedule: Any) -> None:
    total = 100_000
    config = TrainConfig(schedule=schedule, warmup_ratio=0.1)
    for step in (0, 500, 9_990, 10_010, 50_000, 80_000, 99_999):
        expected = learning_rate(step, total, config)
        got = learning_rate_at((step + 1) / total, step, config)
        assert got == pytest.approx(expected, rel=2e-3)
    assert learning_rate_at(1.2, 7, config) == pytest.approx(config.lr * decay(1.0, config))


def test_a_warmup_in_steps_by_progress() -> None:
    config = TrainConfig(schedule="constant", warmup_steps=4, lr=1e-3)
    got = [learning_rate_at(0.01 * step, step, config) for step in range(6)]
    np.testing.assert_allclose(got, [2e-4, 4e-4, 6e-4, 8e-4, 1e-3, 1e-3])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("optimizer", "sgd"),
        ("schedule", "cos"),
        ("momentum", 1.0),
        ("decay_ratio", 0.0),
        ("max_flops", 0.0),
        ("lr_ratios", {"*": 0.0}),
    ],
)
def test_settings_out_of_range(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{name} is"):
        TrainConfig(**{name: value})
