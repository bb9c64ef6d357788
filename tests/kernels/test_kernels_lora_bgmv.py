"""`lora_bgmv` against numpy in float64: values, finite differences, the kernel on the bench."""

from __future__ import annotations

from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_companion.errors import ConfigError, HardwareError
from mlx_companion.kernels.dispatch import default_accelerator
from mlx_companion.kernels.lora_bgmv import lora_bgmv
from mlx_companion.kernels.lora_bgmv.body import MOST_TOKENS
from mlx_companion.kernels.matrix import Matrix

Array = np.ndarray
IMPLS = ["reference", "plain"]
WITH_GRADIENTS = ("x", "a", "b", "scale")
# Of the largest value: rounding of the dtype, over sums of up to 1000 products.
TOLERANCE = {mx.float32: 2e-6, mx.float16: 4e-3, mx.bfloat16: 3e-2}
DTYPES = list(TOLERANCE)


class Batch(NamedTuple):
    """float64 arrays; `w` is (out, in), `index` int."""

    x: Array
    w: Array
    a: Array
    b: Array
    index: Array
    scale: Array
    bias: Array | None


def batch(
    lead: tuple[int, ...],
    dims: tuple[int, int],
    r: int,
    index: list[int],
    n: int = 3,
    seed: int = 0,
) -> Batch:
    """Values of about 1, whatever the sizes; exact in half precision where they start."""
    rng = np.random.default_rng(seed)
    k, m = dims

    def normal(*shape: int, over: float = 1.0) -> Array:
        return rng.standard_normal(shape).astype(np.float16).astype(np.float64) / 2 ** round(over)

    half = np.log2(max(k, 1)) / 2
    return Batch(
        normal(*lead, k),
        normal(m, k, over=half),
        normal(n, k, r, over=half),
        normal(n, r, m, over=np.log2(max(r, 1)) / 2),
        np.array(index, dtype=np.int32),
        2.0 ** rng.integers(-1, 2, n),
        normal(m) if seed % 2 else None,
    )


def oracle(d: Batch) -> Array:
    y = d.x @ d.w.T + (0 if d.bias is None else d.bias)
    for row, i in enumerate(d.index):
        if i >= 0:
            y[row] += d.scale[i] * (d.x[row] @ d.a[i] @ d.b[i])
    return y


def run(d: Batch, impl: Any = "auto", dtype: mx.Dtype = mx.float32, **changes: Any) -> mx.array:
    x, w, a, b, scale = (mx.array(v).astype(dtype) for v in (d.x, d.w, d.a, d.b, d.scale))
    bias = None if d.bias is None else mx.array(d.bias).astype(dtype)
    arrays = {"x": x, "weight": Matrix(w), "a": a, "b": b, "index": mx.array(d.index)}
    return lora_bgmv(**(arrays | {"scale": scale, "bias": bias, "impl": impl} | changes))


def close(found: mx.array, expected: Array, tolerance: float) -> None:
    np.testing.assert_allclose(
        np.array(found.astype(mx.float32), dtype=np.float64),
        expected,
        rtol=0,
        atol=tolerance * max(1.0, np.abs(expected).max(initial=0)),
    )


