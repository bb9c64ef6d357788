"""The Metal bench: runs the body of a Metal kernel on the CPU and watches every access to memory.

A body is compiled as C++ behind a header that means Metal's names, each GPU thread is a fiber, and
threads run in adversarial orders. Found are: accesses out of bounds, reads of what nothing wrote,
data races, barriers and collective operations that not all threads reach, endless loops.
docs/metal_bench.md says how to use it, and what it cannot check.
"""

from __future__ import annotations

from mlx_companion.kernels.testing.bench import MetalKernel, metal_kernel
from mlx_companion.kernels.testing.modules import on_bench
from mlx_companion.kernels.testing.request import Options
from mlx_companion.kernels.testing.schedules import (
    SCHEDULES,
    check,
    emulated,
    run_all_schedules,
)
from mlx_companion.kernels.testing.signatures import check_signatures

__all__ = [
    "SCHEDULES",
    "MetalKernel",
    "Options",
    "check",
    "check_signatures",
    "emulated",
    "metal_kernel",
    "on_bench",
    "run_all_schedules",
]
