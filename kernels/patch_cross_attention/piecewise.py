"""Sums of weighted bytes by patch, as many small matrix products instead of a scatter.

A row is cut into blocks of c bytes. A patch's first piece reaches from its first byte to the end
of that block; where a patch goes on, the next block's beginning is another piece of it. So there
are P first pieces and at most N / c others, and all shapes are known without looking at the ids.
A piece is a window of c bytes, read in place, with the weights of other patches' bytes set to 0.
"""

from __future__ import annotations

from functools import lru_cache

import mlx.core as mx
import numpy as np

from mlx_companion.kernels.patches import highest_so_far


def to_patches(weights: mx.array, x: mx.array, ids: mx.array, count: int) -> mx.array:
    """Sum of weights[t, j] x[t] over the bytes t of each patch.

    Args:
        weights: (B * N, J, H) float32.
        x: (B, N, H, W) float32.
        ids: (B, N) int32.
        count: P.

    Returns:
        (B, P, J, H, W).
    """
    B, N, H, W = x.shape
    J = weights.shape[1]
    c = block_size(N, count)
    T = -(-N // c)
    length = (T + 1) * c
    first, first_shown, owner, other_shown = _pieces(ids, count, c)
    by_head = x.reshape(B * N * H, W)[mx.array(_bytes_by_head(B, N, H, length))]
    by_head = by_head.reshape(B, H, T + 1, c, W)
    w = mx.pad(weights.reshape(B, N, J, H), [(0, 0), (0, length - N), (0, 0), (0, 0)])
    w = mx.contiguous(w.transpose(0, 3, 2, 1))
    heads = mx.arange(B * H).reshape(B, H)[..., None]

    place = heads * length + first[:, None]
    lines = (mx.arange(B * H * J).reshape(B, H, 1, J) * length) + first[:, None, :, None]
    own = _windows(w.reshape(-1, 1), c)[lines][..., 0] * first_shown[:, None, :, None]
    total = mx.gather_mm(
        own.reshape(B * H * count, J, c),
        _windows(by_head.reshape(-1, W), c),
        rhs_indices=place.reshape(-1),
    )
    others = (
        w.reshape(B, H, J, T + 1, c)[:, :, :, :T].swapaxes(2, 3) * other_shown[:, None, :, None]
    )
    added = others @ by_head[:, :, :T]
    total = total.reshape(-1, J * W)
    total = total.at[(heads * count + owner[:, None]).reshape(-1)].add(added.reshape(-1, J * W))
    return total.reshape(-1, W)[mx.array(_patches_by_row(B, count, J, H))].reshape(
        B, count, J, H, W
    )


def block_size(length: int, count: int) -> int:
    """c: half as long again as the mean patch, so that most patches have few pieces."""
    return min(max(-(-3 * length // (2 * count) // 4) * 4, 4), 32)


def _pieces(ids: mx.array, count: int, c: int) -> tuple[mx.array, mx.array, mx.array, mx.array]:
    """The pieces of each row.

    Returns:
        (B, P) int32, where the first piece of each patch begins; (B, P, c) float32, 1 where a byte
        belongs to it; (B, T) int32, the patch of the piece that begins each block, where a patch
        goes on there; (B, T, c) float32, 1 where a byte belongs to that.
    """
    B, N = ids.shape
    T = -(-N // c)
    highest = highest_so_far(ids, count)
    first = _starts(highest, count)
    padded = mx.pad(ids, [(0, 0), (0, (T + 1) * c - N)], constant_values=-1)
    windows = _windows(padded.reshape(-1, 1), c)[..., 0]
    near = windows[first + (mx.arange(B) * (T + 1) * c)[:, None]]
    same_block = first[..., None] % c + mx.arange(c) < c
    first_shown = (near == mx.arange(count)[:, None]) & same_block
    owner = mx.maximum(highest[:, ::c], 0)
    goes_on = mx.take_along_axis(first, owner, axis=1) < mx.arange(T) * c
    blocks = padded.reshape(B, T + 1, c)[:, :T]
    other_shown = (blocks == owner[..., None]) & goes_on[..., None]
    return first, first_shown.astype(mx.float32), owner, other_shown.astype(mx.float32)


def _starts(highest: mx.array, count: int) -> mx.array:
    """(B, P): how many bytes of the row come before those of each patch."""
    B = highest.shape[0]
    place = (highest + 1 + (mx.arange(B) * (count + 1))[:, None]).reshape(-1)
    sizes = mx.zeros((B * (count + 1),), dtype=mx.int32).at[place].add(1)
    return mx.cumsum(sizes.reshape(B, count + 1), axis=1)[:, :count]


def _windows(rows: mx.array, c: int) -> mx.array:
    """Every c neighbouring rows, as a view: (L, W) -> (L - c + 1, c, W)."""
    L, W = rows.shape
    return mx.as_strided(rows, (L - c + 1, c, W), (W, W, 1))


# A transposition as a gather of rows is three times as fast as MLX's copy on a CPU.
@lru_cache(maxsize=16)
def _bytes_by_head(B: int, N: int, H: int, length: int) -> np.ndarray:
    byte = np.minimum(np.arange(length), N - 1)
    rows = (np.arange(B)[:, None, None] * N + byte) * H + np.arange(H)[:, None]
    return rows.reshape(-1).astype(np.int32)


@lru_cache(maxsize=16)
def _patches_by_row(B: int, P: int, J: int, H: int) -> np.ndarray:
    rows = np.arange(B * H * P * J, dtype=np.int32).reshape(B, H, P, J)
    return rows.transpose(0, 2, 3, 1).reshape(-1)
