"""`patch_cross_attention` beside the two forms that people write: a dense mask, and scatters.

Models in PyTorch mask attention of every patch to every byte; the other form gathers each byte's
queries (or keys) and adds up by patch with `.at[].add`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import mlx.core as mx

from mlx_companion.kernels.patch_cross_attention import patch_cross_attention

from .case import Case
from .patch_rows import FULL, QUICK, Size, normal, patch_ids

Attend = Callable[[mx.array, mx.array, mx.array], mx.array]


def cases(quick: bool) -> list[Case]:
    """Both sides, value and gradients."""
    sizes = QUICK if quick else FULL
    return [
        _case(size, side, way)
        for size in sizes
        for side in ("encoder", "decoder")
        for way in ("a dense mask", "scatters")
        # The dense form of the largest size needs tens of seconds and gigabytes.
        if way == "scatters" or size.B * size.N * size.N * size.H < 2e8
    ]


def _case(size: Size, side: str, way: str) -> Case:
    ids, count = _ids(size)
    naive = (_dense if way == "a dense mask" else _scattered)(side, ids, count)
    return Case(
        "patch_cross_attention",
        f"{side}, {size.label}, against {way}",
        naive=lambda: _with_gradients(size, side, naive),
        ours=lambda: _with_gradients(
            size, side, lambda q, k, v: patch_cross_attention(q, k, v, ids, side=side)
        ),
    )


def _with_gradients(size: Size, side: str, attend: Attend) -> list[mx.array]:
    *given, slope = _inputs(size, side)

    def loss(*given: mx.array) -> tuple[mx.array, mx.array]:
        out = attend(*given)
        return (out * slope).sum(), out

    (_, out), gradients = mx.value_and_grad(loss, argnums=(0, 1, 2))(*given)
    return [out, *gradients]


def _dense(side: str, ids: mx.array, count: int) -> Attend:
    def attend(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        shape, J = q.shape, (q if side == "encoder" else k).shape[2]
        own = mx.repeat(ids[:, :, None] == mx.arange(count), J, axis=2)
        mask = own.swapaxes(1, 2) if side == "encoder" else own
        # (B, P, J, H, W) and (B, N, H, W) to (B, H, rows, W)
        q, k, v = (x.flatten(1, -3).swapaxes(1, 2) for x in (q, k, v))
        out = mx.fast.scaled_dot_product_attention(
            q, k, v, scale=shape[-1] ** -0.5, mask=mask[:, None]
        )
        return mx.where(mask.any(axis=2)[:, None, :, None], out, 0.0).swapaxes(1, 2).reshape(shape)

    return attend


def _scattered(side: str, ids: mx.array, count: int) -> Attend:
    flat = (ids + (mx.arange(len(ids)) * count)[:, None]).reshape(-1)

    def within(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        J, H, W = q.shape[2:]
        own = (q * W**-0.5).reshape(-1, J, H, W)[flat]
        scores = (own * k.reshape(-1, 1, H, W)).sum(axis=-1)
        largest = (
            mx.full((len(ids) * count, J, H), -1e30).at[flat].maximum(mx.stop_gradient(scores))
        )
        weights = mx.exp(scores - largest[flat])
        total = mx.zeros(largest.shape).at[flat].add(weights)
        weighted = weights[..., None] * v.reshape(-1, 1, H, W)
        summed = mx.zeros((*largest.shape, W)).at[flat].add(weighted)
        return (summed / mx.maximum(total, 1e-30)[..., None]).reshape(q.shape)

    def across(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        J, H, W = k.shape[2:]
        keys, values = k.reshape(-1, J, H, W)[flat], v.reshape(-1, J, H, W)[flat]
        scores = ((q * W**-0.5).reshape(-1, 1, H, W) * keys).sum(axis=-1)
        weights = mx.softmax(scores, axis=1)
        return (weights[..., None] * values).sum(axis=1).reshape(q.shape)

    return within if side == "encoder" else across


@lru_cache(maxsize=8)
def _ids(size: Size) -> tuple[mx.array, int]:
    return patch_ids(size)


@lru_cache(maxsize=8)
def _inputs(size: Size, side: str) -> tuple[mx.array, ...]:
    """q, k, v and a weight for the output."""
    W = size.D // size.H
    patches = (size.B, _ids(size)[1], size.J, size.H, W)
    of_bytes = (size.B, size.N, size.H, W)
    q, kv = (patches, of_bytes) if side == "encoder" else (of_bytes, patches)
    return normal(*q), normal(*kv), normal(*kv), normal(*q)
