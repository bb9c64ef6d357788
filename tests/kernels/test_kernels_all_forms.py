"""Every op in every form it has a kernel for: plain against reference, and CUDA where it is.

The ops' own tests compare with oracles; here the kernels that `test_kernels_cuda_build` compiles
run, on the same calls, on the machines that can run them.
"""

from __future__ import annotations

import mlx_companion  # noqa: F401  (loads a fast BLAS before MLX)

import mlx.core as mx  # isort: skip
import numpy as np  # isort: skip
import pytest  # isort: skip
from kernel_launches import Call, calls  # isort: skip

# Of the largest value: a few roundings of the type.
TOLERANCE = {mx.float32: 2e-5, mx.float16: 6e-3, mx.bfloat16: 5e-2}


def alike(call: Call, impl: str) -> None:
    for ours, theirs in zip(call.run(impl), call.run("reference"), strict=True):
        assert ours.dtype == theirs.dtype
        a, b = (np.array(x.astype(mx.float32)) for x in (ours, theirs))
        assert a.shape == b.shape
        assert np.abs(a - b).max() <= TOLERANCE[call.dtype] * max(1e-3, np.abs(b).max())


def named(call: Call) -> str:
    return f"{call.label}, {str(call.dtype).removeprefix('mlx.core.')}"


@pytest.mark.parametrize("call", [c for c in calls() if c.dtype == mx.float32], ids=named)
def test_plain_is_the_reference(call: Call) -> None:
    alike(call, "plain")


@pytest.mark.parametrize("call", calls(), ids=named)
def test_cuda_is_the_reference(call: Call) -> None:
    if not mx.cuda.is_available():
        pytest.skip("MLX has no CUDA here; on a machine with a GPU: pip install mlx[cuda13]")
    alike(call, "cuda")
