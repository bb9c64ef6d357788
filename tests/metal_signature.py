"""The buffers of the function that MLX generates around a kernel's body, recorded without Metal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from mlx_companion.kernels.launch import metal_by
from mlx_companion.kernels.testing.signature import parse, recorded


def buffers(call: Callable[..., Any], *inputs: mx.array) -> dict[str, str]:
    """Name and element type of each buffer, in order, when `call(*inputs)` launches one kernel."""
    with metal_by(_on_gpu):
        lines = parse(recorded(call, list(inputs)))[1]
    words = [line.replace("*", " ").replace("&", " ").split() for line in lines]
    return {line[-1]: line[-2] for line in words}


def _on_gpu(**names: Any) -> Callable[..., list[mx.array]]:
    """MLX's own, on a stream that this machine may lack: a graph is recorded, and not run."""
    kernel: Any = mx.fast.metal_kernel(**names)

    def run(**options: Any) -> list[mx.array]:
        return kernel(**options, stream=mx.gpu)  # type: ignore[no-any-return]

    return run
