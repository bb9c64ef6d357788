"""Nested structures as constraints: automata that call one another, with exact distances.

A `Grammar` has two kinds of nodes. Terminal nodes are states of a `Dfa` and read bytes
(a property's name, a number, a string). Structure nodes read nothing: each of their edges calls a
machine and goes on at another node when that machine has finished. Recursion is a machine that
calls itself, and the stack of pending nodes is the memory that a plain automaton lacks.

Where two ways are open for the same bytes (branches of an `anyOf`), both are followed: the state
is a sorted tuple of configurations, each a flat tuple ``(cost, pending..., reading)`` of numbers.
`cost` is the exact number of bytes that the configuration still needs. It is a sum over its nodes,
because the cost of a node (its cheapest way to the end of its own machine) does not depend on
what is pending below: Knuth's generalization of Dijkstra's algorithm (1977) finds them all.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from mlx_companion.blt.constraints.automaton import DEAD, FAR, Dfa
from mlx_companion.blt.constraints.base import EOS, OFFSET, VOCABULARY, Constraint, refuse_id
from mlx_companion.errors import ConfigError

END = 0  # the structure node at which every machine ends
NEVER = int(FAR)
MAX_DEPTH = 64
# Ways followed at once. Beyond it the longest are given up: what is left is still valid.
_MOST_WAYS = 512

Frames = tuple[int, ...]
Configuration = tuple[int, ...]
PushdownState = tuple[Configuration, ...]


@dataclass
class Grammar:
    """Machines under construction.

    Attributes:
        edges: per node, (called machine, where to go on) of a structure node.
        row: per node, the row of `tables` of a terminal node, or -1.
        far: per node, the distance inside a terminal's automaton.
        labels: what a node stands for, for messages.
    """

    edges: list[list[tuple[int, int]]] = field(default_factory=lambda: [[]])
    row: list[int] = field(default_factory=lambda: [DEAD])
    far: list[int] = field(default_factory=lambda: [0])
    tables: list[np.ndarray] = field(default_factory=list)
    labels: dict[int, str] = field(default_factory=dict)
    _rows: int = 0

    def node(self, label: str = "") -> int:
        """A new structure node."""
        self.edges.append([])
        self.row.append(DEAD)
        self.far.append(NEVER)
        if label:
            self.labels[len(self.edges) - 1] = label
        return len(self.edges) - 1

    def call(self, node: int, machine: int, then: int) -> None:
        """From `node`, run a machine and go on at `then` (`END` to finish)."""
        self.edges[node].append((machine, then))

    def terminal(self, dfa: Dfa) -> int:
        """Add an automaton; returns the node of its start."""
        base, count = len(self.edges), len(dfa.table)
        self.edges += [[] for _ in range(count)]
        self.row += range(self._rows, self._rows + count)
        self.far += dfa.distance.tolist()
        self.tables.append(np.where(dfa.table >= 0, dfa.table + np.int32(base), DEAD))
        self._rows += count
        return base

    def costs(self) -> list[int]:
        """Per node, the fewest bytes to the end of its machine; `NEVER` where there is no end."""
        users: dict[int, list[tuple[int, int, int]]] = {}
        for node, edges in enumerate(self.edges):
            for machine, then in edges:
                users.setdefault(machine, []).append((node, machine, then))
                users.setdefault(then, []).append((node, machine, then))
        cost = list(self.far)
        settled = [False] * len(cost)
        waiting = [(cost[node], node) for node in users if cost[node] < NEVER]
        heapq.heapify(waiting)
        while waiting:
            _, at = heapq.heappop(waiting)
            if settled[at]:
                continue
            settled[at] = True
            for node, machine, then in users.get(at, ()):
                total = cost[machine] + cost[then]
                if settled[machine] and settled[then] and total < cost[node]:
                    cost[node] = total
                    heapq.heappush(waiting, (total, node))
        return cost


# The ways to begin at a node: (cost, nodes to push), and whether it can end without a byte.
_Beginnings = tuple[tuple[tuple[int, Frames], ...], bool]


class _Beginner:
    """Works out, once per node, the reading nodes that are reached without a byte."""

    def __init__(self, grammar: Grammar, cost: list[int]) -> None:
        self.grammar = grammar
        self.cost = cost
        self.known: dict[int, _Beginnings] = {END: ((), True)}
        self.open: set[int] = set()

    def of(self, node: int) -> _Beginnings:
        if node not in self.known:
            if self.grammar.row[node] != DEAD:
                self.known[node] = ((self.cost[node], (node,)),), self.grammar.far[node] == 0
            else:
                self.known[node] = self.structure(node)
        return self.known[node]

    def structure(self, node: int) -> _Beginnings:
        if node in self.open:
            raise ConfigError(
                f"{self.grammar.labels.get(node, 'the schema')} refers to itself before anything "
                "is written; put the recursion inside an object or an array"
            )
        self.open.add(node)
        found: dict[tuple[int, Frames], None] = {}
        finishes = False
        for machine, then in self.grammar.edges[node]:
            starts, ends = self.of(machine)
            if self.cost[machine] + self.cost[then] >= NEVER:
                continue
            rest = () if then == END else (then,)
            found.update({(c + self.cost[then], rest + frames): None for c, frames in starts})
            if ends:
                starts, ends = self.of(then)
                found.update(dict.fromkeys(starts))
                finishes |= ends
        self.open.discard(node)
        return tuple(found), finishes


class PushdownConstraint(Constraint):
    """Byte strings that a grammar accepts.

    Args:
        grammar: the machines.
        start: the machine of the whole text.
        name: what it is called in messages.
        max_depth: about how many containers may be open at once. Deeper than that only the
            shortest way to the end is allowed, so that nesting always comes to an end
            (`json.loads` itself gives up near 1000).

    Raises:
        ConfigError: nothing matches, or a machine calls itself before reading anything.
    """

    def __init__(self, grammar: Grammar, start: int, name: str, max_depth: int = MAX_DEPTH) -> None:
        if max_depth < 1:
            raise ConfigError(f"max_depth is {max_depth}; it must be at least 1")
        self.name = name
        self.max_depth = max_depth
        self._cost = grammar.costs()
        if self._cost[start] >= NEVER:
            raise ConfigError(f"no finite text satisfies {name}")
        self._row = grammar.row
        self._table = np.vstack(grammar.tables)
        far = np.append(np.array(self._cost, dtype=np.int32), FAR)
        # Bytes left, above what is pending, at which each byte may still be written.
        self._step = np.where(self._table >= 0, far[self._table] + 1, FAR)
        beginner = _Beginner(grammar, self._cost)
        self._begin = [
            beginner.of(node) if self._cost[node] < NEVER else ((), False)
            for node in range(len(self._cost))
        ]
        self._first = self._sorted(self._opened(0, (), start))

    def __repr__(self) -> str:
        return f"PushdownConstraint({self.name!r}, {len(self._table)} states)"

    def _opened(self, below: int, pending: Frames, node: int) -> set[Configuration]:
        """Configurations ready to read.

        Args:
            below: cost of what is pending.
            pending: the stack, without `node`.
            node: where to go on.
        """
        found: set[Configuration] = set()
        while True:
            starts, ends = self._begin[node]
            found.update((below + cost, *pending, *frames) for cost, frames in starts)
            if not ends:
                return found
            if not pending:
                found.add((0,))
                return found
            node, pending = pending[-1], pending[:-1]
            below -= self._cost[node]

    @staticmethod
    def _sorted(ways: set[Configuration]) -> PushdownState:
        return tuple(sorted(ways)[:_MOST_WAYS])

    def start(self) -> PushdownState:
        return self._first

    def advance(self, state: PushdownState, next_id: int) -> PushdownState:
        if next_id == EOS and (not state or state[0] == (0,)):
            return ()
        found: set[Configuration] = set()
        if OFFSET <= next_id < VOCABULARY:
            for way in state:
                if len(way) == 1:
                    continue
                reading = way[-1]
                after = int(self._table[self._row[reading], next_id - OFFSET])
                if after != DEAD:
                    found |= self._opened(way[0] - self._cost[reading], way[1:-1], after)
        if not found:
            raise refuse_id(next_id)
        return self._sorted(found)

    def distance(self, state: PushdownState) -> int:
        return state[0][0] if state else 0

    def _masks(self, states: Sequence[PushdownState], budgets: np.ndarray) -> np.ndarray:
        masks = np.zeros((len(states), VOCABULARY), dtype=bool)
        rows: list[int] = []
        left: list[int] = []
        owners: list[int] = []
        for number, (state, budget) in enumerate(zip(states, budgets.tolist(), strict=True)):
            masks[number, EOS] = not state or state[0] == (0,)
            for way in state:
                if len(way) == 1:
                    continue
                # Too deep, only what comes nearer to the end of the whole state goes on.
                deep = len(way) - 2 > self.max_depth
                within = min(budget, state[0][0]) if deep else budget
                rows.append(self._row[way[-1]])
                left.append(within - way[0] + self._cost[way[-1]])
                owners.append(number)
        hits = self._step[rows] <= np.array(left, dtype=np.int64)[:, None]
        if owners:
            named, first = np.unique(owners, return_index=True)
            masks[named, OFFSET:] = np.logical_or.reduceat(hits, first, axis=0)
        return masks
