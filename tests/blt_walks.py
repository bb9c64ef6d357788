"""Walks through a constraint: the "models" of its tests, none of which means well."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mlx_companion.blt.constraints import Constraint

EOS, OFFSET = 2, 4
# From the allowed ids (and the constraint and the state) to the one that is taken.
Choice = Callable[[np.ndarray, Constraint, Any], int]


def lowest(ids: np.ndarray, constraint: Constraint, state: Any) -> int:
    """The lowest byte, and never the end while there is another way."""
    return int(ids[-1] if len(ids) == 1 else ids[ids != EOS][0])


def highest(ids: np.ndarray, constraint: Constraint, state: Any) -> int:
    return int(ids[-1])


def farthest(ids: np.ndarray, constraint: Constraint, state: Any) -> int:
    """The byte, of a dozen, that leads farthest away from a match."""
    bytes_only = ids[ids != EOS]
    if not len(bytes_only):
        return EOS
    bytes_only = bytes_only[:: max(1, len(bytes_only) // 12)]
    return max(bytes_only, key=lambda i: constraint.distance(constraint.advance(state, int(i))))


def uniform(rng: np.random.Generator) -> Choice:
    def choose(ids: np.ndarray, constraint: Constraint, state: Any) -> int:
        return int(rng.choice(ids))

    return choose


def walk(constraint: Constraint, choose: Choice, budget: int) -> bytes:
    """Bytes that a "model" writes until EOS or until the budget is spent.

    Checks at each step that something is allowed, that the distance is within the budget and
    that EOS is allowed exactly where the distance is 0.
    """
    state, written = constraint.start(), bytearray()
    while True:
        left = budget - len(written)
        mask = constraint.allowed_within(state, left)
        assert mask.shape == (260,)
        assert constraint.distance(state) <= left
        assert mask[EOS] == constraint.is_complete(state)
        assert not mask[[0, 1, 3]].any()
        assert mask.any()
        next_id = choose(np.flatnonzero(mask), constraint, state)
        if next_id == EOS or left == 0:
            assert constraint.is_complete(state)
            return bytes(written)
        state = constraint.advance(state, int(next_id))
        written.append(int(next_id) - OFFSET)
