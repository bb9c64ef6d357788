"""Exponentials that do not take half of the time: MLX operations for Linux CPUs.

MLX's Linux CPU backend computes `exp` (and with it sigmoid, SiLU and softmax) one element at a
time, at 8 to 13 ns each; additions and products are vectorized, at 0.1 ns. For a model of 135M
parameters that is as much time as all matrix products together. Here `exp` is built from the fast
operations (range reduction and a polynomial, relative error below 4e-6 in its range), and SwiGLU
and attention are built on it, with gradients written out so that little is kept for the backward
pass.

    with fast_cpu(model):           # puts them in place of mlx-lm's; nothing changes elsewhere
        loss = train(model)

Where MLX has vectorized exponentials (Apple's, any GPU) the context changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_companion.kernels.fast_math import raw_sigmoid, raw_softmax, wanted
from mlx_companion.models.swapped import ATTENTION, SWIGLU, functions_of, swapped

_MASKED = -1e9


@mx.custom_function
def _swiglu(gate: mx.array, x: mx.array) -> mx.array:
    return gate * raw_sigmoid(gate) * x


@_swiglu.vjp
def _swiglu_vjp(primals: Any, cotangent: mx.array, output: mx.array) -> Any:
    gate, x = primals
    s = raw_sigmoid(gate)
    through = cotangent * s
    return through * x * (1 + gate * (1 - s)), through * gate


@mx.custom_function
def _attend(q: mx.array, k: mx.array, v: mx.array, bias: mx.array) -> mx.array:
    return _weights(q, k, bias) @ v


@_attend.vjp
def _attend_vjp(primals: Any, cotangent: mx.array, output: mx.array) -> Any:
    # The weights are computed again: keeping them would cost H * L floats per token and layer.
    q, k, v, bias = primals
    return *_attend_gradient(q, k, v, bias, cotangent, output), mx.zeros_like(bias)


def _attend_gradient(
    q: mx.array, k: mx.array, v: mx.array, bias: mx.array, cotangent: mx.array, output: mx.array
) -> tuple[mx.array, mx.array, mx.array]:
    p = _weights(q, k, bias)
    dv = p.swapaxes(-1, -2) @ cotangent
    ds = cotangent @ v.swapaxes(-1, -2)
    ds = p * (ds - (cotangent * output).sum(axis=-1, keepdims=True))
    return ds @ k, ds.swapaxes(-1, -2) @ q, dv


def swiglu(gate: mx.array, x: mx.array) -> mx.array:
    """gate * sigmoid(gate) * x, elementwise; in place of `mlx_lm.models.activations.swiglu`."""
    if gate.dtype != mx.float32 or x.dtype != mx.float32:
        return nn.silu(gate) * x
    result: Any = _swiglu(gate, x)
    return result


def attention(
    queries: mx.array, keys: mx.array, values: mx.array, scale: float, mask: str | mx.array | None
) -> mx.array:
    """Grouped-query attention in float32.

    Args:
        queries: (B, H, L, D).
        keys, values: (B, K, S, D), K divides H, S >= L.
        scale: of the scores, 1 / sqrt(D) as a rule.
        mask: None; "causal", the last query seeing all keys; or (L, S) or (B, 1, L, S), bool or
            additive.

    Returns:
        (B, H, L, D).
    """
    B, H, L, D = queries.shape
    K, S = keys.shape[1], keys.shape[2]
    # Queries that share a key head are stacked, so that each product is one larger matrix.
    folded = (queries * scale).reshape(B, K, H // K * L, D)
    result: Any = _attend(folded, keys, values, _bias(mask, L, S))
    return result.reshape(B, H, L, D)


def attend(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    scale: float,
    mask: str | mx.array | None,
    sinks: mx.array | None = None,
) -> mx.array:
    """`attention` where it is faster, else MLX's own; for use where gradients are written out.

    Args:
        queries, keys, values, scale, mask: as of `attention`.
        sinks: (H,) scores of attending to nothing.
    """
    if sinks is None and _ours(queries, keys, values):
        return attention(queries, keys, values, scale, mask)
    return mx.fast.scaled_dot_product_attention(
        queries, keys, values, scale=scale, mask=mask, sinks=sinks
    )


def attend_gradient(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    scale: float,
    mask: str | mx.array | None,
    cotangent: mx.array,
    output: mx.array,
) -> tuple[mx.array, mx.array, mx.array]:
    """Gradients of `attend` for queries, keys and values.

    Args:
        queries, keys, values, scale, mask: as given to `attend`.
        cotangent, output: (B, H, L, E).
    """
    if not _ours(queries, keys, values):
        _, (dq, dk, dv) = mx.vjp(
            lambda q, k, v: attend(q, k, v, scale, mask), [queries, keys, values], [cotangent]
        )
        return dq, dk, dv
    B, H, L, D = queries.shape
    K, S = keys.shape[1], keys.shape[2]
    folded = (queries * scale).reshape(B, K, H // K * L, D)
    c, o = (x.reshape(B, K, H // K * L, -1) for x in (cotangent, output))
    dq, dk, dv = _attend_gradient(folded, keys, values, _bias(mask, L, S), c, o)
    return dq.reshape(B, H, L, D) * scale, dk, dv


def causal_mask(
    queries: int, keys: int, window: int | None = None, dtype: mx.Dtype = mx.float32
) -> str | mx.array:
    """A mask for `attend`: the last query sees all keys, or as many as the window lets it.

    Args:
        queries, keys: L and S.
        window: a query sees so many keys, its own included; None for all.
        dtype: of the queries.

    Returns:
        "causal" where that says it all and an array gains nothing; else (L, S), to be used for all
        layers: additive where our own attention adds it, elsewhere bool.
    """
    ours = wanted() and dtype == mx.float32
    if not ours and (window is None or window >= keys):
        return "causal"
    behind = mx.arange(keys - queries, keys)[:, None] - mx.arange(keys)[None]
    free = behind >= 0 if window is None else (behind >= 0) & (behind < window)
    return mx.where(free, 0.0, _MASKED) if ours else free


def _ours(queries: mx.array, keys: mx.array, values: mx.array) -> bool:
    return wanted() and queries.dtype == keys.dtype == values.dtype == mx.float32


@contextmanager
def fast_cpu(model: nn.Module, enabled: bool | None = None) -> Iterator[bool]:
    """Run a model's SwiGLU and attention with the functions above inside the block.

    Results agree to float32 rounding, and other threads run as before.

    Args:
        model: an mlx-lm model.
        enabled: None for "where it is faster" (see `wanted`).

    Yields:
        Whether anything was replaced.
    """
    active = wanted() if enabled is None else enabled
    now = functions_of(model) if active else {}
    with swapped({place: _REPLACEMENTS[place.name](function) for place, function in now.items()}):
        yield bool(now)


def _weights(q: mx.array, k: mx.array, bias: mx.array) -> mx.array:
    """Attention weights: q (B, K, R L, D), k (B, K, S, D), bias (L, S) or (B, 1, 1, L, S)."""
    B, K, RL, _ = q.shape
    L, S = bias.shape[-2:]
    scores = (q @ k.swapaxes(-1, -2)).reshape(B, K, RL // L, L, S) + bias
    return raw_softmax(scores).reshape(B, K, RL, S)


def _bias(mask: str | mx.array | None, queries: int, keys: int) -> mx.array:
    if mask is None:
        return mx.zeros((queries, keys))
    if isinstance(mask, str):
        mask = mx.arange(keys - queries, keys)[:, None] >= mx.arange(keys)[None]
    if mask.dtype == mx.bool_:
        mask = mx.where(mask, 0.0, _MASKED)
    mask = mask.astype(mx.float32)
    return mask if mask.ndim == 2 else mask[:, :, None]


def _attention_for(original: Callable[..., mx.array]) -> Callable[..., mx.array]:
    def scaled_dot_product_attention(
        queries: mx.array,
        keys: Any,
        values: Any,
        cache: Any,
        scale: float,
        mask: Any,
        sinks: mx.array | None = None,
    ) -> mx.array:
        simple = (
            sinks is None
            and isinstance(keys, mx.array)
            and queries.dtype == keys.dtype == values.dtype == mx.float32
            and (mask is None or isinstance(mask, str) or _plain(mask, queries))
        )
        if not simple:
            return original(queries, keys, values, cache, scale, mask, sinks)
        return attention(queries, keys, values, scale, mask)

    return scaled_dot_product_attention


def _plain(mask: mx.array, queries: mx.array) -> bool:
    """Whether a mask is the same for all heads."""
    return mask.ndim == 2 or (mask.ndim == 4 and mask.shape[1] == 1)


_REPLACEMENTS: dict[str, Callable[[Any], Any]] = {
    SWIGLU: lambda original: swiglu,
    ATTENTION: _attention_for,
}
