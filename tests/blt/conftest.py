"""What the tests of byte models share."""

from __future__ import annotations

from collections.abc import Iterator

import mlx_companion  # noqa: F401  (loads a fast BLAS before MLX)

import mlx.core as mx  # isort: skip
import pytest  # isort: skip


@pytest.fixture
def uncompiled() -> Iterator[None]:
    """Without `mx.compile`, which on Linux runs a C++ compiler for each new expression."""
    mx.disable_compile()
    yield
    mx.enable_compile()
