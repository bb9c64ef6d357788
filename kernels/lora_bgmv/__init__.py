"""`lora_bgmv`: a linear layer with a different low-rank adapter for each row of the batch.

    y_b = x_b W^T + bias + s_i (x_b A_i) B_i        with i = index_b; without the last term for -1

One product with the shared, often quantized matrix W serves all rows; only the small products with
A_i (in, r) and B_i (r, out) differ. Adapters of different ranks go into one array filled up with
zeros, which changes nothing.

Reference: Chen et al. 2023, "Punica: Multi-Tenant LoRA Serving" (batched gather matrix-vector
multiplication).
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from mlx_companion.errors import ConfigError
from mlx_companion.kernels.dispatch import Impl, choose
from mlx_companion.kernels.lora_bgmv.body import MOST_TOKENS, kernel_update
from mlx_companion.kernels.lora_bgmv.plain import plain_update
from mlx_companion.kernels.lora_bgmv.reference import reference
from mlx_companion.kernels.matrix import Matrix

__all__ = ["lora_bgmv"]


def lora_bgmv(
    x: mx.array,
    weight: Matrix,
    a: mx.array,
    b: mx.array,
    index: mx.array,
    scale: mx.array,
    *,
    bias: mx.array | None = None,
    impl: Impl = "auto",
) -> mx.array:
    """x W^T + bias + s_i (x A_i) B_i, row by row with its own i.

    Gradients flow to x, a, b and scale, and to the base's plain weight and bias where asked for.
    Rows without an adapter, and adapters that no row names, take no part: infinities in them
    reach no other row's result.

    Args:
        x: (B, ..., in).
        weight: the base's matrix (out, in).
        a: (n, in, r); cast to x's dtype, never the other way round.
        b: (n, r, out).
        index: (B,) int, the adapter of each row, -1 for none. Inside `mx.compile`, where its
            values cannot be read, those out of range count as -1.
        scale: (n,) float.
        bias: of the base, (out,).
        impl: see `kernels.dispatch`. "auto" on an accelerator runs the kernel for up to
            `MOST_TOKENS` tokens per row, and the plain form, made of matrix products, above.

    Returns:
        (B, ..., out), in the dtype of the base's product.

    Raises:
        ConfigError: shapes or dtypes that do not fit together, an index out of range.
        HardwareError: a kernel was asked for that this machine cannot run.
    """
    rows = _checked(x, weight, a, b, index, scale, bias)
    chosen = choose(impl, "lora_bgmv")
    if chosen == "reference":
        return reference(x, weight, a, b, index, scale, bias)
    y = _base(x, weight, bias)
    idle = rows is not None and all(row < 0 for row in rows)
    if idle or not (a.shape[0] and a.shape[2] and y.size):
        return y
    # (B, L, width): what is between batch and width are the tokens of a row.
    x3 = x if x.ndim == 3 else x.reshape(x.shape[0], -1, x.shape[-1])
    y3 = y if y.ndim == 3 else y.reshape(*x3.shape[:2], -1)
    if chosen == "plain" or (impl == "auto" and x3.shape[1] > MOST_TOKENS):
        return plain_update(y3, x3, a, b, index, scale, rows).reshape(y.shape)
    return kernel_update(y3, x3, a, b, index, scale, chosen).reshape(y.shape)


def _base(x: mx.array, weight: Matrix, bias: mx.array | None) -> mx.array:
    """As `nn.Linear` and `nn.QuantizedLinear` compute it, bit for bit."""
    if bias is None:
        return weight.apply(x)
    if weight.quantized:
        return weight.apply(x) + bias
    return mx.addmm(bias, x, weight.weight.T)


def _checked(
    x: mx.array,
    weight: Matrix,
    a: mx.array,
    b: mx.array,
    index: mx.array,
    scale: mx.array,
    bias: mx.array | None,
) -> tuple[int, ...] | None:
    """The rows' adapters, None where they cannot be read. Raises ConfigError."""
    out_dims, in_dims = weight.shape
    n, r = (a.shape[0], a.shape[2]) if a.ndim == 3 else (0, 0)
    fits = (
        x.ndim > 1
        and (x.shape[-1], x.shape[0]) == (in_dims, index.size)
        and index.ndim == 1
        and (a.shape, b.shape) == ((n, in_dims, r), (n, r, out_dims))
        and scale.shape == (n,)
        and (bias is None or bias.shape == (out_dims,))
    )
    if not fits:
        raise ConfigError(
            f"lora_bgmv: the shapes do not fit together: x {x.shape} (B, ..., in), weight "
            f"{weight.shape} (out, in), a {a.shape} (n, in, r), b {b.shape} (n, r, out), index "
            f"{index.shape} (B,), scale {scale.shape} (n,)"
            + ("" if bias is None else f", bias {bias.shape} (out,)")
        )
    floats = {"x": x.dtype, "a": a.dtype, "b": b.dtype, "scale": scale.dtype}
    for name, dtype in floats.items():
        if dtype != mx.float32 and not mx.issubdtype(dtype, mx.floating):
            raise ConfigError(f"lora_bgmv: {name} must be of a float type, got {dtype}")
    if not mx.issubdtype(index.dtype, mx.integer):
        raise ConfigError(f"lora_bgmv: index must be whole numbers, got {index.dtype}")
    return _read(index, n)


def _read(index: mx.array, n: int) -> tuple[int, ...] | None:
    values: Any
    try:
        values = index.tolist()
    except ValueError:
        # MLX's answer inside of mx.compile, where the index is an argument.
        return None
    rows: tuple[int, ...] = tuple(values)
    if rows and not -1 <= min(rows) <= max(rows) < n:
        wrong = next(row for row in rows if not -1 <= row < n)
        raise ConfigError(
            f"lora_bgmv: the index names adapter {wrong}, but there are {n} "
            f"(0 to {n - 1}; -1 for none)"
        )
    return rows
