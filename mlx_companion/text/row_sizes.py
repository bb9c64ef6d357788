"""Lengths and targets of encoded rows, counted once or known already, for all row sources."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mlx_companion.errors import DataError
from mlx_companion.text.encode import Encoded


class RowSizes(NamedTuple):
    """Tokens and targets of each of N rows.

    Attributes:
        lengths, targets: (N,) int64.
    """

    lengths: np.ndarray
    targets: np.ndarray


def row_sizes(encoded: Sequence[Encoded]) -> RowSizes:
    """The sizes of rows; those that are kept on the disk have them at hand.

    Raises:
        DataError: no rows, or one without a target (its mean loss would be 0/0).
    """
    if not len(encoded):
        raise DataError("no samples to make batches of; check what was dropped and why")
    known = getattr(encoded, "sizes", None)
    if known is None:
        known = RowSizes(
            np.array([len(row.tokens) for row in encoded], dtype=np.int64),
            np.array([row.target_count for row in encoded], dtype=np.int64),
        )
    if not known.targets.all():
        empty = int(known.targets.argmin())
        raise DataError(f"sample {empty} has no token to train on; drop it first")
    return known


class SizedSamples:
    """What row sources over encoded samples share: their sizes and counts.

    Args:
        encoded: the data set; every sample has at least one target.
        seed: with the epoch number, decides every plan.

    Attributes:
        lengths: (N,) tokens of each sample.

    Raises:
        DataError: no samples, or one without a target.
    """

    def __init__(self, encoded: Sequence[Encoded], seed: int) -> None:
        sizes = row_sizes(encoded)
        self.encoded, self.seed = encoded, seed
        self.lengths = sizes.lengths
        self._target_count = int(sizes.targets.sum())

    @property
    def rows(self) -> int:
        """Samples of an epoch."""
        return len(self.encoded)

    @property
    def target_count(self) -> int:
        """Targets of an epoch."""
        return self._target_count

    def tokens(self, indices: Sequence[int]) -> int:
        """Tokens of those samples, padding excluded."""
        return int(self.lengths[list(indices)].sum())
