"""Attention between bytes and patches in plain MLX, with gradients of its own.

Both sides and their gradients are made of three operations, with A for vectors of patches
(B, P, J, H, W), X for vectors of bytes (B, N, H, W) and w for weights (B, N, J, H):

    dots      s[t, j] = A[p, j] . X[t]                 p = ids[t]
    to_bytes  X[t]    = sum over j of w[t, j] A[p, j]
    sum       A[p, j] = sum over t in p of w[t, j] X[t]  (`piecewise`)

The first two go through one vector of each patch at a time, so that nothing of J times the size of
X exists, every operation is contiguous, and no scatter touches anything as wide as W.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import mlx.core as mx

from mlx_companion.kernels import fast_math
from mlx_companion.kernels.patch_cross_attention.piecewise import Pieces

_LOWEST = -1e30
# Numbers that one operation handles about as fast as it is launched.
_FEW = 2**18


def attend(
    q: mx.array, k: mx.array, v: mx.array, ids: mx.array, side: str, scale: float
) -> mx.array:
    """See `patch_cross_attention`."""
    kind = q.dtype
    q, k, v = q.astype(mx.float32), k.astype(mx.float32), v.astype(mx.float32)
    heads, key_heads = q.shape[-2], k.shape[-2]
    if side == "decoder":
        if heads > key_heads:
            # Patches are few: repeating their heads costs little.
            shared = heads // key_heads
            k, v = mx.repeat(k, shared, axis=-2), mx.repeat(v, shared, axis=-2)
        read: Any = _decoder(q, k * scale, v, ids)
        return read.astype(kind)
    # A custom function's own type says nothing about its results.
    rows, pieces = Rows.of(ids, q.shape[1]), Pieces.of(ids, q.shape[1])
    results: Any = _encoder(_fold(q * scale, key_heads), k, v, *rows, *pieces)
    return _unfold(results[0], q.shape).astype(kind)


def _fold(q: mx.array, key_heads: int) -> mx.array:
    """Queries of heads that share a key head become more queries: (B, P, J * G, K, W)."""
    B, P, J, H, W = q.shape
    if key_heads == H:
        return q
    split = q.reshape(B, P, J, key_heads, H // key_heads, W)
    return split.swapaxes(3, 4).reshape(B, P, -1, key_heads, W)


def _unfold(out: mx.array, shape: tuple[int, ...]) -> mx.array:
    B, P, J, H, W = shape
    if out.shape[3] == H:
        return out
    return out.reshape(B, P, J, -1, out.shape[3], W).swapaxes(3, 4).reshape(shape)


class Rows(NamedTuple):
    """Where the bytes of a batch find their patch.

    Attributes:
        own: (B * N,) int32, the patch in a count over all rows; anything for bytes left out.
        shown: (B * N, 1, 1) float32, 0 for bytes left out, else 1.
    """

    own: mx.array
    shown: mx.array

    @staticmethod
    def of(ids: mx.array, count: int) -> Rows:
        """Those of ids (B, N), for P patches."""
        inside = mx.clip(ids, 0, count - 1)
        shown = (inside == ids).astype(mx.float32).reshape(-1, 1, 1)
        if len(ids) > 1:
            inside = inside + (mx.arange(len(ids)) * count)[:, None]
        return Rows(inside.reshape(-1), shown)

    def gather(self, vectors: mx.array, j: int) -> mx.array:
        """Vector j of each byte's patch: (B, P, J, H, W) -> (B * N, H, W)."""
        B, P, J, H, W = vectors.shape
        rows = vectors.reshape(B * P * J, H * W)[self.own * J + j]
        return rows.reshape(-1, H, W)

    def gather_all(self, vectors: mx.array) -> mx.array:
        """(B, P, J, H, W) -> (B * N, J, H, W)."""
        return vectors.reshape(-1, *vectors.shape[2:])[self.own]

    def few(self, vectors: mx.array) -> bool:
        """Whether all vectors at once, for every byte, are so few that launches are the cost."""
        return self.own.size * math.prod(vectors.shape[2:]) <= _FEW


@mx.custom_function
def _encoder(q: mx.array, k: mx.array, v: mx.array, *places: mx.array) -> Any:
    rows, pieces = Rows(*places[:2]), Pieces(*places[2:])
    weights = _softmax_by_patch(_dots(q, k, rows), rows, q.shape[0] * q.shape[1])
    return pieces.sum(weights, v), weights


