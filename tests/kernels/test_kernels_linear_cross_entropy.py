"""linear_cross_entropy against double precision: losses and all gradients, in any chunks."""

from __future__ import annotations

import mlx_companion  # noqa: F401  (loads a fast BLAS before MLX)

from collections.abc import Callable  # isort: skip
from typing import Any  # isort: skip

import mlx.core as mx  # isort: skip
import mlx.nn as nn  # isort: skip
import numpy as np  # isort: skip
import pytest  # isort: skip
from mlx.utils import tree_flatten  # isort: skip
from hypothesis import given, settings  # isort: skip
from hypothesis import strategies as st  # isort: skip

from mlx_companion.errors import ConfigError  # isort: skip
from mlx_companion.kernels import fast_math  # isort: skip
from mlx_companion.kernels.linear_cross_entropy import (  # isort: skip
    chunk_rows,
    linear_cross_entropy,
)
from mlx_companion.kernels.linear_cross_entropy.sizes import TILE_ELEMENTS, tile  # isort: skip
from mlx_companion.kernels.matrix import Matrix, of_layer  # isort: skip

IMPLS = ("reference", "plain")
# Of a value's largest element: float32 rounding, and exponentials that are exact to 4e-6.
TOLERANCE = 1e-5
# (N, D, V)
SIZES = [(1, 8, 260), (63, 16, 1000), (1000, 8, 63), (5, 8, 1), (7, 4, 2), (63, 1, 260)]

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

    parts = {name: mx.array(a[name]) for name in ("hidden", "matrix", "bias", "weights")}
    (_, losses), slopes = mx.value_and_grad(total)(parts)
    assert losses.dtype == mx.float32
    assert_close(losses, exact_losses(a))
    expected = exact_gradients(a)
    for name in names:
        assert_close(slopes[name], expected[name])


@pytest.mark.parametrize("gradient", [True, False])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("impl", IMPLS)
def test_a_frozen_matrix(impl: str, size: tuple[int, int, int], gradient: bool) -> None:
    check(drawn(*size), impl=impl, gradient=gradient)


ALL = ("hidden", "matrix", "bias", "weights")


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("impl", IMPLS)
def test_a_trained_matrix(impl: str, size: tuple[int, int, int]) -> None:
    check(drawn(*size), ALL, impl=impl, head_gradient=True)


@pytest.mark.parametrize("head_gradient", [False, True])
@pytest.mark.parametrize("chunk", [1, 7, 62, 63, 64])
def test_chunks_change_nothing(chunk: int, head_gradient: bool) -> None:
    names = ALL if head_gradient else ("hidden", "weights")
    check(drawn(63, 8, 1000), names, impl="plain", chunk=chunk, head_gradient=head_gradient)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 9),
    st.integers(1, 50),
    st.integers(1, 50),
    st.booleans(),
    st.booleans(),
    st.integers(0, 1000),
)
def test_any_sizes(
    N: int, D: int, V: int, chunk: int, head_gradient: bool, gradient: bool, seed: int
) -> None:
    names = ALL if head_gradient else ("hidden", "weights")
    options = {"chunk": chunk, "head_gradient": head_gradient, "gradient": gradient}
    check(drawn(N, D, V, seed), names, impl="plain", **options)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("size", [(300, 8, 4000), (2100, 4, 260)], ids=str)
