"""Memory on the bench: shared arrays, atomic outputs, strides, dtypes, what MLX adds to a call."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from test_kernels_bench_values import run

import mlx_companion  # noqa: F401
from mlx_companion.errors import ConfigError
from mlx_companion.kernels import testing

pytestmark = pytest.mark.usefixtures("kernel_bench")

SUM = """
template <typename T>
inline T sum_all(T v, threadgroup T* held, uint t, uint n) {
    held[t] = v;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint half = n / 2; half > 0; half /= 2) {
        if (t < half) {
            held[t] += held[t + half];
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    return held[0];
}
"""


@pytest.mark.parametrize("schedule", testing.SCHEDULES)
@pytest.mark.parametrize("group", [64, 1024])
def test_a_tree_sum_in_threadgroup_memory(schedule: str, group: int) -> None:
    a = np.random.default_rng(0).integers(0, 9, size=2048).astype(np.float32)
    (got,) = run(
        "threadgroup float held[N]; x[i] = "
        "sum_all(a[i], held, thread_position_in_threadgroup.x, N);",
        [mx.array(a)], [(2048,)], [mx.float32], threads=2048, group=group, schedule=schedule,
        header=SUM.replace("half", "step"), template=[("N", group)],
    )  # fmt: skip
    np.testing.assert_array_equal(got, a.reshape(-1, group).sum(1).repeat(group))


@pytest.mark.parametrize("schedule", testing.SCHEDULES)
def test_atomic_outputs(schedule: str) -> None:
    a = np.random.default_rng(0).integers(0, 5, size=1000).astype(np.int32)
    (got,) = run(
        "if (i < 1000) atomic_fetch_add_explicit(&x[a[i]], 1.0f, memory_order_relaxed);",
        [mx.array(a)], [(5,)], [mx.float32], threads=1024, schedule=schedule, atomic_outputs=True,
        init_value=0,
    )  # fmt: skip
    np.testing.assert_array_equal(got, np.bincount(a, minlength=5))


@pytest.mark.parametrize("schedule", testing.SCHEDULES)
def test_compare_and_exchange_in_a_loop(schedule: str) -> None:
    """Weak exchanges may fail for no reason, and do in random schedules."""
    (got,) = run(
        """
        threadgroup atomic_int best;
        if (i % 64 == 0) atomic_store_explicit(&best, -1, memory_order_relaxed);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        int seen = atomic_load_explicit(&best, memory_order_relaxed);
        while (seen < a[i] && !atomic_compare_exchange_weak_explicit(
            &best, &seen, a[i], memory_order_relaxed, memory_order_relaxed)) {}
        threadgroup_barrier(mem_flags::mem_threadgroup);
        x[i] = atomic_load_explicit(&best, memory_order_relaxed);
        """,
        [mx.array(np.arange(128, dtype=np.int32) * 37 % 101)], [(128,)], [mx.int32], threads=128,
        schedule=schedule,
    )  # fmt: skip
    values = (np.arange(128) * 37 % 101).reshape(2, 64).max(1)
    np.testing.assert_array_equal(got, values.repeat(64))


def test_strides_are_the_arrays_own() -> None:
    base = mx.arange(120).reshape(4, 5, 6).astype(mx.float32)
    for view in (base.transpose(2, 0, 1), base[:, ::2, 1:], base[::-1], base[:, :1, :]):
        n = view.size
        (got,) = run(
            "x[i] = a[elem_to_loc(i, a_shape, a_strides, a_ndim)];",
            [view], [(n,)], [mx.float32], threads=n, ensure_row_contiguous=False,
        )  # fmt: skip
        np.testing.assert_array_equal(got, np.array(view).ravel())
        (got,) = run("x[i] = a[i];", [view], [(n,)], [mx.float32], threads=n)
        np.testing.assert_array_equal(got, np.array(view).ravel())


@pytest.mark.parametrize("dtype", [
    mx.bool_, mx.uint8, mx.int8, mx.uint16, mx.int16, mx.uint32, mx.int32, mx.uint64, mx.int64,
    mx.float16, mx.bfloat16, mx.float32,
])  # fmt: skip
def test_every_dtype_goes_in_and_out(dtype: mx.Dtype) -> None:
    a = mx.array([0, 1, 1, 0, 1, 1, 1, 0, 1]).astype(dtype)
    kernel = testing.metal_kernel(
        "copy", ["a"], ["x"], "x[thread_position_in_grid.x] = a[thread_position_in_grid.x];"
    )
    (got,) = kernel(
        inputs=[a], grid=(9, 1, 1), threadgroup=(4, 1, 1), output_shapes=[(9,)],
        output_dtypes=[dtype],
    )  # fmt: skip
    assert got.dtype == dtype
    assert mx.array_equal(got, a)


def test_python_numbers_and_scalars_are_inputs() -> None:
    (got,) = run("x[i] = a * b[0] + c_ndim;", [3, mx.array([0.5]), mx.zeros((2, 2))],
                 [(4,)], [mx.float32], threads=4)  # fmt: skip
    assert got.tolist() == [3.5] * 4


def test_what_is_not_written_is_nan() -> None:
    (got,) = run("if (i < 3) x[i] = 1;", [mx.zeros((1,))], [(5,)], [mx.float32], threads=5)
    np.testing.assert_array_equal(got, [1, 1, 1, np.nan, np.nan])


def test_verbose_prints_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    run("x[i] = 1;", [mx.zeros((1,))], [(4,)], [mx.float32], threads=4, verbose=True)
    assert "x[i] = 1;" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": []}, "takes 1 inputs and was given 0"),
        ({"output_shapes": [(1,), (2,)]}, "1 outputs and was given 2 shapes"),
        ({"grid": (0, 1, 1)}, "grid must be three positive numbers"),
        ({"threadgroup": (1, 1)}, "threadgroup must be three positive numbers"),
        ({"grid": (2048, 1, 1), "threadgroup": (2048, 1, 1)}, "at most 1024 threads"),
        ({"inputs": [mx.zeros((1,), dtype=mx.complex64)]}, "complex64"),
    ],
)
def test_wrong_calls(change: dict[str, object], message: str) -> None:
    kernel = testing.metal_kernel("k", ["a"], ["x"], "x[0] = a[0];")
    call = {
        "inputs": [mx.zeros((1,))], "grid": (1, 1, 1), "threadgroup": (1, 1, 1),
        "output_shapes": [(1,)], "output_dtypes": [mx.float32],
    }  # fmt: skip
    with pytest.raises(ConfigError, match=message):
        kernel(**{**call, **change})


@pytest.mark.parametrize(
    "options", [{"schedule": "sideways"}, {"schedule": "forward:3"}, {"unwritten": "maybe"},
                {"races": "some"}]
)  # fmt: skip
def test_wrong_options(options: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        testing.metal_kernel("k", [], ["x"], "x[0] = 1;", **options)


def test_a_kernel_needs_an_output() -> None:
    with pytest.raises(ConfigError, match="at least one output"):
        testing.metal_kernel("k", ["a"], [], "")


def test_metal_has_31_buffers() -> None:
    names = [f"a{k}" for k in range(31)]
    kernel = testing.metal_kernel("k", names, ["x"], "x[0] = a30[0];")
    with pytest.raises(ConfigError, match="31 buffers, and k takes 32"):
        kernel(
            inputs=[mx.zeros((1,))] * 31, grid=(1, 1, 1), threadgroup=(1, 1, 1),
            output_shapes=[(1,)], output_dtypes=[mx.float32],
        )  # fmt: skip
