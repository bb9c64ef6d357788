"""`lora_bgmv` in plain MLX: products with gathered matrices that are never copied.

`mx.gather_mm` reads A_i and B_i in place, where `x @ a[index]` first copies them: per row in * r
values, as many as the product itself reads. Its gradient in the matrices scatters; written out
here, it is one product with a matrix of zeros and ones, or none when all rows share one adapter.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx

# From so many tokens per row on, gradients written out cost less than calling them does.
_TOKENS = 5


def plain_update(
    y: mx.array,
    x: mx.array,
    a: mx.array,
    b: mx.array,
    index: mx.array,
    scale: mx.array,
    rows: tuple[int, ...] | None,
) -> mx.array:
    """y + s_i (x A_i) B_i.

    Args:
        y: (B, L, out), the base's product.
        x: (B, L, in).
        a, b: (n, in, r) and (n, r, out).
        index: (B,) int; -1 for none.
        scale: (n,).
        rows: the values of `index`, None where they are not known.

    Returns:
        (B, L, out), in y's dtype.
    """
    a, b, scale = (part.astype(x.dtype) for part in (a, b, scale))
    if rows is not None and min(rows) == max(rows) and (a.shape[0] == 1 or x.shape[1] > 1):
        return _shared(y, x, a, b, scale, rows[0])
    if rows is not None and min(rows) >= 0:
        return _all_rows(y, x, a, b, index, scale)
    n = a.shape[0]
    active = (index >= 0) & (index < n)
    changed = _all_rows(y, x, a, b, mx.where(active, index, 0), scale)
    # Not a product with zero: adapter 0, which stands in, may hold infinities.
    return mx.where(active[:, None, None], changed, y)


def _shared(
    y: mx.array, x: mx.array, a: mx.array, b: mx.array, scale: mx.array, i: int
) -> mx.array:
    """One adapter for all rows: two products of whole batches."""
    if a.shape[0] == 1:
        # Cheaper than to index.
        a, b = a.reshape(a.shape[1:]), b.reshape(b.shape[1:])
    else:
        a, b, scale = a[i], b[i], scale[i]
    z = (x @ a) * scale
    return mx.addmm(y, z, b) if y.dtype == x.dtype else y + (z @ b).astype(y.dtype)


def _all_rows(
    y: mx.array, x: mx.array, a: mx.array, b: mx.array, index: mx.array, scale: mx.array
) -> mx.array:
    """y + s_i (x A_i) B_i, each row with an adapter."""
    strength = scale[index][:, None, None]
    if x.shape[1] < _TOKENS:
        return y + _product(_product(x, a, index) * strength, b, index).astype(y.dtype)
    z: Any = _gathered(x, a, index)
    result: Any = _added(y, z * strength, b, index)
    return result


@mx.custom_function
def _gathered(x: mx.array, w: mx.array, index: mx.array) -> mx.array:
    """x_b W_i: (B, L, k), (n, k, m), (B,) -> (B, L, m)."""
    return _product(x, w, index)


@_gathered.vjp
def _gathered_vjp(primals: Any, cotangent: mx.array, output: mx.array) -> Any:
    x, w, index = primals
    dx = _product(cotangent, w.swapaxes(-1, -2), index)
    return dx, _matrix_gradient(x, cotangent, w, index), mx.zeros_like(index)


@mx.custom_function
def _added(y: mx.array, z: mx.array, w: mx.array, index: mx.array) -> mx.array:
    """y_b + z_b W_i: (B, L, m), (B, L, k), (n, k, m), (B,) -> (B, L, m)."""
    if y.dtype != z.dtype:
        return y + _product(z, w, index).astype(y.dtype)
    # For many tokens the copies are small beside y, which is passed over once less.
    return mx.addmm(y, z, w[index])


@_added.vjp
def _added_vjp(primals: Any, cotangent: mx.array, output: mx.array) -> Any:
    _, z, w, index = primals
    dy, cotangent = cotangent, cotangent.astype(z.dtype)
    dz = _product(cotangent, w.swapaxes(-1, -2), index)
    return dy, dz, _matrix_gradient(z, cotangent, w, index), mx.zeros_like(index)


def _matrix_gradient(x: mx.array, cotangent: mx.array, w: mx.array, index: mx.array) -> mx.array:
    each = x.swapaxes(-1, -2) @ cotangent
    whose = (mx.arange(w.shape[0])[:, None] == index).astype(each.dtype)
    return (whose @ each.reshape(each.shape[0], -1)).reshape(w.shape)


def _product(x: mx.array, w: mx.array, index: mx.array) -> mx.array:
    # On CPUs MLX has gather_mm for float32 alone.
    if x.dtype != mx.float32 and mx.default_device().type == mx.DeviceType.cpu:
        return x @ w[index]
    return mx.gather_mm(x, w, rhs_indices=index)
