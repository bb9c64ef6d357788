"""Which positions see which, and attention over them in memory that grows linearly.

A local layer sees a window, so its attention is computed in blocks of queries, each with the keys
of its own block and of as many before it as the window reaches: N x (window + block) scores instead
of N x N. Attention without a window (the latent transformer's) goes through blocks of queries too,
so that no more than one block's scores exist at a time. Documents packed in one row do not see
each other.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from mlx_companion.blt.fused import MASKED, attend
from mlx_companion.kernels.fast_math import wanted

# Queries per block of attention without a window: on a CPU short ones, which skip most of the
# scores above the diagonal; elsewhere long ones, which keep the processor busy.
_DENSE_BLOCK_CPU = 128
_DENSE_BLOCK = 1024
_SMALLEST_BLOCK = 32


class Sight:
    """What the positions of a batch of rows may attend to; made once, used by every layer.

    Position t sees position s when s <= t, t - s < window, and both belong to one document.

    Args:
        length: L, positions per row.
        window: None for all earlier positions.
        documents: (B, L) int, the document of each position; None when rows are one document.
    """

    def __init__(
        self, length: int, window: int | None = None, documents: mx.array | None = None
    ) -> None:
        self.length = length
        self.window = window if window is not None and window < length else None
        self.documents = documents
        block = _block_size(window) if window is not None else length
        self.block = block
        self._step = _DENSE_BLOCK_CPU if wanted() else _DENSE_BLOCK
        # Blocks only pay when they leave something out.
        blocked = self.window is not None and length > self.window + block
        self.reach = -(-(self.window - 1) // block) if blocked and self.window else 0
        self._bias = self._banded_bias() if blocked else self._sliding_bias()
        self._blocked = blocked

    def attend(self, q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        """Attention: q (B, H, L, W), k and v (B, K, L, W) -> (B, H, L, W)."""
        if self._blocked:
            return self._banded(q, k, v, self._bias)
        step = self._step
        parts = [
            attend(
                q[:, :, at : at + step],
                k[:, :, : at + step],
                v[:, :, : at + step],
                self._dense_bias(at),
            )
            for at in range(0, self.length, step)
        ]
        return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=2)

    def _sliding_bias(self) -> mx.array:
        """(c, L + c): what c queries see of L keys before them and of their own c.

        The bias of every block is a part of it, so that its size grows linearly with L.
        """
        own = np.arange(min(self._step, self.length))
        distance = own[:, None] + self.length - np.arange(self.length + len(own))[None]
        return mx.where(mx.array(_in_sight(distance, self.window)), 0.0, MASKED)

    def _dense_bias(self, start: int) -> mx.array:
        """Bias of the queries from `start` on, one block of them: (l, s) or (B, 1, l, s)."""
        stop = min(start + self._step, self.length)
        first = self.length - start
        bias = self._bias[: stop - start, first : first + stop]
        if self.documents is None:
            return bias
        # Not kept: over all blocks these would be a full mask.
        same = self.documents[:, start:stop, None] == self.documents[:, None, :stop]
        return mx.where(same[:, None], bias, MASKED)

    def _banded_bias(self) -> mx.array:
        """(nb, 1, c, s) without documents, else (nb * B, 1, c, s); c queries, s keys per block."""
        count, block, reach = -(-self.length // self.block), self.block, self.reach
        distance = np.arange(block)[:, None] - np.arange((reach + 1) * block)[None] + reach * block
        key = np.arange(count)[:, None] * block + np.arange((reach + 1) * block) - reach * block
        seen = mx.array(_in_sight(distance, self.window)[None] & (key >= 0)[:, None])
        if self.documents is None:
            return mx.where(seen, 0.0, MASKED)[:, None]
        rows = self.documents.shape[0]
        own = self._blocks(self.documents[:, None, :, None], 0)[..., 0]
        other = self._blocks(self.documents[:, None, :, None], reach)[..., 0]
        same = own.reshape(count, rows, block, 1) == other.reshape(count, rows, 1, -1)
        return mx.where(seen[:, None] & same, 0.0, MASKED).reshape(
            count * rows, 1, block, (reach + 1) * block
        )

    def _banded(self, q: mx.array, k: mx.array, v: mx.array, bias: mx.array) -> mx.array:
        B, H, L, W = q.shape
        blocks = [self._blocks(q, 0), self._blocks(k, self.reach), self._blocks(v, self.reach)]
        if self.documents is None:
            # All rows have the same bias: they go where heads go, and it is not repeated.
            blocks = [x.reshape(len(x), -1, *x.shape[3:]) for x in blocks]
        else:
            blocks = [x.reshape(-1, *x.shape[2:]) for x in blocks]
        out = attend(blocks[0], blocks[1], blocks[2], bias, keep=True).reshape(
            -1, B, H, self.block, W
        )
        return out.transpose(1, 2, 0, 3, 4).reshape(B, H, -1, W)[:, :, :L]

    def _blocks(self, x: mx.array, reach: int) -> mx.array:
        """(B, H, L, W) to (nb, B, H, (reach + 1) * c, W): each block with those before it."""
        B, H, L, W = x.shape
        c = self.block
        count = -(-L // c)
        padded = mx.pad(x, [(0, 0), (0, 0), (reach * c, count * c - L), (0, 0)])
        parts = [
            padded[:, :, i * c : (i + count) * c].reshape(B, H, count, c, W)
            for i in range(reach + 1)
        ]
        joined = parts[0] if reach == 0 else mx.concatenate(parts, axis=3)
        return joined.transpose(2, 0, 1, 3, 4)


def _block_size(window: int) -> int:
    # Small blocks compute fewer scores that are thrown away; large ones are better products.
    return max(_SMALLEST_BLOCK, -(-window // 2))


def _in_sight(distance: np.ndarray, window: int | None) -> np.ndarray:
    seen = distance >= 0
    return seen if window is None else seen & (distance < window)
