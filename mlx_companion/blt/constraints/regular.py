"""A regular expression as a constraint on bytes: `regex(pattern)`.

The state is a number (a row of the automaton's table), so that what is allowed is a row lookup
and a whole batch is one gather.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mlx_companion.blt.constraints.anchors import full_match
from mlx_companion.blt.constraints.automaton import DEAD, FAR, STATE_LIMIT, Dfa, compile_dfa
from mlx_companion.blt.constraints.base import EOS, OFFSET, VOCABULARY, Constraint, refuse_id
from mlx_companion.blt.constraints.syntax import parse
from mlx_companion.errors import ConfigError

_ENDED = -1  # the state after EOS: the last row of the tables below


class RegexConstraint(Constraint):
    """Byte strings that an automaton accepts.

    Args:
        dfa: the automaton.
        name: what it is called in messages, usually the pattern.

    Attributes:
        table: (S, 256) int32, the automaton's table; -1 where no match can follow.

    Raises:
        ConfigError: nothing at all matches.
    """

    def __init__(self, dfa: Dfa, name: str) -> None:
        if dfa.empty:
            raise ConfigError(f"no text at all matches {name!r}")
        self.name = name
        self.table = dfa.table
        self._distance = np.append(dfa.distance, 0).astype(np.int32)
        self._complete = np.append(dfa.accept, True)
        step = np.where(dfa.table >= 0, dfa.distance[dfa.table] + 1, FAR)
        # Bytes left at which each byte may still be written; nothing but EOS follows EOS.
        self._step = np.vstack([step, np.full((1, 256), FAR)]).astype(np.int32)

    def __repr__(self) -> str:
        return f"RegexConstraint({self.name!r}, {len(self.table)} states)"

    def start(self) -> int:
        return 0

    def advance(self, state: int, next_id: int) -> int:
        if next_id == EOS and self._complete[state]:
            return _ENDED
        if state == _ENDED or not OFFSET <= next_id < VOCABULARY:
            raise refuse_id(next_id)
        after = int(self.table[state, next_id - OFFSET])
        if after == DEAD:
            raise refuse_id(next_id)
        return after

    def distance(self, state: int) -> int:
        return int(self._distance[state])

    def _masks(self, states: Sequence[int], budgets: np.ndarray) -> np.ndarray:
        rows = np.asarray(states, dtype=np.int64)
        masks = np.zeros((len(rows), VOCABULARY), dtype=bool)
        masks[:, EOS] = self._complete[rows]
        masks[:, OFFSET:] = self._step[rows] <= budgets[:, None]
        return masks


def regex(pattern: str, *, max_states: int = STATE_LIMIT) -> RegexConstraint:
    """The texts that a regular expression matches as a whole, as `re.fullmatch` does.

    Supported, with the meaning of Python's `re` on str: literals, `.`, classes with ranges and
    negation, every escape of a character, `\\d \\w \\s` and their negations (Unicode), `|`, groups
    of every naming kind, `* + ? {m} {m,n}` (lazy ones are the same language), the flags i, a, s
    and u (for all or for one group), comments, and `^ $ \\A \\Z` at the ends.

    Refused: `\\b \\B`, back-references, look-around, conditional and atomic groups, possessive
    quantifiers, the flags m, x and L, and anchors inside the pattern.

    The automaton runs on UTF-8, so what is generated is always valid UTF-8.

    Args:
        pattern: the expression.
        max_states: refuse expressions whose automaton grows beyond this (1 kB per state).

    Raises:
        ConfigError: the pattern is wrong, uses something refused, matches nothing or is too large.
    """
    try:
        tree = full_match(parse(pattern), pattern)
        return RegexConstraint(compile_dfa(tree, limit=max_states), pattern)
    except RecursionError:
        raise ConfigError("the pattern is nested too deeply; use fewer groups") from None
