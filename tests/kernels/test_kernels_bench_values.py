"""What the bench computes: types, mathematics, collective operations and thread positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import mlx_companion  # noqa: F401
from mlx_companion.kernels import testing

SPECIAL = [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 65504.0, 65519.0, 6e-8, 3e-8, -6e-5]
pytestmark = pytest.mark.usefixtures("kernel_bench")


def run(
    source: str,
    inputs: Sequence[mx.array],
    shapes: Sequence[tuple[int, ...]],
    dtypes: Sequence[mx.Dtype],
    *,
    threads: int,
    group: int = 64,
    schedule: str = "forward",
    **given: Any,
) -> list[np.ndarray]:
    """Run a body with inputs a, b, c... and outputs x, y, z..., and return float64 arrays."""
    made = {k: given.pop(k) for k in ("header", "ensure_row_contiguous", "atomic_outputs")
            if k in given}  # fmt: skip
    kernel = testing.metal_kernel(
        "body",
        list("abcdefgh"[: len(inputs)]),
        list("xyzuvw"[: len(shapes)]),
        "uint i = thread_position_in_grid.x;\n" + source,
        schedule=schedule,
        **made,
    )
    outputs = kernel(
        inputs=list(inputs),
        grid=given.pop("grid", (threads, 1, 1)),
        threadgroup=given.pop("threadgroup", (group, 1, 1)),
        output_shapes=list(shapes),
        output_dtypes=list(dtypes),
        **given,
    )
    wide = [x.astype(mx.float32) if x.dtype == mx.bfloat16 else x for x in outputs]
    with np.errstate(invalid="ignore"):
        return [np.array(x).astype(np.float64) for x in wide]


def operands(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    # Over all exponents, so that subnormal numbers and overflow come up.
    a, b = (rng.normal(size=n) * 2.0 ** rng.uniform(-24, 16, size=n) for _ in range(2))
    pairs = np.array([(x, y) for x in SPECIAL for y in SPECIAL])
    return np.concatenate([a, pairs[:, 0]]), np.concatenate([b, pairs[:, 1]])


ARITHMETIC = """
    T p = a[i], q = b[i];
    x[i] = p + q; y[i] = p - q; z[i] = p * q; u[i] = p / q; v[i] = -p; w[i] = metal::sqrt(p);
