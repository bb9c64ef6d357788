"""Pooling by patch against loops in double precision: values, gradients, ties, padding, types."""

from __future__ import annotations

import mlx_companion  # noqa: F401  (loads a fast BLAS before MLX)

import mlx.core as mx  # isort: skip
import numpy as np  # isort: skip
import pytest  # isort: skip
from hypothesis import given, settings  # isort: skip
from hypothesis import strategies as st  # isort: skip

from mlx_companion.errors import ConfigError, HardwareError  # isort: skip
from mlx_companion.kernels.patch_pool import body, patch_pool  # isort: skip

from metal_signature import buffers  # isort: skip
from patch_rows import padded, ragged, with_gaps  # isort: skip

MODES = ["max", "mean", "sum"]
ON_CPU = ["reference", "plain"]


def oracle(h: np.ndarray, ids: np.ndarray, P: int, mode: str) -> np.ndarray:
    """(B, P, D) in double precision, patch by patch."""
    out = np.zeros((h.shape[0], P, h.shape[2]))
    reduce = {"max": np.max, "mean": np.mean, "sum": np.sum}[mode]
    for row in range(h.shape[0]):
        for patch in range(P):
            own = h[row][ids[row] == patch].astype(np.float64)
            if len(own):
                out[row, patch] = reduce(own, axis=0)
    return out


def oracle_gradient(h: np.ndarray, ids: np.ndarray, slope: np.ndarray, mode: str) -> np.ndarray:
    """Gradient of (pooled * slope).sum() in h; of a maximum to the first byte that has it."""
    out = np.zeros(h.shape)
    for row in range(h.shape[0]):
        for patch in range(slope.shape[1]):
            members = np.flatnonzero(ids[row] == patch)
            if not len(members):
                continue
            if mode == "max":
                winners = members[h[row, members].argmax(axis=0)]
                out[row, winners, np.arange(h.shape[2])] = slope[row, patch]
            else:
                out[row, members] = slope[row, patch] / (len(members) if mode == "mean" else 1)
    return out


def value_and_gradient(
    h: np.ndarray, ids: np.ndarray, slope: np.ndarray, mode: str, impl: str, dtype=mx.float32
) -> tuple[np.ndarray, np.ndarray]:
    weight = mx.array(slope.astype(np.float32)).astype(dtype)

    def loss(x: mx.array) -> tuple[mx.array, mx.array]:
        pooled = patch_pool(x, mx.array(ids), slope.shape[1], mode, impl=impl)
        return (pooled * weight).astype(mx.float32).sum(), pooled

    (_, pooled), grad = mx.value_and_grad(loss)(mx.array(h.astype(np.float32)).astype(dtype))
    assert pooled.dtype == grad.dtype == dtype
    return np.array(pooled.astype(mx.float32)), np.array(grad.astype(mx.float32))


def check(
    h: np.ndarray, ids: np.ndarray, P: int, mode: str, impl: str, dtype=mx.float32, tol=1e-5
) -> None:
    slope = np.random.default_rng(5).standard_normal((h.shape[0], P, h.shape[2]))
    slope = np.array(mx.array(slope).astype(dtype).astype(mx.float32))
    h = np.array(mx.array(h.astype(np.float32)).astype(dtype).astype(mx.float32))
    pooled, grad = value_and_gradient(h, ids, slope, mode, impl, dtype)
    np.testing.assert_allclose(pooled, oracle(h, ids, P, mode), atol=tol, rtol=tol)
    np.testing.assert_allclose(grad, oracle_gradient(h, ids, slope, mode), atol=tol, rtol=tol)


@pytest.mark.parametrize("impl", ON_CPU)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("N", [1, 63, 1000])
def test_values_and_gradients(N: int, mode: str, impl: str) -> None:
    rng = np.random.default_rng(N)
    ids = ragged(rng, 2, N)
    P = int(ids.max()) + 3
    check(rng.standard_normal((2, N, 5)), padded(rng, ids, P), P, mode, impl)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("N", [1, 63, 200])
