"""Samples of unequal length packed into rows of about one length: no padding, even work.

A row is whole samples, one after the other, that together hold at most so many tokens; models run
it as if each sample were alone (`models.packed`). Rows are filled best-fit: each sample, in an
order shuffled anew in each epoch, goes into the fullest row that still has room.

    rows = PackedSamples(encoded, row_tokens=2048, seed=0)
    for indices in rows.epoch(0):
        row = rows.batch(indices)             # tokens (1, L), L at most 2048

An epoch's rows are a pure function of (lengths, seed, epoch). A sample is never cut.

Reference: Ding et al. 2024, "Fewer Truncations Improve Language Modeling" (best-fit packing).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import mlx.core as mx
import numpy as np

from mlx_companion.errors import ConfigError
from mlx_companion.runtime.seeds import derive_seed
from mlx_companion.text.encode import Encoded
from mlx_companion.text.row_sizes import SizedSamples


@dataclass(frozen=True)
class PackedRow:
    """Samples one after the other, longest first.

    Attributes:
        tokens: (1, L) int32.
        targets: (1, L) bool; True where a token is trained on, as predicted from the one before
            it, which is of the same sample: the first of each sample is never True.
        lengths: tokens of each sample; their sum is L.
        indices: which samples of the data set they are.
    """

    tokens: mx.array
    targets: mx.array
    lengths: tuple[int, ...]
    indices: tuple[int, ...]

    def split_rows(self, parts: int) -> list[PackedRow]:
        """The samples as at most `parts` rows of about the same length, none of them empty."""
        count = min(parts, len(self.lengths))
        loads, dealt = [0] * count, [list[int]() for _ in range(count)]
        for at in np.argsort(-np.array(self.lengths), kind="stable").tolist():
            least = loads.index(min(loads))
            dealt[least].append(at)
            loads[least] += self.lengths[at]
        return [self._take(rows) for rows in dealt]

    def documents(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Tokens and targets of each sample, (n,) each."""
        tokens, targets = np.array(self.tokens)[0], np.array(self.targets)[0]
        bounds = pairwise(np.concatenate([[0], np.cumsum(self.lengths)]).tolist())
        return [(tokens[a:b], targets[a:b]) for a, b in bounds]

    def _take(self, rows: Sequence[int]) -> PackedRow:
        documents = self.documents()
        return _row([documents[at] for at in rows], [self.indices[at] for at in rows])


def pack(encoded: Sequence[Encoded], indices: Sequence[int]) -> PackedRow:
    """The samples at `indices` as one row.

    Args:
        encoded: the data set.
        indices: one or more; the order is that of their lengths.
    """
    rows = [encoded[index] for index in indices]
    order = np.argsort([-len(row.tokens) for row in rows], kind="stable").tolist()
    documents = [
        (np.asarray(rows[at].tokens, np.int32), np.asarray(rows[at].targets, bool)) for at in order
    ]
    return _row(documents, [indices[at] for at in order])


class PackedSamples(SizedSamples):
    """Plans epochs of packed rows over encoded samples: a source for the trainer (`RowSource`).

    Args:
        encoded: the data set; every sample has at least one target.
        row_tokens: most tokens in a row; a longer sample is a row of its own.
        max_samples: most samples in a row; None for no limit.
        seed: with the epoch number, decides every plan.

    Attributes:
        lengths: (N,) tokens of each sample.

    Raises:
        ConfigError: a limit is less than 1.
        DataError: no samples, or one without a target.
    """

    def __init__(
        self,
        encoded: Sequence[Encoded],
        *,
        row_tokens: int = 2048,
        max_samples: int | None = None,
        seed: int = 0,
    ) -> None:
        for name, value in (("row_tokens", row_tokens), ("max_samples", max_samples)):
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be 1 or more, got {value}")
        super().__init__(encoded, seed)
        self.row_tokens = row_tokens
        self.max_samples = len(encoded) if max_samples is None else max_samples

    def epoch(self, number: int) -> list[tuple[int, ...]]:
        """The rows of one epoch, as sample indices; each sample is in exactly one row."""
        rng = np.random.default_rng(derive_seed(self.seed, "packs", number))
        order = rng.permutation(len(self.lengths))
        plan = best_fit(self.lengths, order, self.row_tokens, self.max_samples)
        return [tuple(plan[at]) for at in rng.permutation(len(plan))]

    def batch(self, indices: Sequence[int]) -> PackedRow:
        """The row of those samples."""
        return pack(self.encoded, indices)

    def slots(self, indices: Sequence[int]) -> int:
        """The same: there is no padding."""
        return self.tokens(indices)

    def padding_share(self, plan: Sequence[Sequence[int]]) -> float:
        """0: rows are not padded."""
        return 0.0


def best_fit(
    lengths: np.ndarray, order: Sequence[int] | np.ndarray, room: int, most: int
) -> list[list[int]]:
    """Rows of samples, each sample in the fullest row that has room for it when its turn comes.

    Args:
        lengths: (N,) of the samples.
        order: in which they are placed.
        room: what a row holds; a longer sample gets one to itself.
        most: samples in a row.
    """
    rows: list[list[int]] = []
    # Rows by the room they have left, and a whole number whose bits say which of these lists are
    # not empty: finding the fullest fitting row is finding its lowest bit.
    with_room: dict[int, list[int]] = {}
    some = 0
    for index in np.asarray(order).tolist():
        length = int(lengths[index])
        fitting = some >> length
        if not fitting:
            rows.append([])
            row, left = len(rows) - 1, room
        else:
            left = length + (fitting & -fitting).bit_length() - 1
            row = with_room[left].pop()
            some ^= 0 if with_room[left] else 1 << left
        rows[row].append(index)
        left -= length
        if left > 0 and len(rows[row]) < most:
            with_room.setdefault(left, []).append(row)
            some |= 1 << left
    return rows


def _row(documents: Sequence[tuple[np.ndarray, np.ndarray]], indices: Sequence[int]) -> PackedRow:
    tokens = np.concatenate([tokens for tokens, _ in documents])
    targets = np.concatenate([targets for _, targets in documents])
    return PackedRow(
        mx.array(tokens[None]),
        mx.array(targets[None]),
        tuple(len(tokens) for tokens, _ in documents),
        tuple(indices),
    )
