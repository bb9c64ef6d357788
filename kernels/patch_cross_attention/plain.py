"""Attention between bytes and patches in plain MLX."""

from __future__ import annotations

import mlx.core as mx

from mlx_companion.kernels.fast_math import exp, softmax
from mlx_companion.kernels.patches import left_out

_LOWEST = -1e30


def attend(
    q: mx.array, k: mx.array, v: mx.array, ids: mx.array, side: str, scale: float
) -> mx.array:
    """See `patch_cross_attention`."""
    shared = q.shape[-2] // k.shape[-2]
    if shared > 1:
        k, v = mx.repeat(k, shared, axis=-2), mx.repeat(v, shared, axis=-2)
    q = q * scale
    return (_encoder if side == "encoder" else _decoder)(q, k, v, ids)


def _encoder(q: mx.array, k: mx.array, v: mx.array, ids: mx.array) -> mx.array:
    B, P, J, H, W = q.shape
    N = k.shape[1]
    flat = _flat(ids, P)
    own = mx.pad(q, [(0, 0), (0, 1)] + [(0, 0)] * 3).reshape(B * (P + 1), J, H, W)[flat]
    scores = (own * k.reshape(B * N, 1, H, W)).sum(axis=-1)
    largest = mx.stop_gradient(mx.full((B * (P + 1), J, H), _LOWEST).at[flat].maximum(scores))
    weights = exp(scores - largest[flat])
    total = mx.zeros((B * (P + 1), J, H)).at[flat].add(weights)
    weighted = weights[..., None] * v.reshape(B * N, 1, H, W)
    summed = mx.zeros((B * (P + 1), J, H, W)).at[flat].add(weighted)
    out = summed / mx.maximum(total, 1e-30)[..., None]
    return out.reshape(B, P + 1, J, H, W)[:, :P].astype(q.dtype)


def _decoder(q: mx.array, k: mx.array, v: mx.array, ids: mx.array) -> mx.array:
    B, N, H, W = q.shape
    _, P, J, _, _ = k.shape
    flat = _flat(ids, P)
    pad = [(0, 0), (0, 1)] + [(0, 0)] * 3
    keys = mx.pad(k, pad).reshape(B * (P + 1), J, H, W)[flat]
    values = mx.pad(v, pad).reshape(B * (P + 1), J, H, W)[flat]
    scores = (q.reshape(B * N, 1, H, W) * keys).sum(axis=-1)
    weights = softmax(scores.swapaxes(1, 2)).swapaxes(1, 2)
    return (weights[..., None] * values).sum(axis=1).reshape(B, N, H, W)


def _flat(ids: mx.array, count: int) -> mx.array:
    """Patch numbers of all rows in one count, left-out bytes in a patch of their own."""
    rows = (mx.arange(ids.shape[0]) * (count + 1))[:, None]
    return (mx.where(left_out(ids, count), count, ids) + rows).reshape(-1)
