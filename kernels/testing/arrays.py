"""Arrays of MLX as bytes, and back, for every dtype that kernels take."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import mlx.core as mx
import numpy as np


@dataclass(frozen=True)
class Held:
    """An input: its bytes, where element 0 lies in them, and its strides in elements."""

    bytes: np.ndarray
    lead: int
    item: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: mx.Dtype


def hold(x: mx.array, row_contiguous: bool) -> Held:
    """An evaluated array for a kernel; copied to row order when that is asked for."""
    view = np.array(_viewable(x), copy=False)
    if row_contiguous or view.size == 0:
        view = np.ascontiguousarray(view).reshape(x.shape)
    low = sum(min(0, (n - 1) * s) for n, s in zip(view.shape, view.strides, strict=True))
    high = sum(max(0, (n - 1) * s) for n, s in zip(view.shape, view.strides, strict=True))
    size = high - low + view.itemsize if view.size else 0
    # The span from the lowest to the highest byte that some index reaches.
    span = np.frombuffer(ctypes.string_at(view.ctypes.data + low, size), np.uint8)
    strides = tuple(s // view.itemsize for s in view.strides)
    return Held(span, -low, view.itemsize, tuple(x.shape), strides, x.dtype)


def poisoned(shape: tuple[int, ...], dtype: mx.Dtype, init_value: float | None) -> np.ndarray:
    """An output as the kernel finds it: NaN (all bits set), or the value it asked for."""
    like = np.array(_viewable(mx.zeros((), dtype)))
    if init_value is None:
        return np.frombuffer(
            bytearray(b"\xff" * (int(np.prod(shape)) * like.itemsize)), like.dtype
        ).reshape(shape)
    filled = np.array(_viewable(mx.array(init_value).astype(dtype)))
    return np.full(shape, filled, like.dtype)


def from_bytes(x: np.ndarray, dtype: mx.Dtype) -> mx.array:
    """An output as MLX's array."""
    made = mx.array(x)
    return made.view(dtype) if made.dtype != dtype else made


def _viewable(x: mx.array) -> mx.array:
    # NumPy has no bfloat16; and it would take a bool's poison for a broken truth value.
    if x.dtype == mx.bfloat16:
        return x.view(mx.uint16)
    return x.view(mx.uint8) if x.dtype == mx.bool_ else x
