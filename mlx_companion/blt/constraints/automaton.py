"""Regular expressions as minimal automata over bytes, with the way to the nearest match.

A tree of `nodes` becomes a nondeterministic automaton (Thompson), the subset construction makes
it deterministic, states from which no match can be reached are dropped, and equivalent ones are
merged (Moore's refinement, begun from the lengths of the shortest and of the longest way to a
match, which equivalent states share: chains of counted repetitions then need a handful of rounds
instead of one per link).

Bytes that no state tells apart are one column until the very end, so that most of the work is
on tables with ten to thirty columns instead of 256.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from mlx_companion.blt.constraints.encodings import FINAL, Encoding, character_rows
from mlx_companion.blt.constraints.nodes import Alt, Anchor, Bytes, Cat, Chars, Node, Repeat
from mlx_companion.errors import ConfigError

DEAD = -1
FAR = np.int32(2**30)  # the distance where there is no match
STATE_LIMIT = 10_000
_ITEM_LIMIT = 100_000


@dataclass(frozen=True, eq=False)
class Dfa:
    """A deterministic automaton over bytes without hopeless states; state 0 is the start.

    Attributes:
        table: (S, 256) int32, the next state or -1 where no match can follow.
        accept: (S,) bool, whether the bytes so far are a match.
        distance: (S,) int32, the fewest bytes to a match; `FAR` when there is none at all, which
            only the start of the automaton of an empty language has.
    """

    table: np.ndarray
    accept: np.ndarray
    distance: np.ndarray

    @property
    def empty(self) -> bool:
        """Whether nothing at all matches."""
        return bool(self.distance[0] >= FAR)

    def matches(self, data: bytes) -> bool:
        """Whether these bytes are a match."""
        state = 0
        for byte in data:
            state = int(self.table[state, byte])
            if state == DEAD:
                return False
        return bool(self.accept[state])


def compile_dfa(node: Node, encoding: Encoding = "utf8", limit: int = STATE_LIMIT) -> Dfa:
    """The minimal automaton of a tree.

    Args:
        node: without anchors.
        encoding: how characters are written, "utf8" or "json" (inside a JSON string).
        limit: the most states before minimization.

    Raises:
        ConfigError: the automaton would be larger than the limit.
    """
    nfa = _Nfa(encoding)
    entry = nfa.build(node, _ACCEPT)
    return _subsets(nfa, entry, limit)


_ACCEPT = 0
# An edge of an item: first byte, last byte, next item.
_Edges = list[tuple[int, int, int]]


class _Nfa:
    """Items that read bytes, and items that only lead on to others."""

    def __init__(self, encoding: Encoding) -> None:
        self.encoding = encoding
        self.edges: list[_Edges] = [[]]
        self.skips: list[list[int] | None] = [None]

    def item(self, edges: _Edges, skips: list[int] | None = None) -> int:
        if len(self.edges) >= _ITEM_LIMIT:
            raise ConfigError("the constraint is too large; use smaller repetition counts")
        self.edges.append(edges)
        self.skips.append(skips)
        return len(self.edges) - 1

    def build(self, node: Node, out: int) -> int:
        """Add a node that leads to the item `out`; returns the item in front of it."""
        if isinstance(node, Bytes):
            return self.item([(node.first, node.last, out)])
        if isinstance(node, Chars):
            return self.characters(node, out)
        if isinstance(node, Cat):
            for part in reversed(node.parts):
                out = self.build(part, out)
            return out
        if isinstance(node, Alt):
            return self.item([], [self.build(option, out) for option in node.options])
        if isinstance(node, Anchor):
            raise TypeError("anchors are removed before a tree is compiled")
        return self.repeat(node, out)

    def characters(self, node: Chars, out: int) -> int:
        rows = character_rows(node.ranges, self.encoding)
        base = len(self.edges)
        for row in rows:
            self.item([(a, b, out if to == FINAL else base + to) for a, b, to in row])
        return base

    def repeat(self, node: Repeat, out: int) -> int:
        entry = out
        if node.most is None:
            entry = self.item([], [out])
            skips = self.skips[entry]
            assert skips is not None
            skips.append(self.build(node.inner, entry))
        else:
            for _ in range(node.most - node.least):
                entry = self.item([], [self.build(node.inner, entry), out])
        for _ in range(node.least):
            after, entry = entry, self.build(node.inner, entry)
            if entry == after:  # repeating what matches only the empty text changes nothing
                break
        return entry

    def closure(self, item: int) -> frozenset[int]:
        """The reading items (and the accepting one) to which an item leads without a byte."""
        seen, waiting, found = {item}, [item], []
        while waiting:
            at = waiting.pop()
            skips = self.skips[at]
            if skips is None:
                found.append(at)
                continue
            fresh = [to for to in skips if to not in seen]
            seen.update(fresh)
            waiting += fresh
        return frozenset(found)

    def columns(self) -> np.ndarray:
        """(256,) column of every byte; bytes in one column are never told apart."""
        marks = np.zeros(257, dtype=np.int64)
        for edges in self.edges:
            for first, last, _ in edges:
                marks[first] = marks[last + 1] = 1
        marks[0] = 0
        return np.cumsum(marks[:256])


def _subsets(nfa: _Nfa, entry: int, limit: int) -> Dfa:
    column = nfa.columns()
    width = int(column[-1]) + 1
    place = column.tolist()
    closures: dict[int, frozenset[int]] = {}
    moves_of: dict[int, list[tuple[int, frozenset[int]]]] = {}

    def closed(item: int) -> frozenset[int]:
        if item not in closures:
            closures[item] = nfa.closure(item)
        return closures[item]

    def moves(item: int) -> list[tuple[int, frozenset[int]]]:
        if item not in moves_of:
            moves_of[item] = [
                (at, closed(to))
                for first, last, to in nfa.edges[item]
                for at in range(place[first], place[last] + 1)
            ]
        return moves_of[item]

    states = {closed(entry): 0}
    rows: list[list[int]] = []
    waiting = deque(states)
    while waiting:
        after: dict[int, frozenset[int]] = {}
        for item in waiting.popleft():
            for at, targets in moves(item):
                known = after.get(at)
                after[at] = targets if known is None or known is targets else known | targets
        row = [DEAD] * width
        for at, key in after.items():
            if key not in states:
                if len(states) >= limit:
                    raise ConfigError(
                        f"the constraint needs more than {limit} states; "
                        "use smaller repetition counts, a simpler pattern or ASCII classes, (?a)"
                    )
                states[key] = len(states)
                waiting.append(key)
            row[at] = states[key]
        rows.append(row)
    accept = np.array([_ACCEPT in key for key in states])
    return finish(np.array(rows, dtype=np.int32), accept, column)


def finish(moves: np.ndarray, accept: np.ndarray, column: np.ndarray) -> Dfa:
    """Drop hopeless states, merge equivalent ones and spread the columns over the bytes.

    Args:
        moves: (S, C) next states or -1; state 0 is the start.
        accept: (S,) bool.
        column: (256,) the column of each byte.
    """
    moves, accept, far = trim(moves, accept)
    blocks = _equivalent(moves, far)
    count = int(blocks.max()) + 1
    first = np.full(count, len(blocks))
    np.minimum.at(first, blocks, np.arange(len(blocks)))
    # Blocks are numbered by their first state, so that the start stays state 0.
    order = np.argsort(first)
    rank = np.empty(count, dtype=np.int32)
    rank[order] = np.arange(count, dtype=np.int32)
    kept = first[order]
    small = moves[kept]
    return spread(np.where(small >= 0, rank[blocks[small]], DEAD), accept[kept], far[kept], column)


def spread(moves: np.ndarray, accept: np.ndarray, far: np.ndarray, column: np.ndarray) -> Dfa:
    """The automaton whose table has one column for each byte again."""
    return Dfa(np.ascontiguousarray(moves.astype(np.int32)[:, column]), accept, far)


def distances(moves: np.ndarray, accept: np.ndarray) -> np.ndarray:
    """(S,) int32 fewest moves from each state to an accepting one; `FAR` where there is none."""
    found = [-1] * len(moves)
    before = _predecessors(moves)
    waiting = deque(np.flatnonzero(accept).tolist())
    for state in waiting:
        found[state] = 0
    while waiting:
        state = waiting.popleft()
        for source in before[state]:
            if found[source] < 0:
                found[source] = found[state] + 1
                waiting.append(source)
    far = np.array(found, dtype=np.int32)
    return np.where(far < 0, FAR, far)


def _predecessors(moves: np.ndarray) -> list[list[int]]:
    """The states with a move into each state, every one once."""
    count, width = moves.shape
    target = moves.ravel().astype(np.int64)
    edges = np.unique((target * count + np.repeat(np.arange(count), width))[target >= 0])
    bounds = np.searchsorted(edges, np.arange(count + 1) * count).tolist()
    sources = (edges % count).tolist()
    return [sources[bounds[state] : bounds[state + 1]] for state in range(count)]


def _heights(moves: np.ndarray) -> np.ndarray:
    """(S,) the most moves that can follow each state; -1 where there is no end to them."""
    before = _predecessors(moves)
    left = np.bincount([s for sources in before for s in sources], minlength=len(moves)).tolist()
    found = [-1] * len(moves)
    waiting = deque(state for state, open_moves in enumerate(left) if not open_moves)
    for state in waiting:
        found[state] = 0
    while waiting:
        state = waiting.popleft()
        for source in before[state]:
            # The last successor to be settled is the highest: they come in rising order.
            left[source] -= 1
            if not left[source]:
                found[source] = found[state] + 1
                waiting.append(source)
    return np.array(found)


def trim(moves: np.ndarray, accept: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Drop the states from which no match can be reached, except the start.

    Returns:
        Moves, accepting states and distances of those that are left.
    """
    far = distances(moves, accept)
    alive = far < FAR
    alive[0] = True
    numbers = np.where(far < FAR, np.cumsum(alive) - 1, DEAD)
    kept = moves[alive]
    return np.where(kept >= 0, numbers[kept], DEAD), accept[alive], far[alive]


def _equivalent(moves: np.ndarray, far: np.ndarray) -> np.ndarray:
    """(S,) the block of each state in the coarsest partition that a match cannot tell apart."""
    outline = far * (len(moves) + np.int64(1)) + _heights(moves)
    blocks = np.unique(outline, return_inverse=True)[1].astype(np.int32)
    count = int(blocks.max()) + 1
    while True:
        after = np.where(moves >= 0, blocks[moves], DEAD)
        rows = np.ascontiguousarray(np.column_stack([blocks, after]), dtype=np.int32)
        seen: dict[bytes, int] = {}
        blocks = np.array([seen.setdefault(r.tobytes(), len(seen)) for r in rows], dtype=np.int32)
        if len(seen) == count:
            return blocks
        count = len(seen)
