"""A kernel has one name for each signature that MLX generates around it, and no more."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest

from mlx_companion.kernels.launch import Kernel


def test_names_tell_signatures_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []

    def record(name: str, **_: Any) -> Any:
        names.append(name)
        return lambda **_: []

    monkeypatch.setattr(mx.fast, "metal_kernel", record)
    kernel = Kernel("named_for_a_test", ("x",), ("y",), "y[0] = x[0];")

    def launch(size: int, dtype: mx.Dtype, out: mx.Dtype = mx.float32) -> None:
        threads = {"grid": (1, 1, 1), "threadgroup": (1, 1, 1)}
        x = mx.zeros((size,), dtype=dtype)
        kernel([x], impl="metal", shapes=[(1,)], dtypes=[out], **threads)

    for size, dtype in [(7, mx.float32), (8, mx.float32), (8, mx.float16), (9, mx.float32)]:
        launch(size, dtype)
    launch(8, mx.float32, mx.float16)
    assert len(names) == len(set(names)) == 4
    assert all(name.startswith("named_for_a_test") and name.isidentifier() for name in names)
