"""Where documents lie in a packed row, and how attention takes them apart again.

A packed row is documents one after the other, without padding. Attention runs over groups of
documents of like length, padded to the longest of their group, which costs little: nearly all of
a layer's work is in its matrix products, and those run over the row as it is.

    layout = PackLayout((5, 3, 4))
    layout.positions                      # 0 1 2 3 4 0 1 2 0 1 2 3

Documents may share a beginning (a system prompt). It then lies in front of the row, once, and
every document sees it:

    layout = PackLayout((5, 3, 4), shared=16)
    layout.positions                      # 0 .. 15, 16 17 18 19 20, 16 17 18, 16 17 18 19
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from mlx_companion.errors import ConfigError

# Starting another group costs about as much as this many padded scores.
_GROUP_COST = 20_000


class Group(NamedTuple):
    """Documents that attention handles together: slots `start` to `start + rows * width`."""

    start: int
    rows: int
    width: int

    @property
    def end(self) -> int:
        """Behind the last slot."""
        return self.start + self.rows * self.width


@dataclass(frozen=True)
class PackLayout:
    """The documents of a packed row.

    Args:
        lengths: tokens of each document, without those of a shared beginning.
        shared: tokens of the beginning that all of them share, in front of the row.

    Raises:
        ConfigError: no document, or one without a token.
    """

    lengths: tuple[int, ...]
    shared: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "lengths", tuple(int(length) for length in self.lengths))
        if not self.lengths or min(self.lengths) < 1 or self.shared < 0:
            raise ConfigError(
                f"lengths of packed documents are {self.lengths!r:.200} behind {self.shared} "
                "shared tokens; expected one or more documents of one token or more each"
            )

    @property
    def tokens(self) -> int:
        """L, tokens of the row."""
        return self.shared + sum(self.lengths)

    @property
    def longest(self) -> int:
        """Tokens that the last token of the longest document sees, itself included."""
        return self.shared + max(self.lengths)

    @cached_property
    def starts(self) -> np.ndarray:
        """(K,) where each document begins in the row."""
        return self.shared + np.concatenate([[0], np.cumsum(self.lengths)[:-1]]).astype(np.int64)

    @cached_property
    def positions(self) -> mx.array:
        """(L,) int32, the position of each token in its document, shared ones counted."""
        return mx.array(self.host_positions.astype(np.int32))

    @cached_property
    def host_positions(self) -> np.ndarray:
        """The same in host memory."""
        own = [self.shared + np.arange(length) for length in self.lengths]
        return np.concatenate([np.arange(self.shared), *own])

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """Documents behind the shared beginning in groups, longest first."""
        groups, start = [], 0
        for rows, width in _grouped(sorted(self.lengths, reverse=True)):
            groups.append(Group(start, rows, width))
            start += rows * width
        return tuple(groups)

    @cached_property
    def slots(self) -> np.ndarray:
        """(T,) the place in the row that each slot of the groups is filled from.

        Padding repeats the last token of its own document.
        """
        order = np.argsort(-np.array(self.lengths), kind="stable")
        parts, taken = [], 0
        for group in self.groups:
            for document in order[taken : taken + group.rows]:
                inside = np.minimum(np.arange(group.width), self.lengths[document] - 1)
                parts.append(self.starts[document] + inside)
            taken += group.rows
        return np.concatenate(parts)

    @cached_property
    def real(self) -> np.ndarray:
        """(T,) bool, False where a slot is padding."""
        first = np.ones(len(self.slots), dtype=bool)
        first[1:] = self.slots[1:] != self.slots[:-1]
        return first

    @cached_property
    def places(self) -> np.ndarray:
        """(L - shared,) the slot that each token of the documents is found in."""
        places = np.empty(self.tokens - self.shared, dtype=np.int64)
        places[self.slots[self.real] - self.shared] = np.nonzero(self.real)[0]
        return places


def _grouped(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """(documents, width) of the cheapest groups of lengths that fall: a shortest path."""
    squares = np.square(np.array(lengths, dtype=np.float64))
    count = len(lengths)
    best = np.full(count + 1, np.inf)
    best[0], came_from = 0.0, np.zeros(count + 1, dtype=np.int64)
    for end in range(1, count + 1):
        costs = best[:end] + (end - np.arange(end)) * squares[:end] + _GROUP_COST
        came_from[end] = costs.argmin()
        best[end] = costs[came_from[end]]
    groups, end = [], count
    while end:
        start = int(came_from[end])
        groups.append((end - start, lengths[start]))
        end = start
    return groups[::-1]
