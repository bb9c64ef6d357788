"""Attention between bytes and patches by dense masks, in float32."""

from __future__ import annotations

import mlx.core as mx


def attend(
    q: mx.array, k: mx.array, v: mx.array, ids: mx.array, side: str, scale: float
) -> mx.array:
    """See `patch_cross_attention`; ids need no order here."""
    wide = [x.astype(mx.float32) for x in (q, _for_heads(k, q), _for_heads(v, q))]
    function = _encoder if side == "encoder" else _decoder
    return function(wide[0] * scale, wide[1], wide[2], ids).astype(q.dtype)


def _for_heads(x: mx.array, q: mx.array) -> mx.array:
    """Keys or values repeated for the heads that share them."""
    return mx.repeat(x, q.shape[-2] // x.shape[-2], axis=-2)


def _encoder(q: mx.array, k: mx.array, v: mx.array, ids: mx.array) -> mx.array:
    own = (ids[:, None] == mx.arange(q.shape[1])[None, :, None])[:, :, None, None]
    weights = _masked_softmax(mx.einsum("bpjhw,bnhw->bpjhn", q, k), own)
    return mx.einsum("bpjhn,bnhw->bpjhw", weights, v)


def _decoder(q: mx.array, k: mx.array, v: mx.array, ids: mx.array) -> mx.array:
    B, P, J, H, W = k.shape
    own = ids[:, :, None] == mx.arange(P)
    own = mx.repeat(own, J, axis=2)[:, None]
    scores = mx.einsum("bnhw,bphw->bhnp", q, k.reshape(B, P * J, H, W))
    weights = _masked_softmax(scores, own)
    return mx.einsum("bhnp,bphw->bnhw", weights, v.reshape(B, P * J, H, W))


def _masked_softmax(scores: mx.array, shown: mx.array) -> mx.array:
    """Softmax over the last axis of what is shown; 0 where nothing is."""
    return mx.where(shown, mx.softmax(mx.where(shown, scores, -1e30), axis=-1), 0.0)
