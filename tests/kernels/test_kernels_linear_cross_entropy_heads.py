"""linear_cross_entropy with every kind of output layer, its memory, and wrong use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from exact_cross_entropy import assert_close, drawn, exact_gradients, exact_losses
from hypothesis import given
from hypothesis import strategies as st
from mlx.utils import tree_flatten

import mlx_companion  # noqa: F401 - before mlx.core, for its BLAS
from mlx_companion.errors import ConfigError
from mlx_companion.kernels.linear_cross_entropy import chunk_rows, linear_cross_entropy
from mlx_companion.kernels.linear_cross_entropy.sizes import TILE_ELEMENTS, default_chunk, tile
from mlx_companion.kernels.matrix import Matrix, of_layer

IMPLS = ("reference", "plain")


def layer_and_matrix(kind: str, width: int = 64, vocabulary: int = 100) -> tuple[Any, Matrix, Any]:
    """An output layer, its matrix, and its bias or None."""
    mx.random.seed(1)
    linear = nn.Linear(width, vocabulary, bias="bias" in kind)
    if kind == "tied":
        embedding = nn.Embedding(vocabulary, width)
        return embedding, Matrix(embedding.weight), None
    if kind.endswith("bit"):
        layer: Any = nn.QuantizedLinear.from_linear(linear, group_size=32, bits=int(kind[0]))
        return layer, of_layer(layer), None
    if kind == "tied quantized":
        layer = nn.Embedding(vocabulary, width).to_quantized(group_size=32, bits=4)
        return layer, of_layer(layer), None
    return linear, Matrix(linear.weight), linear.bias if "bias" in kind else None


KINDS = ["linear", "linear with bias", "tied", "4-bit", "8-bit", "4-bit bias", "tied quantized"]


@pytest.mark.parametrize("rows", [1, 4, 5, 300])
@pytest.mark.parametrize("kind", KINDS)
def test_layers_are_their_matrices(kind: str, rows: int) -> None:
    if kind == "4-bit bias":
        mx.random.seed(1)
        layer: Any = nn.QuantizedLinear.from_linear(nn.Linear(64, 100), group_size=32, bits=4)
        matrix, bias = of_layer(layer), layer.bias
    else:
        layer, matrix, bias = layer_and_matrix(kind)
    a = drawn(rows, 64, 100)
    a["matrix"] = np.array(matrix.dense())
    a["bias"] = np.zeros(100, np.float32) if bias is None else np.array(bias)
    labels, weights = mx.array(a["labels"]), mx.array(a["weights"])

    def total(hidden: mx.array) -> tuple[mx.array, mx.array]:
        losses = linear_cross_entropy(hidden, layer, labels, weights=weights)
        return (losses * mx.array(a["slope"])).sum(), losses

    (_, losses), slope = mx.value_and_grad(total)(mx.array(a["hidden"]))
    assert_close(losses, exact_losses(a), 2e-5)
    assert_close(slope, exact_gradients(a)["hidden"], 2e-5)


class Capped(nn.Module):
    """A trained matrix whose logits are capped, as some architectures do."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = mx.random.normal((100, 64), key=mx.random.key(1))
        self.dropout = nn.Dropout(0.0)

    def __call__(self, hidden: mx.array) -> mx.array:
        return 3 * mx.tanh(self.dropout(hidden) @ self.weight.T / 3)


@pytest.mark.parametrize("chunk", [7, None])
@pytest.mark.parametrize(
    "make", [Capped, lambda: nn.Linear(64, 100), lambda: nn.Embedding(100, 64)]
)
def test_trained_modules_get_their_gradients(make: Callable[[], Any], chunk: int | None) -> None:
    head, labels = make(), mx.array(drawn(50, 64, 100)["labels"])
    hidden = mx.array(drawn(50, 64, 100)["hidden"])

    def ours(hidden: mx.array) -> mx.array:
        return linear_cross_entropy(hidden, head, labels, chunk=chunk, head_gradient=True).sum()

    def naive(hidden: mx.array) -> mx.array:
        logits = head.as_linear(hidden) if isinstance(head, nn.Embedding) else head(hidden)
        return nn.losses.cross_entropy(logits, labels).sum()

    loss, slopes = nn.value_and_grad(head, ours)(hidden)
    expected, expected_slopes = nn.value_and_grad(head, naive)(hidden)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    names = dict(tree_flatten(expected_slopes))
    assert (
        names.keys()
        == dict(tree_flatten(slopes)).keys()
        == dict(tree_flatten(head.trainable_parameters())).keys()
    )
    for name, slope in tree_flatten(slopes):
        assert_close(slope, np.array(names[name], dtype=np.float64))
        assert float(mx.abs(slope).max()) > 0
    assert_close(mx.grad(ours)(hidden), np.array(mx.grad(naive)(hidden), dtype=np.float64))


