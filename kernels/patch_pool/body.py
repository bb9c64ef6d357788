"""Pooling as a kernel: one thread per patch and channel walks over the bytes of its patch.

The forward pass of a maximum also writes which byte had it, so that the backward pass is one
comparison per byte and channel.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import mlx.core as mx

from mlx_companion.kernels.launch import Kernel
from mlx_companion.kernels.patches import runs, up_to

_MODES = {"max": 0, "mean": 1, "sum": 2}
_THREADS = 128

_FORWARD = Kernel(
    "patch_pool",
    ("h", "ids", "runs"),
    ("pooled", "first"),
    """
    uint d = thread_position_in_grid.x;
    uint p = thread_position_in_grid.y;
    uint b = thread_position_in_grid.z;
    uint N = h_shape[1];
    uint D = h_shape[2];
    uint P = runs_shape[1];
    if (d >= D) return;
    uint stop = runs[(b * P + p) * 2 + 1];
    float result = 0.0f;
    int seen = 0;
    int best = -1;
    for (uint t = runs[(b * P + p) * 2]; t < stop; ++t) {
        // Bytes that are left out may lie between those of a patch.
        if (ids[b * N + t] != int(p)) continue;
        float x = float(h[(b * N + t) * D + d]);
        if (MODE == 0) {
            // The first NaN stays, as in a maximum by MLX.
            if (seen == 0 || x > result || (x != x && result == result)) {
                result = x;
                best = int(t);
            }
        } else {
            result += x;
        }
        ++seen;
    }
    if (MODE == 1 && seen > 0) result = result / float(seen);
    uint at = (b * P + p) * D + d;
    pooled[at] = T(result);
    first[at] = MODE == 0 ? best : seen;
    """,
)

_BACKWARD = Kernel(
    "patch_pool_backward",
    ("slope", "ids", "first"),
    ("dh",),
    """
    uint d = thread_position_in_grid.x;
    uint t = thread_position_in_grid.y;
    uint b = thread_position_in_grid.z;
    uint P = slope_shape[1];
    uint D = slope_shape[2];
    uint N = ids_shape[1];
    if (d >= D) return;
    int p = ids[b * N + t];
    float result = 0.0f;
    if (p >= 0 && p < int(P)) {
        uint at = (b * P + p) * D + d;
        float own = float(slope[at]);
        if (MODE == 0) result = first[at] == int(t) ? own : 0.0f;
        else if (MODE == 1) result = own / float(first[at]);
        else result = own;
    }
    dh[(b * N + t) * D + d] = T(result);
    """,
)


def pool(h: mx.array, ids: mx.array, count: int, mode: str, impl: str) -> mx.array:
    """See `patch_pool`."""
    return _function(mode, impl)(h, ids, runs(ids, count, impl))[0]


@lru_cache(maxsize=16)
def _function(mode: str, impl: str) -> Callable[..., Any]:
    @mx.custom_function
    def function(h: mx.array, ids: mx.array, bounds: mx.array) -> Any:
        B, _, D = h.shape
        shape = (B, bounds.shape[1], D)
        return _launch(
            _FORWARD, mode, impl, [h, ids, bounds], shape, [shape, shape], [h.dtype, mx.int32]
        )

    @function.vjp
    def backward(primals: Any, cotangents: Any, outputs: Any) -> Any:
        h, ids, bounds = primals
        slope = cotangents[0].astype(h.dtype)
        dh = _launch(_BACKWARD, mode, impl, [slope, ids, outputs[1]], h.shape, [h.shape], [h.dtype])
        return dh[0], mx.zeros_like(ids), mx.zeros_like(bounds)

    return function


def _launch(
    kernel: Kernel,
    mode: str,
    impl: str,
    inputs: list[mx.array],
    shape: tuple[int, ...],
    shapes: list[tuple[int, ...]],
    dtypes: list[mx.Dtype],
) -> list[mx.array]:
    """One thread per element of (B, rows, D)."""
    B, rows, D = shape
    threads = min(_THREADS, up_to(D, 32))
    return kernel(
        inputs,
        impl=impl,
        template=[("T", inputs[0].dtype), ("MODE", _MODES[mode])],
        grid=(up_to(D, threads), rows, B),
        threadgroup=(threads, 1, 1),
        shapes=shapes,
        dtypes=dtypes,
    )