def test_the_body_gives_values_and_gradients(on_metal: None, N: int, mode: str) -> None:
    rng = np.random.default_rng(N)
    ids = ragged(rng, 2, N)
    P = int(ids.max()) + 3
    check(rng.standard_normal((2, N, 35)), padded(rng, ids, P), P, mode, "metal")


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    N=st.sampled_from([1, 2, 17, 63]),
    spare=st.integers(0, 3),
    opening=st.sampled_from([0.0, 0.1, 0.4, 1.0]),
    mode=st.sampled_from(MODES),
)
def test_any_rows_agree_with_loops(
    seed: int, N: int, spare: int, opening: float, mode: str
) -> None:
    rng = np.random.default_rng(seed)
    ids = ragged(rng, 3, N, opening)
    P = int(ids.max()) + 1 + spare
    # Few values, so that a maximum often occurs twice.
    h = rng.integers(-2, 3, (3, N, 4)).astype(np.float32)
    for impl in ON_CPU:
        check(h, with_gaps(rng, ids, P), P, mode, impl)


def test_bytes_left_out_inside_of_patches_on_the_bench(on_metal: None) -> None:
    rng = np.random.default_rng(4)
    ids = with_gaps(rng, ragged(rng, 2, 40), 30)
    for mode in MODES:
        check(rng.integers(-2, 3, (2, 40, 3)), ids, 30, mode, "metal")


TIED = np.array([[[1.0, 5.0], [3.0, 5.0], [3.0, 2.0], [-1.0, 0.0]]])
TIED_IDS = np.array([[0, 0, 0, 1]])
TIED_SLOPE = np.array([[[10.0, 20.0], [30.0, 40.0], [50.0, 60.0]]])
TIED_GRADIENT = [[[0, 20], [10, 0], [0, 0], [30, 40]]]


@pytest.mark.parametrize("impl", ON_CPU)
def test_a_tie_goes_to_the_first(impl: str) -> None:
    _, grad = value_and_gradient(TIED, TIED_IDS, TIED_SLOPE, "max", impl)
    np.testing.assert_array_equal(grad, TIED_GRADIENT)


def test_a_tie_goes_to_the_first_on_the_bench(on_metal: None) -> None:
    _, grad = value_and_gradient(TIED, TIED_IDS, TIED_SLOPE, "max", "metal")
    np.testing.assert_array_equal(grad, TIED_GRADIENT)


@pytest.mark.parametrize("impl", ON_CPU)
def test_a_patch_of_the_whole_row_and_a_row_of_nothing(impl: str) -> None:
    rng = np.random.default_rng(0)
    ids = np.stack([np.zeros(300, int), np.full(300, -1), np.full(300, 7)])
    for mode in MODES:
        check(rng.standard_normal((3, 300, 4)) - 5, ids, 2, mode, impl)


def test_more_ties_than_16_bits_count() -> None:
    h, ids = mx.ones((1, 70_000, 1)), mx.zeros((1, 70_000), dtype=mx.int32)
    slope = mx.grad(lambda x: patch_pool(x, ids, 1, impl="plain").sum())(h)
    assert slope.sum().item() == slope[0, 0, 0].item() == 1


@pytest.mark.parametrize(("dtype", "tol"), [(mx.float16, 4e-3), (mx.bfloat16, 3e-2)])
@pytest.mark.parametrize("impl", ON_CPU)
def test_half_types(impl: str, dtype: mx.Dtype, tol: float) -> None:
    rng = np.random.default_rng(1)
    ids = ragged(rng, 2, 63)
    for mode in MODES:
        check(rng.standard_normal((2, 63, 6)), ids, 40, mode, impl, dtype, tol)


