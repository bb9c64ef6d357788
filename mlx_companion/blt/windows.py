"""A text of any length as overlapping windows that fit a model's context.

A window is BOS and then bytes of the text, as a document of its own. Its last prediction is of the
byte behind it, so a window of `context` positions predicts `context` bytes. Each window counts only
the predictions that the one before it did not make: every byte is predicted once, and every byte
behind the first `context` with at least `context - stride` bytes in front of it.

    for batch in window_batches(len(ids), context=512, stride=256, batch_rows=8):
        logits = model(mx.array(batch.inputs(ids, bos=BOS)))      # (B, N, V)
        counted = values[batch.counted]                           # (B, N) -> (count,)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mlx_companion.errors import ConfigError

# Positions that a model runs over at a time by default: enough to fill a CPU, some MB of logits.
_POSITIONS = 8192


@dataclass(frozen=True)
class Windows:
    """Windows of one length N.

    Attributes:
        starts: (B,) int64, the place in the text of the first byte that each window predicts.
        length: N, positions of each window.
        skipped: (B,) int64, predictions at the beginning of each that do not count.
    """

    starts: np.ndarray
    length: int
    skipped: np.ndarray

    @cached_property
    def places(self) -> np.ndarray:
        """(B, N) int64, the place in the text of what each position predicts."""
        return self.starts[:, None] + np.arange(self.length)

    @cached_property
    def counted(self) -> np.ndarray:
        """(B, N) bool, the predictions that count."""
        return np.arange(self.length) >= self.skipped[:, None]

    def inputs(self, ids: np.ndarray, bos: int) -> np.ndarray:
        """What the model reads.

        Args:
            ids: (T,) int, of the text without BOS.
            bos: the id in front of each window.

        Returns:
            (B, N) int32.
        """
        rows = ids[np.maximum(self.places - 1, 0)].astype(np.int32)
        rows[:, 0] = bos
        return rows


def window_batches(
    total: int,
    *,
    context: int,
    stride: int | None = None,
    batch_rows: int | None = None,
) -> Iterator[Windows]:
    """Windows over a text of `total` ids, in its order.

    The last one ends with the text. When it is shorter it comes alone, so that no row is padded.

    Args:
        total: T.
        context: N, positions of a window.
        stride: from one window to the next; default: half a context.
        batch_rows: windows at a time; default: as many as make 8,192 positions.

    Raises:
        ConfigError: a context or number of rows under 1, or a stride outside 1 to `context`.
    """
    stride, batch_rows = _checked(context, stride, batch_rows)
    starts = stride * np.arange(window_count(total, context, stride))
    full = starts[starts + context <= total]
    for at in range(0, len(full), batch_rows):
        some = full[at : at + batch_rows]
        yield Windows(some, context, np.where(some > 0, context - stride, 0))
    if total and len(full) < len(starts):
        last = starts[-1:]
        yield Windows(last, total - int(last[0]), np.where(last > 0, context - stride, 0))


def window_count(total: int, context: int, stride: int) -> int:
    """How many windows cover a text of `total` ids."""
    return 1 + max(0, -(-(total - context) // stride))


def default_stride(context: int) -> int:
    """Half a context: each byte is read about twice, and predicted from half a context or more."""
    return max(1, context // 2)


def _checked(context: int, stride: int | None, batch_rows: int | None) -> tuple[int, int]:
    if context < 1:
        raise ConfigError(f"context is {context}; expected 1 position or more")
    stride = default_stride(context) if stride is None else stride
    if not 1 <= stride <= context:
        raise ConfigError(f"stride is {stride}; expected 1 to the context, {context}")
    rows = max(1, _POSITIONS // context) if batch_rows is None else batch_rows
    if rows < 1:
        raise ConfigError(f"batch_rows is {rows}; expected 1 or more")
    return stride, rows
