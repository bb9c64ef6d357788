"""Automata out of automata: what two of them both match, and what only the first one matches.

The results are not minimal: merging states took most of the time and saved a third of them.
"""

from __future__ import annotations

import numpy as np

from mlx_companion.blt.constraints.automaton import DEAD, STATE_LIMIT, Dfa, spread, trim
from mlx_companion.errors import ConfigError


def intersection(one: Dfa, other: Dfa, limit: int = STATE_LIMIT) -> Dfa:
    """The automaton of what both match.

    Raises:
        ConfigError: it would have more states than the limit.
    """
    return _product(one, other.table, other.accept, limit)


def difference(one: Dfa, other: Dfa, limit: int = STATE_LIMIT) -> Dfa:
    """The automaton of what the first one matches and the other one does not.

    Raises:
        ConfigError: it would have more states than the limit.
    """
    sink = len(other.table)
    table = np.vstack([other.table, np.full((1, 256), sink, dtype=np.int32)])
    return _product(one, np.where(table < 0, sink, table), ~np.append(other.accept, False), limit)


def _product(one: Dfa, table: np.ndarray, accept: np.ndarray, limit: int) -> Dfa:
    """Walk both at once, breadth first; the pair of states (i, j) is i * len(table) + j."""
    column = _columns(one.table, table)
    heads = np.unique(column, return_index=True)[1]
    left, right, size = one.table[:, heads].astype(np.int64), table[:, heads], len(table)
    numbers = np.full(len(left) * size, DEAD, dtype=np.int32)
    numbers[0] = 0
    order, rows, fresh = [np.zeros(1, dtype=np.int64)], [], np.zeros(1, dtype=np.int64)
    count = 1
    while len(fresh):
        a, b = left[fresh // size], right[fresh % size]
        after = np.where((a >= 0) & (b >= 0), a * size + b, DEAD)
        rows.append(after)
        fresh = np.unique(after[after >= 0])
        fresh = fresh[numbers[fresh] < 0]
        numbers[fresh] = count + np.arange(len(fresh))
        count += len(fresh)
        order.append(fresh)
        if count > limit:
            raise ConfigError(
                f"the combined constraint needs more than {limit} states; "
                "use a smaller length or a simpler pattern"
            )
    moves, pairs = np.vstack(rows), np.concatenate(order)
    both = one.accept[pairs // size] & accept[pairs % size]
    return spread(*trim(np.where(moves >= 0, numbers[moves], DEAD), both), column)


def _columns(*tables: np.ndarray) -> np.ndarray:
    """(256,) numbers of the runs of bytes that no state of any table tells apart."""
    changes = np.zeros(256, dtype=bool)
    for table in tables:
        changes[1:] |= (table[:, 1:] != table[:, :-1]).any(axis=0)
    return np.cumsum(changes)
