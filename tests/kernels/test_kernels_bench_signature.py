"""The generated signature against MLX's own, for random kernels, and what tells them apart."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mlx_companion  # noqa: F401
from mlx_companion.errors import KernelError
from mlx_companion.kernels import testing
from mlx_companion.kernels.launch import Kernel
from mlx_companion.kernels.testing.signature import ATTRIBUTES, TYPES
from mlx_companion.kernels.testing.signatures import compare

# Dimensions around the eight elements below which MLX uses constant memory, and none.
shapes = st.lists(st.integers(0, 9), max_size=3).map(tuple)
words = st.lists(
    st.sampled_from([*ATTRIBUTES, "a_shape", "b_strides", "data_shape", "a_ndim", "x_shape"]),
    max_size=5,
)
templates = st.lists(
    st.one_of(st.sampled_from(list(TYPES)), st.integers(-3, 1000), st.booleans()), max_size=3
)


@settings(max_examples=150, deadline=None, derandomize=True,
          suppress_health_check=[HealthCheck.too_slow])  # fmt: skip
@given(
    inputs=st.lists(st.tuples(shapes, st.sampled_from(list(TYPES))), min_size=1, max_size=3),
    named=words,
    template=templates,
    dtype=st.sampled_from(list(TYPES)),
    atomic=st.booleans(),
)
def test_signatures_are_mlxs(
    inputs: list[tuple[tuple[int, ...], mx.Dtype]],
    named: list[str],
    template: list[object],
    dtype: mx.Dtype,
    atomic: bool,
) -> None:
    kernel = testing.metal_kernel(
        "any", list("abc"[: len(inputs)]), ["x"], " ".join(f"{w};" for w in named),
        atomic_outputs=atomic,
    )  # fmt: skip
    call = {
        "inputs": [mx.zeros(shape, kind) for shape, kind in inputs],
        "template": [(f"T{k}", value) for k, value in enumerate(template)],
        "grid": (1, 1, 1), "threadgroup": (1, 1, 1), "output_shapes": [(1,)],
        "output_dtypes": [dtype],
    }  # fmt: skip
    compare(kernel, call)


_COPY = Kernel(
    name="copy",
    inputs=("a",),
    outputs=("x",),
    source="x[thread_position_in_grid.x] = T(a[thread_position_in_grid.x] + a_shape[0]);",
)


def _copy() -> mx.array:
    (x,) = _COPY(
        [mx.zeros((9,))], impl="metal", template=[("T", mx.float16)], grid=(9, 1, 1),
        threadgroup=(9, 1, 1), shapes=[(9,)], dtypes=[mx.float16],
    )  # fmt: skip
    return x


@pytest.mark.usefixtures("kernel_bench")
def test_an_ops_launches_are_compared() -> None:
    assert testing.check_signatures(lambda: [_copy(), _copy()]) == 2
    with pytest.raises(KernelError, match="no kernel was launched"):
        testing.check_signatures(lambda: mx.zeros((1,)))


def test_a_difference_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = testing.metal_kernel("k", ["a"], ["x"], "x[0] = a[0];")
    call = {
        "inputs": [mx.zeros((9,))], "grid": (1, 1, 1), "threadgroup": (1, 1, 1),
        "output_shapes": [(1,)], "output_dtypes": [mx.float32],
    }  # fmt: skip
    compare(kernel, call)
    monkeypatch.setattr("mlx_companion.kernels.testing.signature.CONSTANT_BELOW", 100)
    with pytest.raises(KernelError, match=r"buffers are .*constant float\* a.*MLX has"):
        compare(replace(kernel, name="other"), call)
