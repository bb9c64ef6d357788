"""`lora_bgmv`, slow and obvious: every adapter on every row, and the one that counts kept."""

from __future__ import annotations

import mlx.core as mx

from mlx_companion.kernels.matrix import Matrix


def reference(
    x: mx.array,
    weight: Matrix,
    a: mx.array,
    b: mx.array,
    index: mx.array,
    scale: mx.array,
    bias: mx.array | None,
) -> mx.array:
    """As `lora_bgmv`."""
    base = x @ weight.dense().T
    if bias is not None:
        base = base + bias
    y = base
    rows = index.reshape(-1, *[1] * (x.ndim - 1))
    for i in range(a.shape[0]):
        update = scale[i].astype(x.dtype) * (x @ a[i].astype(x.dtype) @ b[i].astype(x.dtype))
        y = mx.where(rows == i, base + update.astype(base.dtype), y)
    return y