def test_several_tiles(
    size: tuple[int, int, int], fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fast_math, "wanted", lambda: fast)
    a = drawn(*size)
    assert len(a["hidden"]) * size[2] > TILE_ELEMENTS
    check(a, impl="plain")
    check(a, ALL, impl="plain", head_gradient=True, chunk=size[0] // 2)
    check(a, ALL, impl="plain", head_gradient=True)


@pytest.mark.parametrize("impl", IMPLS)
def test_finite_differences(impl: str) -> None:
    a = drawn(20, 6, 30)
    rng = np.random.default_rng(5)
    matrix, bias = Matrix(mx.array(a["matrix"])), mx.array(a["bias"])
    labels, weights = mx.array(a["labels"]), mx.array(a["weights"])
    slope = mx.grad(
        lambda h: linear_cross_entropy(
            h, matrix, labels, weights=weights, bias=bias, impl=impl
        ).sum()
    )(mx.array(a["hidden"]))
    for _ in range(5):
        direction = rng.standard_normal(a["hidden"].shape)
        step = 1e-5 * direction
        there = (
            exact_losses(a, a["hidden"] + step).sum() - exact_losses(a, a["hidden"] - step).sum()
        )
        assert (np.array(slope) * direction).sum() == pytest.approx(there / 2e-5, rel=1e-4)


# ---- output layers ------------------------------------------------------------------------------


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


# ---- rows that do not count ---------------------------------------------------------------------


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("label", [-1, -100, 30, 10**6])
def test_a_label_outside_counts_nothing_at_weight_0_and_shows_otherwise(
    impl: str, label: int
) -> None:
    a = drawn(9, 8, 30)
    clean = a["weights"].copy()
    a["weights"] = clean * (np.arange(9) != 4)
    expected = exact_losses(a)
    labels = a["labels"].copy()
    labels[4] = label
    hidden, matrix = mx.array(a["hidden"]), Matrix(mx.array(a["matrix"]))
    bias = mx.array(a["bias"])

    def run(h: mx.array, weights: np.ndarray) -> mx.array:
        return linear_cross_entropy(
            h, matrix, mx.array(labels), weights=mx.array(weights), bias=bias, impl=impl
        )

    assert_close(run(hidden, a["weights"]), expected)
    slope = mx.grad(lambda h: run(h, a["weights"]).sum())(hidden)
    assert mx.isfinite(slope).all().item()
    assert float(mx.abs(slope[4]).max()) == 0
    loud = a["weights"] + (np.arange(9) == 4)
    wrong = np.isnan(np.array(run(hidden, loud.astype(np.float32))))
    assert wrong.tolist() == [i == 4 for i in range(9)]


def test_logits_of_minus_infinity_are_probabilities_of_zero() -> None:
    a = drawn(10, 8, 30)
    a["labels"] %= 20
    mask = mx.where(mx.arange(30) < 20, 0.0, -mx.inf)
    matrix, hidden = mx.array(a["matrix"]), mx.array(a["hidden"])
    labels = mx.array(a["labels"])
    for impl in IMPLS:
        loss, slope = mx.value_and_grad(
            lambda h, impl=impl: linear_cross_entropy(
                h, lambda x: x @ matrix.T + mask, labels, impl=impl
            ).sum()
        )(hidden)
        short, short_slope = mx.value_and_grad(
            lambda h: linear_cross_entropy(h, Matrix(matrix[:20]), labels).sum()
        )(hidden)
        assert loss.item() == pytest.approx(short.item(), rel=1e-5)
        assert_close(slope, np.array(short_slope, dtype=np.float64))


def test_a_certain_prediction_has_no_negative_loss() -> None:
    hidden = mx.array([[40.0, 0.0], [0.0, 30.0]])
    matrix = Matrix(mx.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]))
    losses = linear_cross_entropy(hidden, matrix, mx.array([0, 1]))
    assert (losses >= 0).all().item()
    assert losses.max().item() < 1e-6


@pytest.mark.parametrize("head_gradient", [False, True])
@pytest.mark.parametrize("impl", IMPLS)
def test_no_rows(impl: str, head_gradient: bool) -> None:
    matrix = mx.ones((30, 8))

    def total(hidden: mx.array, matrix: mx.array) -> mx.array:
        return linear_cross_entropy(
            hidden,
            Matrix(matrix),
            mx.zeros((0,), dtype=mx.int32),
            head_gradient=head_gradient,
            impl=impl,
        ).sum()

    loss, slopes = mx.value_and_grad(total, argnums=(0, 1))(mx.zeros((0, 8)), matrix)
    assert loss.item() == 0
    assert slopes[0].shape == (0, 8)
    assert float(mx.abs(slopes[1]).max()) == 0


# ---- types and transformations ------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=str)
@pytest.mark.parametrize("head_gradient", [False, True])
def test_half_precision_in_float32_sums(dtype: mx.Dtype, head_gradient: bool) -> None:
    a = drawn(63, 16, 1000)
    a["bias"][:] = 0
    hidden, matrix = mx.array(a["hidden"]).astype(dtype), mx.array(a["matrix"]).astype(dtype)
    a["hidden"], a["matrix"] = (np.array(v.astype(mx.float32)) for v in (hidden, matrix))

    def total(hidden: mx.array, matrix: mx.array) -> tuple[mx.array, mx.array]:
        losses = linear_cross_entropy(
            hidden,
            Matrix(matrix),
            mx.array(a["labels"]),
            weights=mx.array(a["weights"]),
            head_gradient=head_gradient,
            chunk=10,
            impl="plain",
        )
        return (losses * mx.array(a["slope"])).sum(), losses

    (_, losses), slopes = mx.value_and_grad(total, argnums=(0, 1))(hidden, matrix)
    expected = exact_gradients(a)
    assert losses.dtype == mx.float32
    assert_close(losses, exact_losses(a))
    assert slopes[0].dtype == dtype
    assert_close(slopes[0], expected["hidden"], 2**-8)
    if head_gradient:
        assert slopes[1].dtype == dtype
        assert_close(slopes[1], expected["matrix"], 2**-8)