@_encoder.vjp
def _encoder_vjp(primals: Any, cotangents: Any, outputs: Any) -> Any:
    q, k, v, *places = primals
    rows, pieces = Rows(*places[:2]), Pieces(*places[2:])
    out, weights = outputs
    slope = cotangents[0]
    shares = (slope * out).sum(axis=-1).reshape(-1, *q.shape[2:4])
    gains, dv = _dots_and_to_bytes(slope, v, weights, rows)
    dscores = weights * (gains - shares[rows.own])
    dk = _to_bytes(dscores, q, rows)
    dq = pieces.sum(dscores, k)
    return dq, dk.reshape(k.shape), dv.reshape(v.shape), *map(mx.zeros_like, places)


@mx.custom_function
def _decoder(q: mx.array, k: mx.array, v: mx.array, ids: mx.array) -> mx.array:
    rows = Rows.of(ids, k.shape[1])
    return _to_bytes(_weights_of_bytes(q, k, rows), v, rows).reshape(q.shape)


@_decoder.vjp
def _decoder_vjp(primals: Any, cotangent: Any, output: Any) -> Any:
    q, k, v, ids = primals
    rows = Rows.of(ids, k.shape[1])
    weights = _weights_of_bytes(q, k, rows)
    gains = _dots(v, cotangent, rows)
    dscores = weights * (gains - (weights * gains).sum(axis=1, keepdims=True))
    dq = _to_bytes(dscores, k, rows).reshape(q.shape)
    pieces = Pieces.of(ids, k.shape[1])
    dk, dv = pieces.sum(dscores, q), pieces.sum(weights, cotangent)
    return dq, dk, dv, mx.zeros_like(ids)


def _weights_of_bytes(q: mx.array, k: mx.array, rows: Rows) -> mx.array:
    """The decoder's softmax over the J vectors of a patch: (B * N, J, H)."""
    scores = _dots(k, q, rows)
    weights = _exp()(scores - scores.max(axis=1, keepdims=True))
    return weights * (rows.shown / weights.sum(axis=1, keepdims=True))


def _softmax_by_patch(scores: mx.array, rows: Rows, count: int) -> mx.array:
    """Softmax of (B * N, J, H) over the bytes of each of B * P patches; 0 for bytes left out."""
    shape = (count, *scores.shape[1:])
    scores = scores + (rows.shown - 1.0) * -_LOWEST
    largest = mx.full(shape, _LOWEST).at[rows.own].maximum(scores)
    weights = _exp()(scores - largest[rows.own]) * rows.shown
    total = mx.zeros(shape).at[rows.own].add(weights)
    return weights * mx.reciprocal(mx.maximum(total, 1e-30))[rows.own]


def _dots(vectors: mx.array, x: mx.array, rows: Rows) -> mx.array:
    """(B, P, J, H, W) and (B, N, H, W) -> (B * N, J, H)."""
    x = x.reshape(-1, *x.shape[2:])
    if rows.few(vectors):
        return (rows.gather_all(vectors) * x[:, None]).sum(axis=-1)
    parts = [(rows.gather(vectors, j) * x).sum(axis=-1) for j in range(vectors.shape[2])]
    return mx.stack(parts, axis=1)


def _to_bytes(weights: mx.array, vectors: mx.array, rows: Rows) -> mx.array:
    """(B * N, J, H) and (B, P, J, H, W) -> (B * N, H, W)."""
    if rows.few(vectors):
        return (weights[..., None] * rows.gather_all(vectors)).sum(axis=1)
    J = vectors.shape[2]
    return _weighted(*_columns(weights), *(rows.gather(vectors, j) for j in range(J)))


def _dots_and_to_bytes(
    vectors: mx.array, x: mx.array, weights: mx.array, rows: Rows
) -> tuple[mx.array, mx.array]:
    """Both, gathering once."""
    x = x.reshape(-1, *x.shape[2:])
    own = [rows.gather(vectors, j) for j in range(vectors.shape[2])]
    dots = mx.stack([(one * x).sum(axis=-1) for one in own], axis=1)
    return dots, _weighted(*_columns(weights), *own)


def _columns(weights: mx.array) -> list[mx.array]:
    return [weights[:, j, :, None] for j in range(weights.shape[1])]


@mx.compile
def _weighted(*parts: mx.array) -> mx.array:
    """Sum of products of the first half with the second."""
    half = len(parts) // 2
    total = parts[0] * parts[half]
    for weight, vectors in zip(parts[1:half], parts[half + 1 :], strict=True):
        total = total + weight * vectors
    return total


def _exp() -> Callable[[mx.array], mx.array]:
    """e^x for x up to 0."""
    return _fast_exp() if fast_math.wanted() else mx.exp


@lru_cache(maxsize=1)
def _fast_exp() -> Callable[[mx.array], mx.array]:
    return mx.compile(fast_math.exp_below)