@pytest.mark.parametrize(("dtype", "tol"), [(mx.float16, 4e-3), (mx.bfloat16, 3e-2)])
def test_half_types_on_the_bench(on_metal: None, dtype: mx.Dtype, tol: float) -> None:
    rng = np.random.default_rng(1)
    ids = ragged(rng, 2, 21)
    for mode in MODES:
        check(rng.standard_normal((2, 21, 6)), ids, 15, mode, "metal", dtype, tol)


def test_it_can_be_compiled() -> None:
    rng = np.random.default_rng(2)
    ids, h = mx.array(ragged(rng, 2, 63)), mx.array(rng.standard_normal((2, 63, 4)))
    h = h.astype(mx.float32)

    def loss(x: mx.array, ids: mx.array) -> mx.array:
        return (patch_pool(x, ids, 64) ** 2).sum()

    expected = mx.grad(loss)(h, ids)
    found = mx.compile(mx.grad(loss))(h, ids)
    np.testing.assert_allclose(np.array(found), np.array(expected), atol=1e-6)


@pytest.mark.parametrize("impl", ON_CPU)
def test_nothing_to_pool(impl: str) -> None:
    ids = mx.zeros((2, 0), dtype=mx.int32)
    assert patch_pool(mx.zeros((2, 0, 4)), ids, 3, impl=impl).shape == (2, 3, 4)
    full = patch_pool(mx.ones((2, 5, 4)), mx.zeros((2, 5), dtype=mx.int32), 0, impl=impl)
    assert full.shape == (2, 0, 4)


def test_bad_input_is_one_clear_error() -> None:
    h, ids = mx.zeros((2, 5, 4)), mx.zeros((2, 5), dtype=mx.int32)
    with pytest.raises(ConfigError, match="mode is 'median'"):
        patch_pool(h, ids, 3, "median")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="expected \\(B, N, D\\)"):
        patch_pool(h[0], ids, 3)
    with pytest.raises(ConfigError, match="ids have shape \\(2, 4\\)"):
        patch_pool(h, ids[:, 1:], 3)
    with pytest.raises(ConfigError, match="integers"):
        patch_pool(h, ids.astype(mx.float32), 3)
    with pytest.raises(ConfigError, match="count is -1"):
        patch_pool(h, ids, -1)


@pytest.mark.skipif(mx.metal.is_available(), reason="this machine has Metal")
def test_metal_is_refused_where_it_is_not() -> None:
    with pytest.raises(HardwareError, match="metal"):
        patch_pool(mx.zeros((1, 2, 3)), mx.zeros((1, 2), dtype=mx.int32), 1, impl="metal")


def test_mlx_gives_the_bodies_the_signatures_that_they_name() -> None:
    h, ids = mx.zeros((2, 40, 8), dtype=mx.float16), mx.zeros((2, 40), dtype=mx.int32)
    runs, first = mx.zeros((2, 9, 2), dtype=mx.int32), mx.zeros((2, 9, 8), dtype=mx.int32)
    shape = (2, 9, 8)

    def forward(*inputs: mx.array) -> list[mx.array]:
        types = [mx.float16, mx.int32]
        return body._launch(body._FORWARD, "max", "metal", [*inputs], shape, [shape] * 2, types)

    def backward(*inputs: mx.array) -> list[mx.array]:
        given = [body._BACKWARD, "max", "metal", [*inputs], h.shape]
        return body._launch(*given, [h.shape], [mx.float16])

    assert buffers(forward, h, ids, runs) == {
        "h": "float16_t",
        "h_shape": "int",
        "ids": "int32_t",
        "runs": "int32_t",
        "runs_shape": "int",
        "pooled": "float16_t",
        "first": "int32_t",
    }
    assert buffers(backward, mx.zeros(shape, dtype=mx.float16), ids, first) == {
        "slope": "float16_t",
        "slope_shape": "int",
        "ids": "int32_t",
        "ids_shape": "int",
        "first": "int32_t",
        "dh": "float16_t",
    }
