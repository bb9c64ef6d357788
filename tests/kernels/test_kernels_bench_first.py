"""The bench runs an op's kernel in Metal's place."""

from __future__ import annotations

import mlx_companion  # noqa: F401
import mlx.core as mx
import numpy as np

from mlx_companion.kernels.launch import Kernel

_REVERSE = Kernel(
    name="reverse_each_group",
    inputs=("x",),
    outputs=("y",),
    source="""
        uint i = thread_position_in_grid.x, t = thread_position_in_threadgroup.x;
        threadgroup T held[64];
        held[t] = x[i] * 0.5;
        threadgroup_barrier(mem_flags::mem_threadgroup);
        y[i] = held[63 - t];
    """,
)


def test_an_op_runs_on_the_bench(on_metal: str) -> None:
    x = mx.arange(256).astype(mx.float32)
    (y,) = _REVERSE(
        [x],
        impl="metal",
        template=[("T", mx.float32)],
        grid=(256, 1, 1),
        threadgroup=(64, 1, 1),
        shapes=[(256,)],
        dtypes=[mx.float32],
    )
    expected = (np.arange(256).reshape(4, 64)[:, ::-1] * 0.5).ravel()
    assert np.array_equal(np.array(y), expected)
