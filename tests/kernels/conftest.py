"""Kernels' tests run Metal bodies on the bench: the fixture `on_metal`."""

from __future__ import annotations

import mlx_companion  # noqa: F401 - the BLAS, before MLX
from mlx_companion.kernels.testing.plugin import (  # noqa: F401
    kernel_bench,
    on_metal,
    pytest_generate_tests,
)
