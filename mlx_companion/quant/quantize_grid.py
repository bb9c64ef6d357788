"""Codes, scales and biases of one matrix: found, refitted, and rounded with error feedback.

    grid = nearest(weight, Packing(4, 64))               # as MLX, or better where that is possible
    grid = with_feedback(weight, Packing(3, 64), moment) # GPTQ: later columns make up for earlier
    grid.dense(); grid.pack()

MLX chooses a group's scale from its largest weight and moves it so that zero is on the grid. For
weights that already lie on another grid (a GGUF file's) that is a loss, 0.4 % of the weights' size
at 4 bits, where none is needed. Here several grids are tried on each group (MLX's, from the least
weight to the largest, and narrower ones that clip), each is refitted by least squares, and the one
with the smallest weighted error stays.

Source: Frantar et al., "GPTQ", 2022, arXiv 2210.17323, for `with_feedback`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_companion.quant.levels import Packing

Array = np.ndarray[Any, Any]

_SHRINKS = (1.0, 0.9, 0.8, 0.7)
_REFITS = 2
_DAMPING = 0.01
_ROWS_AT_ONCE = 4096
_TINY = 1e-12


@dataclass(frozen=True)
class Grid:
    """One matrix (R, C) in MLX's affine form.

    Attributes:
        codes: (R, C) uint8.
        scales, biases: (R, C / group_size) float32, exact in 16 bits.
        packing: bits and group size.
    """

    codes: Array
    scales: Array
    biases: Array
    packing: Packing

    def dense(self) -> Array:
        """The matrix that it stands for, (R, C) float32."""
        rows, columns = self.codes.shape
        codes = self.codes.reshape(rows, -1, self.packing.group_size).astype(np.float32)
        return (codes * self.scales[..., None] + self.biases[..., None]).reshape(rows, columns)

    def pack(self, dtype: mx.Dtype = mx.float16) -> tuple[mx.array, mx.array, mx.array]:
        """Weight (R, C * bits / 32) uint32, scales and biases, as `mx.dequantize` takes them."""
        scales, biases = (mx.array(a).astype(dtype) for a in (self.scales, self.biases))
        return mx.array(pack_codes(self.codes, self.packing.bits)), scales, biases


def pack_codes(codes: Array, bits: int) -> Array:
    """MLX's packing: the codes' bits one after the other, lowest first, in 32-bit words.

    mlx-lm's GPTQ packs 2, 4 and 8 bits only, because it gives each word whole codes.

    Args:
        codes: (R, C) uint8 below 2^bits.
        bits: 2, 3, 4, 5, 6 or 8.

    Returns:
        (R, C * bits / 32) uint32.
    """
    parts = []
    for start in range(0, len(codes), _ROWS_AT_ONCE):
        rows = codes[start : start + _ROWS_AT_ONCE]
        single = (rows[..., None] >> np.arange(bits, dtype=np.uint8)) & 1
        packed = np.packbits(single.reshape(len(rows), -1), axis=1, bitorder="little")
        parts.append(packed.view("<u4"))
    return np.concatenate(parts)


def unpack_codes(words: Array, bits: int) -> Array:
    """The inverse of `pack_codes`: (R, words) uint32 -> (R, C) uint8."""
    single = np.unpackbits(
        np.ascontiguousarray(words).view(np.uint8), axis=1, bitorder="little"
    ).reshape(len(words), -1, bits)
    return (single << np.arange(bits, dtype=np.uint8)).sum(axis=2, dtype=np.uint8)


def nearest(
    weight: Array,
    packing: Packing,
    importance: Array | None = None,
    *,
    search: bool = True,
    dtype: mx.Dtype = mx.float16,
) -> Grid:
    """Round each weight to the nearest point of its group's grid.

    Args:
        weight: (R, C) float32.
        packing: affine.
        importance: (C,) what a squared error in each column costs; None for 1.
        search: try several grids; else only MLX's, which gives what `mx.quantize` gives.
        dtype: of scales and biases.
    """
    parts = [
        _nearest(weight[start : start + _ROWS_AT_ONCE], packing, importance, search, dtype)
        for start in range(0, len(weight), _ROWS_AT_ONCE)
    ]
    codes, scales, biases = (np.concatenate([getattr(p, n) for p in parts]) for n in _FIELDS)
    return Grid(codes, scales, biases, packing)


_FIELDS = ("codes", "scales", "biases")


def _nearest(
    weight: Array, packing: Packing, importance: Array | None, search: bool, dtype: mx.Dtype
) -> Grid:
    rows = len(weight)
    groups = weight.reshape(-1, packing.group_size)
    weights = None
    if importance is not None:
        own = importance.reshape(-1, packing.group_size) + _TINY * importance.mean() + 1e-30
        weights = np.tile(own / own.mean(axis=1, keepdims=True), (rows, 1)).astype(np.float32)
    scales, biases = fit_groups(groups, packing.bits, weights, search=search, dtype=dtype)
    codes = encode(groups, scales, biases, packing.bits)
    shape = (rows, -1)
    return Grid(codes.reshape(weight.shape), scales.reshape(shape), biases.reshape(shape), packing)


def fit_groups(
    groups: Array,
    bits: int,
    weights: Array | None = None,
    *,
    search: bool = True,
    dtype: mx.Dtype = mx.float16,
) -> tuple[Array, Array]:
    """A scale and a bias for each group, exact in 16 bits.

    Args:
        groups: (N, group size) float32.
        bits: per code.
        weights: (N, group size) what a squared error costs; None for 1.
        search: try several grids, see the module.
        dtype: of scales and biases.

    Returns:
        Scales and biases (N,) float32.
    """
    scales, biases = _mlx_grid(groups, bits, dtype)
    if not search:
        return scales, biases
    least = _error(groups, scales, biases, bits, weights)
    low, high = groups.min(axis=1), groups.max(axis=1)
    middle, span = (low + high) / 2, high - low

    def consider(tried: tuple[Array, Array]) -> None:
        nonlocal scales, biases, least
        error = _error(groups, *tried, bits, weights)
        better = error < least
        scales, biases = np.where(better, tried[0], scales), np.where(better, tried[1], biases)
        least = np.minimum(least, error)

    for shrink in _SHRINKS:
        step, start = span * shrink / (2**bits - 1), middle - span * shrink / 2
        consider((_half(step, dtype), _half(start, dtype)))
        if not least.any():
            return scales, biases
    for _ in range(_REFITS):
        consider(_refitted(groups, scales, biases, bits, weights, dtype))
    return scales, biases


def encode(groups: Array, scales: Array, biases: Array, bits: int) -> Array:
    """The nearest codes (N, group size) uint8 of weights on given grids."""
    safe = np.where(scales == 0, np.float32(1), scales)
    codes = np.rint((groups - biases[:, None]) / safe[:, None])
    return np.clip(codes, 0, 2**bits - 1).astype(np.uint8)


def _mlx_grid(groups: Array, bits: int, dtype: mx.Dtype) -> tuple[Array, Array]:
    _, scales, biases = mx.quantize(mx.array(groups), group_size=groups.shape[1], bits=bits)
    return _half(np.array(scales)[:, 0], dtype), _half(np.array(biases)[:, 0], dtype)


def _refitted(
    groups: Array,
    scales: Array,
    biases: Array,
    bits: int,
    weights: Array | None,
    dtype: mx.Dtype,
) -> tuple[Array, Array]:
    """Least squares for scale and bias, the codes as they are."""
    codes = encode(groups, scales, biases, bits).astype(np.float32)
    w = np.ones_like(groups) if weights is None else weights
    total = w.sum(axis=1)
    mean_code, mean = (w * codes).sum(axis=1) / total, (w * groups).sum(axis=1) / total
    spread = codes - mean_code[:, None]
    variance = (w * spread * spread).sum(axis=1)
    slope = (w * spread * groups).sum(axis=1) / np.maximum(variance, _TINY)
    slope = _half(np.where(variance > _TINY, slope, scales), dtype)
    return slope, _half(mean - slope * mean_code, dtype)


def _error(groups: Array, scales: Array, biases: Array, bits: int, weights: Array | None) -> Array:
    codes = encode(groups, scales, biases, bits)
    difference = groups - (codes * scales[:, None] + biases[:, None])
    difference *= difference
    if weights is not None:
        difference *= weights
    error: Array = difference.sum(axis=1)
    return error


def _half(values: Array, dtype: mx.Dtype) -> Array:
    """Rounded to what 16 bits hold."""
    if dtype == mx.float16:
        return values.astype(np.float16).astype(np.float32)
    exact = mx.array(values.astype(np.float32)).astype(dtype)
    return np.array(exact.astype(mx.float32))


def with_feedback(
    weight: Array, packing: Packing, moment: Array, dtype: mx.Dtype = mx.float16
) -> Grid:
    """Round column by column; what a column gets wrong, the columns after it make up for.

    Args:
        weight: (R, C) float32.
        packing: affine; its groups divide C.
        moment: (C, C) sum or mean of x x^T over the inputs of the layer.
        dtype: of scales and biases.
    """
    factor = inverse_factor(moment)
    importance = np.ascontiguousarray(1 / np.diag(factor) ** 2)
    rest = np.ascontiguousarray(weight.T, dtype=np.float32).copy()
    codes = np.empty(weight.shape, np.uint8)
    size, columns, rows = packing.group_size, weight.shape[1], weight.shape[0]
    scales, biases = (np.empty((rows, columns // size), np.float32) for _ in range(2))
    for start in range(0, columns, size):
        part = slice(start, start + size)
        own = np.tile(importance[part] / importance[part].mean(), (rows, 1)).astype(np.float32)
        groups = np.ascontiguousarray(rest[part].T)
        fitted = fit_groups(groups, packing.bits, own, dtype=dtype)
        group = start // size
        scales[:, group], biases[:, group] = fitted
        own_codes, errors = _round_group(rest[part], *fitted, packing.bits, factor[part, part])
        codes[:, part] = own_codes.T
        rest[start + size :] -= factor[part, start + size :].T @ errors
    return Grid(codes, scales, biases, packing)


def _round_group(
    block: Array, scales: Array, biases: Array, bits: int, factor: Array
) -> tuple[Array, Array]:
    """Codes (g, R) and scaled errors (g, R) of the columns `block` (g, R) of one group."""
    block, errors = block.copy(), np.empty_like(block)
    codes = np.empty(block.shape, np.uint8)
    safe, most = np.where(scales == 0, np.float32(1), scales), 2**bits - 1
    for k in range(len(block)):
        code = np.clip(np.rint((block[k] - biases) / safe), 0, most)
        codes[k] = code
        errors[k] = (block[k] - (code * scales + biases)) / factor[k, k]
        block[k + 1 :] -= np.outer(factor[k, k + 1 :], errors[k])
    return codes, errors


def inverse_factor(moment: Array) -> Array:
    """U, upper triangular, with U^T U the inverse of the damped moment: (C, C) float32.

    Inputs that never occur, and fewer tokens than columns, leave the moment singular; damping by
    a share of its mean diagonal, more where that does not do, makes it regular.
    """
    from scipy.linalg import cholesky, solve_triangular

    square = np.asarray(moment, np.float64)
    mean = float(np.diag(square).mean()) or 1.0
    for damping in (_DAMPING, 0.1, 1.0):
        try:
            lower = cholesky(square + damping * mean * np.eye(len(square)), lower=True)
        except np.linalg.LinAlgError:
            continue
        inverse = solve_triangular(lower, np.eye(len(square)), lower=True)
        found: Array = cholesky(inverse.T @ inverse, lower=False).astype(np.float32)
        return found
    return np.eye(len(square), dtype=np.float32)


def output_error(weight: Array, grid: Grid, moment: Array) -> float:
    """Sum of squared output errors, trace(D M D^T) with D what rounding changed."""
    difference = (weight - grid.dense()).astype(np.float32)
    return float(np.einsum("ij,ij->", difference @ moment.astype(np.float32), difference))


def with_scales(grid: Grid, scales: Array, biases: Array, dtype: mx.Dtype = mx.float16) -> Grid:
    """The same codes on other grids."""
    return replace(grid, scales=_half(scales, dtype), biases=_half(biases, dtype))