"""


@pytest.mark.parametrize("seed", [0, 1])
def test_half_arithmetic_is_numpy_float16s_bit_by_bit(seed: int) -> None:
    with np.errstate(all="ignore"):
        a, b = (v.astype(np.float16) for v in operands(2000, seed))
        expected = [a + b, a - b, a * b, a / b, -a, np.sqrt(a)]
    n = a.size
    got = run(
        ARITHMETIC, [mx.array(a), mx.array(b)], [(n,)] * 6, [mx.float16] * 6,
        threads=n, template=[("T", mx.float16)],
    )  # fmt: skip
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs.astype(np.float64))
        assert np.array_equal(
            np.signbit(ours)[~np.isnan(ours)], np.signbit(theirs)[~np.isnan(ours)]
        )


@pytest.mark.parametrize("seed", [0, 1])
def test_bfloat_arithmetic_is_mlx_bfloat16s_bit_by_bit(seed: int) -> None:
    a, b = (mx.array(v.astype(np.float32)).astype(mx.bfloat16) for v in operands(2000, seed))
    n = a.size
    expected = [a + b, a - b, a * b, a / b, -a]
    got = run(
        ARITHMETIC, [a, b], [(n,)] * 6, [mx.bfloat16] * 6,
        threads=n, template=[("T", mx.bfloat16)],
    )  # fmt: skip
    for ours, theirs in zip(got[:5], expected, strict=True):
        np.testing.assert_array_equal(ours, np.array(theirs.astype(mx.float32)).astype(np.float64))


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_all_small_floats_survive_the_way_through_float(dtype: mx.Dtype) -> None:
    every = mx.arange(65536).astype(mx.uint16).view(dtype)
    (got,) = run(
        "float f = a[i]; x[i] = f;", [every], [(65536,)], [dtype], threads=65536, group=256
    )
    with np.errstate(invalid="ignore"):  # signalling NaNs are among them
        expected = np.array(every.astype(mx.float32)).astype(np.float64)
    np.testing.assert_array_equal(got, expected)


def test_promotion_follows_metal() -> None:
    """half + float is float, half + int is half, 0.1 is a float, a condition mixes types."""
    a = mx.array([2048.0, 1.0], dtype=mx.float16)
    x, y, z, u = run(
        "x[i] = a[i] + 1.0f; y[i] = a[i] + 1; z[i] = a[i] * 0.1; u[i] = i == 0 ? a[i] : -1e30;",
        [a], [(2,)] * 4, [mx.float32] * 4, threads=2,
    )  # fmt: skip
    assert x.tolist() == [2049.0, 2.0]
    assert y.tolist() == [2048.0, 2.0]
    assert z.tolist() == [float(np.float32(2048) * np.float32(0.1)), float(np.float32(0.1))]
    assert u.tolist() == [2048.0, float(np.float32(-1e30))]


FUNCTIONS = {
    name: getattr(np, {"fabs": "abs", "atan": "arctan", "asinh": "arcsinh"}.get(name, name))
    for name in [
        "exp",
        "exp2",
        "log",
        "log2",
        "log10",
        "sqrt",
        "sin",
        "cos",
        "tan",
        "sinh",
        "cosh",
        "tanh",
        "atan",
        "asinh",
        "floor",
        "ceil",
        "trunc",
        "rint",
        "fabs",
        "sign",
    ]
}


@pytest.mark.parametrize("space", ["metal", "metal::fast", "metal::precise", ""])
def test_mathematics(space: str) -> None:
    a = np.random.default_rng(3).uniform(-4.0, 4.0, size=63).astype(np.float32)
    with np.errstate(invalid="ignore"):
        expected = np.stack([f(a.astype(np.float64)) for f in FUNCTIONS.values()])
    prefix = f"{space}::" if space else ""
    body = "\n".join(f"x[{k} * 63 + i] = {prefix}{f}(a[i]);" for k, f in enumerate(FUNCTIONS))
    (got,) = run(body, [mx.array(a)], [expected.shape], [mx.float32], threads=63)
    np.testing.assert_allclose(got, expected, rtol=3e-7, atol=1e-7)


def test_integers_and_bits() -> None:
    a = np.array([0, 1, 7, 2**31, 2**32 - 1], dtype=np.uint32)
    x, y, z, u = run(
        "x[i] = popcount(a[i]); y[i] = clz(a[i]); z[i] = mulhi(a[i], a[i]);"
        "u[i] = as_type<float>(a[i] & 0x3f800000u);",
        [mx.array(a)], [(5,)] * 4, [mx.uint32] * 3 + [mx.float32], threads=5,
    )  # fmt: skip
    assert x.tolist() == [bin(int(v)).count("1") for v in a]
    assert y.tolist() == [32 - int(v).bit_length() for v in a]
    assert z.tolist() == [int(v) ** 2 >> 32 for v in a]
    assert u[-1] == 1.0


def test_vectors() -> None:
    a = np.arange(32, dtype=np.float32)
    x, y = run(
        "auto v = ((const device float4*)a)[i]; float4 w = v * 2.0f + float4(1, 2, 3, 4);"
        "((device float4*)x)[i] = w; y[i] = dot(v, v) + w.w;",
        [mx.array(a)], [(32,), (8,)], [mx.float32] * 2, threads=8,
    )  # fmt: skip
    v = a.reshape(8, 4).astype(np.float64)
    w = v * 2 + [1, 2, 3, 4]
    np.testing.assert_array_equal(x, w.ravel())
    np.testing.assert_array_equal(y, (v * v).sum(1) + w[:, 3])


COLLECTIVES = {
    "simd_sum(p)": lambda v: np.full(32, v.sum()),
    "simd_product(1 + p % 2)": lambda v: np.full(32, np.prod(1 + v % 2)),
    "simd_max(p)": lambda v: np.full(32, v.max()),
    "simd_min(p)": lambda v: np.full(32, v.min()),
    "simd_or(p)": lambda v: np.full(32, np.bitwise_or.reduce(v)),
    "simd_xor(p)": lambda v: np.full(32, np.bitwise_xor.reduce(v)),
    "simd_and(p | 8)": lambda v: np.full(32, np.bitwise_and.reduce(v | 8)),
    "simd_prefix_inclusive_sum(p)": np.cumsum,
    "simd_prefix_exclusive_sum(p)": lambda v: np.cumsum(v) - v,
    "simd_shuffle(p, 31 - l)": lambda v: v[::-1],
    "simd_shuffle_xor(p, 5)": lambda v: v[np.arange(32) ^ 5],
    "simd_shuffle_up(p, 3)": lambda v: np.concatenate([v[:3], v[:-3]]),
    "simd_shuffle_down(p, 3)": lambda v: np.concatenate([v[3:], v[-3:]]),
    "simd_shuffle_and_fill_up(p, -p, 2)": lambda v: np.concatenate([-v[-2:], v[:-2]]),
    "simd_shuffle_and_fill_down(p, -p, 2)": lambda v: np.concatenate([v[2:], -v[:2]]),
    "simd_shuffle_rotate_up(p, 2)": lambda v: np.roll(v, 2),
    "simd_shuffle_rotate_down(p, 2)": lambda v: np.roll(v, -2),
    "simd_broadcast(p, 7)": lambda v: np.full(32, v[7]),
    "simd_broadcast_first(p)": lambda v: np.full(32, v[0]),
    "int(popcount(ulong(simd_ballot(p > 10))))": lambda v: np.full(32, (v > 10).sum()),
    "int(simd_any(p == 3))": lambda v: np.full(32, (v == 3).any()),
    "int(simd_all(p >= 0))": lambda v: np.full(32, (v >= 0).all()),
    "quad_sum(p)": lambda v: v.reshape(8, 4).sum(1).repeat(4),
    "quad_broadcast(p, 2)": lambda v: v.reshape(8, 4)[:, 2].repeat(4),
    "quad_shuffle_xor(p, 1)": lambda v: v[np.arange(32) ^ 1],
}


@pytest.mark.parametrize("schedule", testing.SCHEDULES)
def test_collective_operations(schedule: str) -> None:
    v = np.random.default_rng(1).integers(0, 20, size=64).astype(np.int32)
    n = len(COLLECTIVES)
    body = "int p = a[i]; uint l = thread_index_in_simdgroup;\n" + "\n".join(
        f"x[{k} * 64 + i] = {call};" for k, call in enumerate(COLLECTIVES)
    )
    (got,) = run(body, [mx.array(v)], [(n, 64)], [mx.int32], threads=64, schedule=schedule)
    for k, (call, oracle) in enumerate(COLLECTIVES.items()):
        expected = np.concatenate(
            [oracle(v[:32].astype(np.int64)), oracle(v[32:].astype(np.int64))]
        )
        np.testing.assert_array_equal(got[k], expected, err_msg=call)


@pytest.mark.parametrize("schedule", testing.SCHEDULES)
def test_cut_off_threadgroups_have_fewer_threads(schedule: str) -> None:
    """A grid of 100 in groups of 64: the last has 36 threads, and its last SIMD group 4 lanes."""
    x, y, z, u = run(
        "x[i] = threads_per_threadgroup.x; y[i] = simd_sum(1); z[i] = simdgroups_per_threadgroup;"
        "u[i] = dispatch_threads_per_threadgroup.x;",
        [mx.zeros((1,))], [(100,)] * 4, [mx.int32] * 4, threads=100, schedule=schedule,
    )  # fmt: skip
    assert x.tolist() == [64] * 64 + [36] * 36
    assert y.tolist() == [32] * 96 + [4] * 4
    assert z.tolist() == [2] * 100
    assert u.tolist() == [64] * 100


def test_positions_in_three_dimensions() -> None:
    names = ("thread_position_in_grid", "thread_position_in_threadgroup",
             "threadgroup_position_in_grid", "threads_per_grid",
             "threadgroups_per_grid")  # fmt: skip
    body = "uint at = i + 6 * (thread_position_in_grid.y + 5 * thread_position_in_grid.z);\n"
    for k, name in enumerate(names):
        for d, axis in enumerate("xyz"):
            body += f"x[(at * 5 + {k}) * 3 + {d}] = {name}.{axis};\n"
    body += "y[at] = thread_index_in_threadgroup;"
    x, y = run(
        body, [mx.zeros((1,))], [(3, 5, 6, 5, 3), (3, 5, 6)], [mx.int32] * 2, threads=0,
        grid=(6, 5, 3), threadgroup=(4, 5, 2),
    )  # fmt: skip
    for z0, y0, x0 in np.ndindex(3, 5, 6):
        place, group = np.array([x0, y0, z0]), np.array([4, 5, 2])
        expected = [place, place % group, place // group, [6, 5, 3], [2, 1, 2]]
        np.testing.assert_array_equal(x[z0, y0, x0], expected)
        # The last group in x has two threads a row, as Metal's own dispatch has it.
        width = 4 if x0 < 4 else 2
        assert y[z0, y0, x0] == x0 % 4 + width * (y0 + 5 * (z0 % 2))
