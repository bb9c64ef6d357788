"""`lora_bgmv` in plain MLX: products with gathered matrices that are never copied.

`mx.gather_mm` reads A_i and B_i in place, where `x @ a[index]` first copies them: per row in * r
values, as many as the product itself reads. Its gradient in the matrices scatters; written out
here, it is one product with a matrix of zeros and ones, or none when all rows share one adapter.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx


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
        return y + _update(x, a, b, index, scale).astype(y.dtype)
    n = a.shape[0]
    active = (index >= 0) & (index < n)
    update = _update(x, a, b, mx.where(active, index, 0), scale).astype(y.dtype)
    # Not a product with zero: adapter 0, which stands in, may hold infinities.
    return mx.where(active[:, None, None], y + update, y)


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


def _update(x: mx.array, a: mx.array, b: mx.array, index: mx.array, scale: mx.array) -> mx.array:
    # The gradient written out pays for rows of tokens; with one each, calling it costs more.
    product: Any = _gathered if x.shape[1] > 1 else _product
    z = product(x, a, index) * scale[index][:, None, None]
    result: mx.array = product(z, b, index)
    return result


@mx.custom_function
def _gathered(x: mx.array, w: mx.array, index: mx.array) -> mx.array:
    """x_b W_i: (B, L, k), (n, k, m), (B,) -> (B, L, m)."""
    return _product(x, w, index)


@_gathered.vjp
def _gathered_vjp(primals: Any, cotangent: mx.array, output: mx.array) -> Any:
    x, w, index = primals
    dx = _product(cotangent, w.swapaxes(-1, -2), index)
    each = x.swapaxes(-1, -2) @ cotangent
    whose = (mx.arange(w.shape[0])[:, None] == index).astype(each.dtype)
    dw = (whose @ each.reshape(each.shape[0], -1)).reshape(w.shape)
    return dx, dw, mx.zeros_like(index)


def _product(x: mx.array, w: mx.array, index: mx.array) -> mx.array:
    # On CPUs MLX has gather_mm for float32 alone.
    if x.dtype != mx.float32 and mx.default_device().type == mx.DeviceType.cpu:
        return x @ w[index]
    return mx.gather_mm(x, w, rhs_indices=index)
