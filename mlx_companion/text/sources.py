"""What the trainer asks of training rows, whatever they are made of.

`LengthBuckets` (encoded samples of unequal length) and `PackedRows` (one long text in rows of one
length) both are such sources; a wrapper that adds arrays to the batches is another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class RowSource(Protocol):
    """Rows, planned in micro-batches; all of it a pure function of data, settings and seed."""

    @property
    def rows(self) -> int:
        """Rows of an epoch."""
        ...

    @property
    def target_count(self) -> int:
        """Targets of the first epoch; those of the others may differ by less than a row."""
        ...

    def epoch(self, number: int) -> list[tuple[int, ...]]:
        """The micro-batches of an epoch, each as the indices of its rows."""
        ...

    def batch(self, indices: tuple[int, ...]) -> Any:
        """The micro-batch of those rows, as a loss takes it."""
        ...

    def tokens(self, indices: Sequence[int]) -> int:
        """Tokens (or bytes) of those rows, padding excluded."""
        ...

    def slots(self, indices: Sequence[int]) -> int:
        """The same, padding included."""
        ...
