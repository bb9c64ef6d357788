"""linear_cross_entropy against double precision: losses and all gradients, in any chunks."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from exact_cross_entropy import ALL, assert_close, check, drawn, exact_gradients, exact_losses
from hypothesis import given, settings
from hypothesis import strategies as st

import mlx_companion  # noqa: F401 - before mlx.core, for its BLAS
from mlx_companion.kernels import fast_math
from mlx_companion.kernels.linear_cross_entropy import linear_cross_entropy
from mlx_companion.kernels.linear_cross_entropy.sizes import TILE_ELEMENTS
from mlx_companion.kernels.matrix import Matrix

IMPLS = ("reference", "plain")
# (N, D, V)
SIZES = [(1, 8, 260), (63, 16, 1000), (1000, 8, 63), (5, 8, 1), (7, 4, 2), (63, 1, 260)]


@pytest.mark.parametrize("gradient", [True, False])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("impl", IMPLS)
def test_a_frozen_matrix(impl: str, size: tuple[int, int, int], gradient: bool) -> None:
    check(drawn(*size), impl=impl, gradient=gradient)


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
