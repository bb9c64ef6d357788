"""Sums of weighted bytes by patch, as many small matrix products instead of a scatter.

A row is cut into blocks of c bytes. A patch's first piece reaches from its first byte to the end
of that block; where a patch goes on, the next block's beginning is another piece of it. So there
are P first pieces and at most N / c others, and all shapes are known without looking at the ids.
A piece is a window of c bytes, read in place, with the weights of other patches' bytes set to 0.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from mlx_companion.kernels.patches import highest_so_far, starts


class Pieces(NamedTuple):
    """The pieces of a batch of rows.

    Attributes:
        first: (B, P) int32, where the first piece of each patch begins.
        first_shown: (B, P, c) float32, 1 where a byte of the window belongs to it.
        owner: (B, T) int32, the patch whose piece begins each block, where one goes on there.
        other_shown: (B, T, c) float32, 1 where a byte of the block belongs to that piece.
    """

    first: mx.array
    first_shown: mx.array
    owner: mx.array
    other_shown: mx.array

    @staticmethod
    def of(ids: mx.array, count: int) -> Pieces:
        """Those of ids (B, N), for P patches."""
        B, N = ids.shape
        c = block_size(N, count)
        T = -(-N // c)
        length = (T + 1) * c
        highest = highest_so_far(ids, count)
        first = starts(highest, count)[:, :count]
        padded = mx.pad(ids, [(0, 0), (0, length - N)], constant_values=-1)
        windows = _windows(padded.reshape(-1, 1), c)[..., 0]
        near = windows[first + (mx.arange(B) * length)[:, None]]
        same_block = first[..., None] % c + mx.arange(c) < c
        first_shown = (near == mx.arange(count)[:, None]) & same_block
        owner = mx.maximum(highest[:, ::c], 0)
        goes_on = mx.take_along_axis(first, owner, axis=1) < mx.arange(T) * c
        inside = padded.reshape(B, T + 1, c)[:, :T] == owner[..., None]
        other_shown = inside & goes_on[..., None]
        return Pieces(first, first_shown.astype(mx.float32), owner, other_shown.astype(mx.float32))

    def sum(self, weights: mx.array, x: mx.array) -> mx.array:
        """Sum of weights[t, j] x[t] over the bytes t of each patch.

        Args:
            weights: (B * N, J, H) float32.
            x: (B, N, H, W) float32.

        Returns:
            (B, P, J, H, W).
        """
        B, N, H, W = x.shape
        J, P = weights.shape[1], self.first.shape[1]
        T, c = self.other_shown.shape[1:]
        # Windows reach beyond the last byte.
        length = (T + 1) * c
        by_head = x.reshape(B * N * H, W)[mx.array(_by_head(B, N, H, length))]
        w = mx.pad(weights.reshape(B, N, J, H), [(0, 0), (0, length - N), (0, 0), (0, 0)])
        w = mx.contiguous(w.transpose(0, 3, 2, 1))
        total = self._first(w, by_head).reshape(-1, J * W)
        w = w.reshape(B, H, J, T + 1, c)[:, :, :, :T].swapaxes(2, 3)
        blocks = by_head.reshape(B, H, T + 1, c, W)[:, :, :T]
        others = (w * self.other_shown[:, None, :, None]) @ blocks
        patch = mx.arange(B * H).reshape(B, H, 1) * P + self.owner[:, None]
        total = total.at[patch.reshape(-1)].add(others.reshape(-1, J * W))
        rows = mx.array(_by_patch(B, P, J, H))
        return total.reshape(-1, W)[rows].reshape(B, P, J, H, W)

    def _first(self, w: mx.array, by_head: mx.array) -> mx.array:
        """Sums over first pieces: (B, H, J, length), (B * H * length, W) -> (B * H * P, J, W)."""
        B, H, J, length = w.shape
        c = self.first_shown.shape[-1]
        line = mx.arange(B * H * J).reshape(B, H, 1, J) * length
        own = _windows(w.reshape(-1, 1), c)[..., 0][line + self.first[:, None, :, None]]
        own = own * self.first_shown[:, None, :, None]
        place = mx.arange(B * H).reshape(B, H, 1) * length + self.first[:, None]
        return mx.gather_mm(
            own.reshape(-1, J, c),
            _windows(by_head, c),
            rhs_indices=place.reshape(-1),
        )


def block_size(length: int, count: int) -> int:
    """c: half as long again as the mean patch, so that most patches have few pieces."""
    return min(max(-(-3 * length // (2 * count) // 4) * 4, 4), 32)


def _windows(rows: mx.array, c: int) -> mx.array:
    """Every c neighbouring rows, as a view: (L, W) -> (L - c + 1, c, W)."""
    L, W = rows.shape
    return mx.as_strided(rows, (L - c + 1, c, W), (W, W, 1))


# A transposition as a gather of rows is three times as fast as MLX's copy on a CPU.
@lru_cache(maxsize=16)
def _by_head(batch: int, bytes_: int, heads: int, length: int) -> np.ndarray:
    """Rows of (B, N, H) in the order (B, H, length)."""
    byte = np.minimum(np.arange(length), bytes_ - 1)
    rows = (np.arange(batch)[:, None, None] * bytes_ + byte) * heads + np.arange(heads)[:, None]
    return rows.reshape(-1).astype(np.int32)


@lru_cache(maxsize=16)
def _by_patch(batch: int, count: int, vectors: int, heads: int) -> np.ndarray:
    """Rows of (B, H, P, J) in the order (B, P, J, H)."""
    rows = np.arange(batch * heads * count * vectors, dtype=np.int32)
    return rows.reshape(batch, heads, count, vectors).transpose(0, 2, 3, 1).reshape(-1)