SIZES = {
    "decode": ((4,), (64, 48), 8, [0, 2, -1, 0]),
    "one value": ((1, 1), (1, 1), 1, [1]),
    "odd": ((5, 3), (63, 65), 5, [2, -1, -1, 0, 2]),
    "wide": ((2, 1), (1000, 63), 17, [1, 0]),
    "tokens": ((3, 63), (40, 24), 4, [1, 1, -1]),
    "one shared": ((3, 7), (32, 32), 8, [1, 1, 1]),
    "in order": ((3, 2), (32, 33), 9, [0, 1, 2]),
    "none at all": ((2, 2), (16, 8), 2, [-1, -1]),
    "more axes": ((2, 3, 2), (24, 8), 4, [2, 0]),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("size", SIZES)
def test_values(size: str, impl: str, dtype: mx.Dtype) -> None:
    for seed in (0, 1):
        d = batch(*SIZES[size], seed=seed)
        found = run(d, impl, dtype)
        assert (found.dtype, found.shape) == (dtype, oracle(d).shape)
        close(found, oracle(d), TOLERANCE[dtype])


# The bench runs every GPU thread by itself; these reach every branch of the bodies.
ON_METAL = {
    "decode": (SIZES["decode"], mx.float32),
    "one value": (SIZES["one value"], mx.float32),
    "odd": (SIZES["odd"], mx.float16),
    "wide": (SIZES["wide"], mx.bfloat16),
    "tokens": (((2, 6), (40, 300), 9, [1, -1]), mx.float32),
}


@pytest.mark.parametrize("case", ON_METAL)
def test_kernel_values(on_metal: Any, case: str) -> None:
    size, dtype = ON_METAL[case]
    d = batch(*size, seed=1)
    found = run(d, "metal", dtype)
    assert (found.dtype, found.shape) == (dtype, oracle(d).shape)
    close(found, oracle(d), TOLERANCE[dtype])


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_forms_agree(data: st.DataObject) -> None:
    rows, tokens, n = (data.draw(st.integers(1, most)) for most in (6, 5, 4))
    dims = data.draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    index = data.draw(st.lists(st.integers(-1, n - 1), min_size=rows, max_size=rows))
    d = batch((rows, tokens), dims, data.draw(st.integers(1, 9)), index, n, seed=rows)
    for impl in IMPLS:
        close(run(d, impl), oracle(d), TOLERANCE[mx.float32])


def numeric(d: Batch, name: str, pull: Array) -> Array:
    """Central differences of sum(pull * y); exact up to rounding, y being linear in each."""
    value, step = getattr(d, name), 1e-3
    gradient = np.zeros_like(value)
    for at in np.ndindex(value.shape):
        sides = []
        for sign in (1, -1):
            moved = value.copy()
            moved[at] += sign * step
            sides.append((pull * oracle(d._replace(**{name: moved}))).sum())
        gradient[at] = (sides[0] - sides[1]) / (2 * step)
    return gradient


def gradients(d: Batch, impl: str, pull: Array, compiled: bool = False) -> list[mx.array]:
    """In x, a, b and scale."""
    x, a, b, scale, index = (mx.array(v, mx.float32) for v in (d.x, d.a, d.b, d.scale, d.index))

    def loss(x: mx.array, a: mx.array, b: mx.array, scale: mx.array, i: mx.array) -> mx.array:
        y = run(d, impl, x=x, a=a, b=b, scale=scale, index=i.astype(mx.int32))
        return (y * mx.array(pull, mx.float32)).sum()

    function = mx.grad(loss, argnums=(0, 1, 2, 3))
    return (mx.compile(function) if compiled else function)(x, a, b, scale, index)


GRADIENT_SIZES = {
    "mixed": ((4, 3), (6, 5), 2, [0, 2, -1, 0]),
    "one shared": ((3, 2), (5, 7), 3, [1, 1, 1]),
    "distinct": ((3,), (4, 3), 2, [2, 0, 1]),
    "tokens": ((3, 7), (4, 3), 2, [2, 0, 2]),
    "tokens, some without": ((3, 7), (4, 3), 2, [-1, 0, 2]),
}


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("size", GRADIENT_SIZES)
def test_gradients(size: str, impl: str, compiled: bool) -> None:
    d = batch(*GRADIENT_SIZES[size], seed=2)
    pull = np.random.default_rng(5).standard_normal(oracle(d).shape)
    for name, found in zip(WITH_GRADIENTS, gradients(d, impl, pull, compiled), strict=True):
        close(found, numeric(d, name, pull), 1e-5)


def test_kernel_gradients(on_metal: Any) -> None:
    d = batch(*GRADIENT_SIZES["mixed"], seed=2)
    pull = np.random.default_rng(5).standard_normal(oracle(d).shape)
    for name, found in zip(WITH_GRADIENTS, gradients(d, "metal", pull), strict=True):
        close(found, numeric(d, name, pull), 1e-5)


def test_the_base_can_have_gradients_too() -> None:
    d = batch((2, 3), (4, 5), 2, [1, -1], seed=1)
    pull = np.random.default_rng(5).standard_normal((2, 3, 5))

    def loss(w: mx.array, bias: mx.array) -> mx.array:
        return (run(d, weight=Matrix(w), bias=bias) * mx.array(pull, mx.float32)).sum()

    dw, dbias = mx.grad(loss, argnums=(0, 1))(mx.array(d.w, mx.float32), mx.zeros(5))
    close(dw, np.einsum("blo,bli->oi", pull, d.x), 1e-5)
    close(dbias, pull.sum(axis=(0, 1)), 1e-5)


def quantized(bits: int, dtype: mx.Dtype) -> tuple[Batch, Matrix]:
    d = batch((3, 2), (128, 40), 4, [2, -1, 0], seed=1)
    parts = mx.quantize(mx.array(d.w, dtype), group_size=32, bits=bits)
    matrix = Matrix(*parts, group_size=32, bits=bits)
    return d._replace(w=np.array(matrix.dense().astype(mx.float32), dtype=np.float64)), matrix


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_base(bits: int, dtype: mx.Dtype) -> None:
    d, matrix = quantized(bits, dtype)
    for impl in IMPLS:
        found = run(d, impl, dtype, weight=matrix)
        assert found.dtype == dtype
        close(found, oracle(d), TOLERANCE[dtype])


def test_kernel_over_a_quantized_base(on_metal: Any) -> None:
    d, matrix = quantized(4, mx.bfloat16)
    found = run(d, "metal", mx.bfloat16, weight=matrix)
    close(found, oracle(d), TOLERANCE[mx.bfloat16])


def test_gradient_through_a_quantized_base() -> None:
    d, matrix = quantized(4, mx.float32)
    pull = np.random.default_rng(5).standard_normal((3, 2, 40))
    x = mx.array(d.x, mx.float32)
    found = mx.grad(lambda x: (run(d, weight=matrix, x=x) * mx.array(pull, mx.float32)).sum())(x)
    close(found, numeric(d, "x", pull), 1e-5)


def test_ranks_filled_up_with_zeros_change_nothing() -> None:
    d = batch((3, 2), (12, 9), 3, [0, 1, 2], seed=1)
    wide = d._replace(
        a=np.concatenate([d.a, np.zeros((3, 12, 5))], axis=2),
        b=np.concatenate([d.b, np.zeros((3, 5, 9))], axis=1),
    )
    for impl in IMPLS:
        close(run(wide, impl), oracle(d), TOLERANCE[mx.float32])


def test_half_precision_activations_stay_so_under_float32_adapters() -> None:
    d = batch((2, 2), (16, 8), 2, [1, -1])
    wide = {name: mx.array(getattr(d, name), mx.float32) for name in ("a", "b", "scale")}
    for impl in IMPLS:
        assert run(d, impl, mx.bfloat16, **wide).dtype == mx.bfloat16


@pytest.mark.parametrize("index", [[-1, 1, -1], [1, 1, 1], [-1, 1, 1]], ids=str)
def test_a_broken_adapter_reaches_no_other_row(index: list[int]) -> None:
    d = batch((3, 2), (16, 8), 2, index)
    broken = d.a.copy()
    broken[0] = broken[2] = np.inf
    compiled = mx.compile(lambda i: run(d, "plain", a=mx.array(broken, mx.float32), index=i))
    for found in (
        *(run(d._replace(a=broken), impl) for impl in IMPLS),
        compiled(mx.array(index)),
    ):
        close(found, oracle(d), TOLERANCE[mx.float32])


def test_rows_without_an_adapter_have_the_bits_of_the_base() -> None:
    d = batch((3, 2), (48, 40), 4, [-1, 0, -1], seed=1)
    x, w, bias = (mx.array(v, mx.float32) for v in (d.x, d.w, d.bias))
    base = mx.addmm(bias, x, w.T)
    assert mx.array_equal(run(d)[0::2], base[0::2])
    assert not mx.allclose(run(d)[1], base[1])


def test_an_index_known_only_when_compiled_code_runs() -> None:
    d = batch((3, 2), (16, 8), 2, [0, 0, 0])
    compiled = mx.compile(lambda i: run(d, index=i))
    for index in ([0, 1, 2], [2, 2, 2], [-1, 1, -1]):
        close(compiled(mx.array(index)), oracle(d._replace(index=np.array(index))), 2e-6)
    outside = oracle(d._replace(index=np.array([-1, 1, -1])))
    close(compiled(mx.array([7, 1, -5])), outside, 2e-6)


@pytest.mark.parametrize("lead", [(0,), (2, 0)], ids=str)
def test_nothing_to_do(lead: tuple[int, ...]) -> None:
    for impl in IMPLS:
        d = batch(lead, (8, 4), 2, [1] * lead[0])
        assert run(d, impl).shape == (*lead, 4)


def test_no_adapters_or_ranks_at_all() -> None:
    d = batch((2, 3), (8, 4), 2, [-1, -1], n=0)
    close(run(d), oracle(d), 2e-6)
    d = batch((2, 3), (8, 4), 0, [0, 1])
    close(run(d), oracle(d), 2e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"index": mx.array([0, 3])}, "names adapter 3, but there are 3"),
        ({"index": mx.array([0, -2])}, "names adapter -2"),
        ({"index": mx.array([0.0, 1.0])}, "whole numbers"),
        ({"index": mx.array([0])}, "shapes do not fit"),
        ({"index": mx.array([[0], [1]])}, "shapes do not fit"),
        ({"a": mx.zeros((3, 9, 2))}, "shapes do not fit"),
        ({"a": mx.zeros((8, 2))}, "shapes do not fit"),
        ({"b": mx.zeros((3, 3, 4))}, "shapes do not fit"),
        ({"b": mx.zeros((2, 2, 4))}, "shapes do not fit"),
        ({"scale": mx.zeros((2,))}, "shapes do not fit"),
        ({"x": mx.zeros((2, 3, 7))}, "shapes do not fit"),
        ({"x": mx.zeros((8,))}, "shapes do not fit"),
        ({"x": mx.zeros((2, 3, 8), mx.int32)}, "x must be of a float type"),
        ({"a": mx.zeros((3, 8, 2), mx.int32)}, "a must be of a float type"),
        ({"bias": mx.zeros((5,))}, "shapes do not fit"),
        ({"impl": "fast"}, "no implementation 'fast'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input(changes: dict[str, Any], message: str) -> None:
    d = batch((2, 3), (8, 4), 2, [0, 1])
    with pytest.raises(ConfigError, match=message):
        run(d, **changes)


@pytest.mark.skipif(default_accelerator() is not None, reason="there is an accelerator")
@pytest.mark.parametrize("impl", ["metal", "cuda"])
def test_kernels_that_the_machine_lacks(impl: str) -> None:
    with pytest.raises(HardwareError, match=impl):
        run(batch((2, 3), (8, 4), 2, [0, 1]), impl)


def test_kernel_takes_more_tokens_than_auto_gives_it(on_metal: Any) -> None:
    d = batch((1, MOST_TOKENS + 1), (9, 5), 3, [2])
    close(run(d, "metal"), oracle(d), TOLERANCE[mx.float32])