def test_the_tied_matrix_is_trained_from_both_ends() -> None:
    embedding = nn.Embedding(40, 16)
    ids, labels = mx.arange(30), mx.arange(30) + 5

    def ours(module: nn.Module) -> mx.array:
        return linear_cross_entropy(module(ids), module, labels, head_gradient=True, chunk=4).sum()

    def naive(module: nn.Module) -> mx.array:
        return nn.losses.cross_entropy(module.as_linear(module(ids)), labels).sum()

    slope = nn.value_and_grad(embedding, ours)(embedding)[1]["weight"]
    expected = nn.value_and_grad(embedding, naive)(embedding)[1]["weight"]
    assert_close(slope, np.array(expected, dtype=np.float64))


def test_dropout_inside_of_a_head_is_the_same_both_ways() -> None:
    head, labels = Capped(), mx.arange(50)
    head.dropout = nn.Dropout(0.5)
    hidden = mx.array(drawn(50, 64, 100)["hidden"])

    def total(hidden: mx.array) -> mx.array:
        mx.random.seed(3)
        return linear_cross_entropy(hidden, head, labels, chunk=7, head_gradient=True).sum()

    slope = np.array(mx.grad(total)(hidden), dtype=np.float64)
    direction = mx.random.normal(hidden.shape, key=mx.random.key(8))
    there = (total(hidden + 1e-2 * direction) - total(hidden - 1e-2 * direction)).item() / 2e-2
    assert (slope * np.array(direction)).sum() == pytest.approx(there, rel=0.02)


def test_a_frozen_head_gets_no_gradient() -> None:
    a = drawn(20, 8, 30)
    labels, hidden = mx.array(a["labels"]), mx.array(a["hidden"])
    for impl in IMPLS:
        for head in (Matrix, lambda w: lambda h: h @ w.T):
            slope = mx.grad(
                lambda w, head=head, impl=impl: linear_cross_entropy(
                    hidden, head(w), labels, impl=impl
                ).sum()
            )(mx.array(a["matrix"]))
            assert float(mx.abs(slope).max()) == 0


@pytest.mark.parametrize("temperature", [0.5, 2.0])
@pytest.mark.parametrize("kind", ["matrix", "bias", "function"])
def test_temperature(kind: str, temperature: float) -> None:
    a = drawn(20, 8, 30)
    matrix, bias = mx.array(a["matrix"]), mx.array(a["bias"])
    hidden, labels = mx.array(a["hidden"]), mx.array(a["labels"])
    head: Any = (lambda h: h @ matrix.T) if kind == "function" else Matrix(matrix)
    options = {"bias": bias} if kind == "bias" else {}

    def ours(h: mx.array) -> mx.array:
        return linear_cross_entropy(h, head, labels, temperature=temperature, **options).sum()

    def naive(h: mx.array) -> mx.array:
        logits = h @ matrix.T + (bias if kind == "bias" else 0)
        return nn.losses.cross_entropy(logits / temperature, labels).sum()

    loss, slope = mx.value_and_grad(ours)(hidden)
    expected, expected_slope = mx.value_and_grad(naive)(hidden)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert_close(slope, np.array(expected_slope, dtype=np.float64))


def extra_memory(run: Callable[[], Any]) -> float:
    """Peak above what was there before, in bytes."""
    mx.eval(run())
    mx.synchronize()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(run())
    return mx.get_peak_memory() - before


N, D, V = 1024, 16, 8192
FULL = 4 * N * V


@pytest.fixture(scope="module")
def large() -> tuple[mx.array, mx.array, mx.array]:
    arrays = (
        mx.random.normal((N, D), key=mx.random.key(0)),
        mx.random.normal((V, D), key=mx.random.key(1)),
        mx.random.randint(0, V, (N,), key=mx.random.key(2)),
    )
    mx.eval(*arrays)
    return arrays