@pytest.mark.parametrize("chunk", [40, None])
@pytest.mark.parametrize("head_gradient", [False, True])
def test_inside_of_compile(head_gradient: bool, chunk: int | None) -> None:
    a = drawn(63, 8, 300)
    arrays = [mx.array(a[name]) for name in ("hidden", "matrix", "labels", "weights")]

    def total(hidden: mx.array, matrix: mx.array, labels: mx.array, weights: mx.array) -> mx.array:
        return linear_cross_entropy(
            hidden,
            Matrix(matrix),
            labels,
            weights=weights,
            head_gradient=head_gradient,
            chunk=chunk,
        ).sum()

    plain = mx.value_and_grad(total, argnums=(0, 1))
    compiled = mx.compile(plain)
    for scale in (1.0, 2.0):
        arrays[0] = arrays[0] * scale
        (loss, slopes), (expected, expected_slopes) = compiled(*arrays), plain(*arrays)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        for slope, wanted in zip(slopes, expected_slopes, strict=True):
            assert_close(slope, np.array(wanted, dtype=np.float64))
    inner = mx.compile(total)
    assert_close(mx.grad(inner)(*arrays), np.array(plain(*arrays)[1][0], dtype=np.float64))


# ---- memory -------------------------------------------------------------------------------------


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


# ---- wrong use ----------------------------------------------------------------------------------


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


# ---- the kernels --------------------------------------------------------------------------------

KERNEL_SIZES = [(1, 8, 260), (63, 4, 33), (3, 2, 1000), (2, 2, 4097), (5, 4, 1), (4, 4, 2)]


@pytest.mark.parametrize("size", KERNEL_SIZES, ids=str)
def test_the_bodies(on_metal: str, size: tuple[int, int, int]) -> None:
    check(drawn(*size), impl="metal")


def test_the_bodies_with_a_trained_head_in_chunks(on_metal: str) -> None:
    a = drawn(11, 4, 130)
    check(a, ALL, impl="metal", head_gradient=True, chunk=4)
    check(a, ALL, impl="metal", head_gradient=True)
    check(a, impl="metal", gradient=False)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=str)
def test_the_bodies_in_half_precision(on_metal: str, dtype: mx.Dtype) -> None:
    a = drawn(5, 4, 261)
    logits = mx.array(a["hidden"] @ a["matrix"].T).astype(dtype)
    a["hidden"], a["matrix"] = np.array(logits.astype(mx.float32)), np.eye(261, dtype=np.float32)
    a["bias"] = np.zeros(261, np.float32)
    labels, weights = mx.array(a["labels"]), mx.array(a["weights"])

    def total(x: mx.array) -> tuple[mx.array, mx.array]:
        losses = linear_cross_entropy(x, lambda h: h, labels, weights=weights, impl="metal")
        return (losses * mx.array(a["slope"])).sum(), losses

    (_, losses), slope = mx.value_and_grad(total)(logits)
    assert_close(losses, exact_losses(a))
    assert slope.dtype == dtype
    assert_close(slope, exact_gradients(a)["hidden"], 2**-8)


def test_the_bodies_with_infinite_logits(on_metal: str) -> None:
    logits = np.zeros((3, 70), dtype=np.float32)
    logits[0, 5:] = -np.inf
    logits[1] = 80.0
    labels = mx.array([2, 3, 4])
    losses, slope = mx.value_and_grad(
        lambda x: linear_cross_entropy(x, lambda h: h, labels, impl="metal").sum()
    )(mx.array(logits))
    assert losses.item() == pytest.approx(np.log(5) + 2 * np.log(70), rel=1e-5)
    assert np.array(slope)[0, 5:].tolist() == [0.0] * 65
