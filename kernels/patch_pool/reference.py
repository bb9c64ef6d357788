"""Pooling by a mask of patches by bytes: every patch looks at every byte."""

from __future__ import annotations

import mlx.core as mx


def pool(h: mx.array, ids: mx.array, count: int, mode: str) -> mx.array:
    """See `patch_pool`; ids need no order here."""
    own = ids[:, None, :] == mx.arange(count)[None, :, None]
    x = h.astype(mx.float32)
    if mode == "max":
        # The first byte with the maximum is picked, and the gradient follows the pick.
        shown = mx.where(own[..., None], mx.stop_gradient(x)[:, None], -mx.inf)
        picked = mx.take_along_axis(x, shown.argmax(axis=2), axis=1)
        pooled = mx.where(own.any(axis=2)[..., None], picked, 0.0)
    else:
        pooled = mx.where(own[..., None], x[:, None], 0.0).sum(axis=2)
    if mode == "mean":
        pooled = pooled / mx.maximum(own.sum(axis=2), 1)[..., None]
    return pooled.astype(h.dtype)
