"""Attention between bytes and patches as kernels: one SIMD group per patch, or byte, and key head.

The encoder's softmax runs over bytes in one walk and leaves each query's log-sum-exp for the
backward pass; the decoder's runs over J scores, which the backward pass computes again. Every
gradient has one writer, so nothing is added atomically and results do not change from run to run.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import mlx.core as mx

from mlx_companion.kernels.launch import Kernel
from mlx_companion.kernels.patch_cross_attention import sources
from mlx_companion.kernels.patches import runs, up_to

# SIMD groups per threadgroup; they share nothing.
_GROUPS = 4

_NAME = "patch_cross_attention"
_ENCODER = Kernel(
    f"{_NAME}_encoder",
    ("q", "k", "v", "ids", "runs", "scale"),
    ("out", "level"),
    sources.ENCODER,
)
_ENCODER_BACKWARD = Kernel(
    f"{_NAME}_encoder_backward",
    ("q", "k", "v", "ids", "runs", "scale", "dout", "out", "level"),
    ("dq", "dk", "dv"),
    sources.ENCODER_BACKWARD,
)
_DECODER = Kernel(f"{_NAME}_decoder", ("q", "k", "v", "ids", "scale"), ("out",), sources.DECODER)
_DECODER_BACKWARD = Kernel(
    f"{_NAME}_decoder_backward",
    ("q", "k", "v", "ids", "runs", "scale", "dout"),
    ("dq", "dk", "dv"),
    sources.DECODER_BACKWARD,
)


def attend(
    q: mx.array, k: mx.array, v: mx.array, ids: mx.array, side: str, scale: float, impl: str
) -> mx.array:
    """See `patch_cross_attention`."""
    factor = mx.array([scale], dtype=mx.float32)
    if side == "encoder":
        bounds = runs(ids, q.shape[1], impl)
        return _encoder(impl)(q, k, v, ids, bounds, factor)[0]
    bounds = runs(ids, k.shape[1], impl)
    return _decoder(impl)(q, k, v, ids, bounds, factor)


@lru_cache(maxsize=8)
def _encoder(impl: str) -> Callable[..., Any]:
    @mx.custom_function
    def function(q: mx.array, k: mx.array, v: mx.array, *rest: mx.array) -> Any:
        return _launch(
            _ENCODER,
            impl,
            [q, k, v, *rest],
            (q, k),
            [q.shape, q.shape[:-1]],
            [q.dtype, mx.float32],
        )

    @function.vjp
    def backward(primals: Any, cotangents: Any, outputs: Any) -> Any:
        q, k, _, *rest = primals
        inputs = [*primals, cotangents[0].astype(q.dtype), *outputs]
        slopes = _launch_backward(_ENCODER_BACKWARD, impl, inputs, (q, k))
        return *slopes, *map(mx.zeros_like, rest)

    return function


@lru_cache(maxsize=8)
def _decoder(impl: str) -> Callable[..., Any]:
    @mx.custom_function
    def function(
        q: mx.array, k: mx.array, v: mx.array, ids: mx.array, bounds: mx.array, scale: mx.array
    ) -> Any:
        inputs = [q, k, v, ids, scale]
        return _launch(_DECODER, impl, inputs, (k, q), [q.shape], [q.dtype], q.shape[1])[0]

    @function.vjp
    def backward(primals: Any, cotangent: Any, output: Any) -> Any:
        q, k, _, *rest = primals
        inputs = [*primals, cotangent.astype(q.dtype)]
        slopes = _launch_backward(_DECODER_BACKWARD, impl, inputs, (k, q))
        return *slopes, *map(mx.zeros_like, rest)

    return function


def _launch_backward(
    kernel: Kernel, impl: str, inputs: list[mx.array], sides: tuple[mx.array, mx.array]
) -> list[mx.array]:
    """Gradients of q, k and v; 0 where no patch writes, for bytes that are left out."""
    shapes, dtypes = [x.shape for x in inputs[:3]], [x.dtype for x in inputs[:3]]
    return _launch(kernel, impl, inputs, sides, shapes, dtypes, init_value=0.0)


def _launch(
    kernel: Kernel,
    impl: str,
    inputs: list[mx.array],
    sides: tuple[mx.array, mx.array],
    shapes: list[tuple[int, ...]],
    dtypes: list[mx.Dtype],
    rows: int | None = None,
    init_value: float | None = None,
) -> list[mx.array]:
    """One SIMD group per batch row, key head and patch (or one of `rows` bytes).

    Args:
        sides: what belongs to patches (B, P, J, heads, W), and to bytes (B, N, heads, W).
    """
    patches, _ = sides
    B, P, J, _, W = patches.shape
    query_heads, heads = inputs[0].shape[-2], inputs[1].shape[-2]
    return kernel(
        inputs,
        impl=impl,
        template=[
            ("T", inputs[0].dtype),
            ("J", J),
            ("G", query_heads // heads),
            ("K", heads),
            ("W", W),
            ("R", -(-W // 32)),
        ],
        grid=(32, up_to(rows or P, _GROUPS), B * heads),
        threadgroup=(32, _GROUPS, 1),
        shapes=shapes,
        dtypes=dtypes,
        init_value=init_value,
    )