@pytest.mark.parametrize("head_gradient", [False, True])
def test_memory_is_bounded(large: tuple[mx.array, mx.array, mx.array], head_gradient: bool) -> None:
    hidden, matrix, labels = large

    def total(hidden: mx.array, matrix: mx.array) -> mx.array:
        return linear_cross_entropy(
            hidden, Matrix(matrix), labels, head_gradient=head_gradient, impl="plain"
        ).sum()

    run = mx.value_and_grad(total, argnums=(0, 1) if head_gradient else 0)
    # All logits, their softmax and their gradient at once would be three times `FULL`.
    assert extra_memory(lambda: run(hidden, matrix)) < 0.7 * FULL


def test_memory_of_functions_is_bounded(large: tuple[mx.array, mx.array, mx.array]) -> None:
    hidden, matrix, labels = large
    run = mx.value_and_grad(
        lambda h: linear_cross_entropy(h, lambda x: x @ matrix.T, labels, chunk=16).sum()
    )
    assert extra_memory(lambda: run(hidden)) < 0.7 * FULL


def test_values_alone_make_no_gradient(large: tuple[mx.array, mx.array, mx.array]) -> None:
    hidden, matrix, labels = large
    # The sums of matrix rows, (N, D), would be wider than the tiles of logits.
    wide, states = mx.zeros((64, 20_000)), mx.zeros((N, 20_000))

    def run(gradient: bool) -> mx.array:
        return linear_cross_entropy(
            states, Matrix(wide), labels % 64, gradient=gradient, chunk=100, impl="plain"
        )

    size = states.nbytes
    mx.eval(wide, states)
    assert extra_memory(lambda: run(False)) < 0.1 * size
    assert extra_memory(lambda: run(True)) > 0.5 * size
    calls = []

    def head(h: mx.array) -> mx.array:
        calls.append(len(h))
        return h @ matrix.T

    linear_cross_entropy(hidden, head, labels, gradient=False, chunk=512)
    assert [n for n in calls if n > 1] == [512, 512]


def test_logits_no_wider_than_hidden_states_are_one_chunk() -> None:
    assert default_chunk(20_000, 512, 260, 2**22) == 20_000
    assert default_chunk(20_000, 64, 260, 2**22) == chunk_rows(260, 20_000)


def test_chunks_are_even_and_bounded() -> None:
    assert chunk_rows(49152, 86) <= 2**22 // 49152 + 1
    assert chunk_rows(49152, 10) == 10
    assert chunk_rows(10**9, 100) <= 16
    for count in (1, 85, 86, 500):
        size = chunk_rows(49152, count)
        assert size * -(-count // size) - count < -(-count // size)


@given(st.integers(1, 10_000), st.integers(1, 200_000), st.integers(1, 5000), st.booleans())
def test_tiles_keep_to_their_bounds(rows: int, vocabulary: int, chunk: int, unpacks: bool) -> None:
    height, width = tile(rows, vocabulary, chunk, unpacks)
    assert width <= 1024 or not unpacks
    assert 1 <= height <= rows
    assert 1 <= width <= vocabulary
    assert height * width <= min(TILE_ELEMENTS, chunk * vocabulary)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"hidden": mx.zeros((2, 3, 8))}, r"rows \(N, D\)"),
        ({"hidden": mx.zeros((6, 8), dtype=mx.int32)}, "float type"),
        ({"hidden": mx.zeros((6, 9))}, "do not fit a matrix"),
        ({"labels": mx.zeros((5,), dtype=mx.int32)}, "one per row"),
        ({"labels": mx.zeros((6,))}, "whole numbers"),
        ({"weights": mx.zeros((5,))}, "weights are"),
        ({"bias": mx.zeros((8,))}, "one number per row of the matrix"),
        ({"chunk": 0}, "1 row or more"),
        ({"temperature": 0.0}, "above 0"),
        ({"impl": "fast"}, "no implementation"),
        ({"head": lambda h: h, "head_gradient": True}, "cannot be seen"),
        ({"head": lambda h: h, "bias": mx.zeros((8,))}, "adds its own"),
        (
            {"head": of_layer(nn.QuantizedLinear(64, 30)), "hidden": mx.zeros((6, 64))}
            | {"head_gradient": True},
            "takes no gradient",
        ),
    ],
    ids=lambda value: None if isinstance(value, str) else "+".join(value),
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], told: str) -> None:
    arguments: dict[str, Any] = {
        "hidden": mx.zeros((6, 8)),
        "head": Matrix(mx.zeros((30, 8))),
        "labels": mx.zeros((6,), dtype=mx.int32),
    } | change
    with pytest.raises(ConfigError, match=told):
        linear_cross_entropy(**arguments)
