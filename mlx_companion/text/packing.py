"""Packed rows: long texts as rows of one length, for byte models and for token models.

Files become one flat array of ids, each document with BOS in front. A row of context N begins at
some place s of it and holds BOS and then the ids s+1 .. s+N-1; its targets are the ids s+1 .. s+N.
So every row begins as the model was defined, no row is padded, and each id is a target once per
epoch. (In a row that begins inside a document, BOS stands where the id s was: that id is the last
target of the row before.) A document's BOS is never a target.

    text = flatten(read_documents("books/"))
    rows = PackedRows(text, context=1024, batch_rows=8)
    held_out = PackedRows(flatten(read_documents("other.txt")), context=1024, batch_rows=8,
                          shuffle=False)
    for indices in rows.epoch(0):
        batch = rows.batch(indices)       # ids, targets, mask: (8, 1024)

The rows of a training epoch begin at a random phase, so that they are cut elsewhere in each
epoch. For that the flat array is taken as a ring; less than one row, at a random place, is left
out per epoch. The index of a row is its place s, so that a batch depends on nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import mlx.core as mx
import numpy as np

from mlx_companion.errors import ConfigError, DataError
from mlx_companion.runtime.seeds import derive_seed
from mlx_companion.text.byte_text import BOS
from mlx_companion.text.documents import FlatText


@dataclass(frozen=True)
class PackedBatch:
    """Rows of one length N.

    Attributes:
        ids: (B, N) int32, what the model reads; column 0 is BOS, padding is BOS too.
        targets: (B, N) int32, the id that follows each.
        mask: (B, N) float32, 1 where a target counts: not on padding, not where the next document
            begins.
        documents: (B, N) int32, numbers from 0 in each row that tell documents apart, padding
            being one of its own; None when every row is of one document.
        lengths: (B,) int32, positions without padding.
        extra: arrays that ride along, (B, N, ...), zero on padding.
        indices: (B,) where the rows begin in the flat text.
    """

    ids: mx.array
    targets: mx.array
    mask: mx.array
    documents: mx.array | None
    lengths: mx.array
    extra: dict[str, mx.array] = field(default_factory=dict)
    indices: tuple[int, ...] = ()

    def split_rows(self, parts: int) -> list[PackedBatch]:
        """The rows dealt out to at most `parts` batches, none of them empty."""
        count = min(parts, len(self.indices))
        return [self._take(np.arange(i, len(self.indices), count)) for i in range(count)]

    def _take(self, rows: np.ndarray) -> PackedBatch:
        kept = mx.array(rows)
        return PackedBatch(
            self.ids[kept],
            self.targets[kept],
            self.mask[kept],
            None if self.documents is None else self.documents[kept],
            self.lengths[kept],
            {name: values[kept] for name, values in self.extra.items()},
            tuple(self.indices[row] for row in rows),
        )


class PackedRows:
    """Rows of one length from a flat text: a source for the trainer (see `RowSource`).

    Args:
        text: the documents.
        context: N, ids per row.
        batch_rows: rows in a micro-batch; the last one of an epoch may hold fewer.
        seed: with the epoch number, decides phase and order.
        shuffle: False for held-out rows: from the start, in order, every id once; the last row is
            padded.
        bos: the id in front of documents and rows.
        extra: arrays of T values each (a memory map will do) that are cut like the ids.

    Raises:
        ConfigError: `context` under 2, `batch_rows` under 1, an extra array of another length.
        DataError: the text has no id but BOS.
    """

    def __init__(
        self,
        text: FlatText,
        *,
        context: int,
        batch_rows: int = 1,
        seed: int = 0,
        shuffle: bool = True,
        bos: int = BOS,
        extra: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        _check(text, context, batch_rows, extra or {})
        self.text = text
        self.context = context
        self.batch_rows = batch_rows
        self.seed = seed
        self.bos = bos
        self.extra = dict(extra or {})
        # A text shorter than a row cannot be a ring.
        self.shuffle = shuffle and len(text.ids) > context
        self._begins = np.zeros(len(text.ids), dtype=bool)
        self._begins[text.starts] = True

    @property
    def rows(self) -> int:
        """Rows of an epoch."""
        size = len(self.text.ids)
        return size // self.context if self.shuffle else -(-(size - 1) // self.context)

    @cached_property
    def target_count(self) -> int:
        """Targets of the first epoch."""
        starts = np.array([index for indices in self.epoch(0) for index in indices])
        return int(self._masks(self._places(starts)).sum())

    def epoch(self, number: int) -> list[tuple[int, ...]]:
        """The micro-batches of an epoch, each as the places where its rows begin."""
        starts = np.arange(self.rows) * self.context
        if self.shuffle:
            rng = np.random.default_rng(derive_seed(self.seed, "packing", number))
            phase = rng.integers(len(self.text.ids))
            starts = rng.permutation((starts + phase) % len(self.text.ids))
        order = starts.tolist()
        return [
            tuple(order[at : at + self.batch_rows]) for at in range(0, len(order), self.batch_rows)
        ]

    def tokens(self, indices: Sequence[int]) -> int:
        """Ids of those rows, padding excluded."""
        return int(self._lengths(np.array(indices)).sum())

    def slots(self, indices: Sequence[int]) -> int:
        """Positions of those rows, padding included."""
        return len(indices) * self.context

    def batch(self, indices: Sequence[int]) -> PackedBatch:
        """The rows that begin at those places.

        Args:
            indices: places in the flat text, from 0 up to, not including, T.
        """
        starts = np.array(indices)
        places = self._places(starts)
        lengths = self._lengths(starts)
        real = np.arange(self.context) < lengths[:, None]
        documents = np.cumsum(self._begins[places[:, :-1]] & (np.arange(self.context) > 0), axis=1)
        several = bool(np.where(real, documents, 0).any())
        # One more than any real document of the row.
        documents = np.where(real, documents, documents.max(axis=1, keepdims=True) + 1)
        ids = np.where(real, self.text.ids[places[:, :-1]], self.bos).astype(np.int32)
        ids[:, 0] = self.bos
        return PackedBatch(
            mx.array(ids),
            mx.array(np.where(real, self.text.ids[places[:, 1:]], self.bos).astype(np.int32)),
            mx.array(self._masks(places).astype(np.float32)),
            mx.array(documents.astype(np.int32)) if several else None,
            mx.array(lengths.astype(np.int32)),
            {name: _riding(values, places[:, :-1], real) for name, values in self.extra.items()},
            tuple(int(start) for start in starts),
        )

    def _places(self, starts: np.ndarray) -> np.ndarray:
        """(B, N+1) the flat places of rows; past the end, the last one again."""
        places = starts[:, None] + np.arange(self.context + 1)
        size = len(self.text.ids)
        return places % size if self.shuffle else np.minimum(places, size - 1)

    def _lengths(self, starts: np.ndarray) -> np.ndarray:
        """(B,) positions with a next id; padding has none."""
        left = len(self.text.ids) - 1 - starts
        return np.full(len(starts), self.context) if self.shuffle else left.clip(0, self.context)

    def _masks(self, places: np.ndarray) -> np.ndarray:
        """(B, N) bool, where the next id is there and no document's BOS."""
        return (places[:, 1:] != places[:, :-1]) & ~self._begins[places[:, 1:]]


def _check(text: FlatText, context: int, batch_rows: int, extra: Mapping[str, np.ndarray]) -> None:
    if context < 2:
        raise ConfigError(f"context is {context}; expected 2 ids or more")
    if batch_rows < 1:
        raise ConfigError(f"batch_rows is {batch_rows}; expected 1 or more")
    if len(text.ids) <= len(text.starts):
        raise DataError("the text has no id besides BOS; there is nothing to train on")
    for name, values in extra.items():
        if len(values) != len(text.ids):
            raise ConfigError(
                f"the array '{name}' has {len(values)} values for {len(text.ids)} ids; it belongs "
                "to another text, so compute it again"
            )


def _riding(values: np.ndarray, places: np.ndarray, real: np.ndarray) -> mx.array:
    cut = np.array(values[places])
    cut[~real] = 0
    return mx.array(cut)
