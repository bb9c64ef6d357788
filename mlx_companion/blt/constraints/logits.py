"""Constraints on a model's output: -inf for every id that may not come next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_companion.blt.constraints.base import VOCABULARY, Constraint
from mlx_companion.errors import ConfigError


class LogitsConstraint:
    """Masks the logits of a batch, with one upload of one mask per step.

    Args:
        constraint: one for all rows, or one per row (None for a row that is free).
    """

    def __init__(self, constraint: Constraint | Sequence[Constraint | None]) -> None:
        self.constraint = constraint

    def of_row(self, row: int) -> Constraint | None:
        """The constraint of a row."""
        return self.constraint if isinstance(self.constraint, Constraint) else self.constraint[row]

    def mask(
        self, states: Sequence[Any], budgets: Sequence[int | None] | None = None
    ) -> np.ndarray:
        """(B, 260) bool: the ids that may come next in each row.

        Args:
            states: one per row; None for a row that is free.
            budgets: the bytes that each row may still write, None for no limit.

        Raises:
            ConfigError: a row cannot be completed within its budget.
        """
        budgets = [None] * len(states) if budgets is None else budgets
        if len(budgets) != len(states):
            raise ConfigError(f"{len(states)} states and {len(budgets)} budgets; one each per row")
        rows: dict[int, list[int]] = {}
        owners: dict[int, Constraint] = {}
        for row, state in enumerate(states):
            constraint = self.of_row(row)
            if state is not None and constraint is not None:
                rows.setdefault(id(constraint), []).append(row)
                owners[id(constraint)] = constraint
        mask = np.ones((len(states), VOCABULARY), dtype=bool)
        for key, members in rows.items():
            mask[members] = owners[key].allowed_batch(
                [states[row] for row in members], [budgets[row] for row in members]
            )
        return mask

    def apply(
        self,
        logits: mx.array,
        states: Sequence[Any],
        budgets: Sequence[int | None] | None = None,
    ) -> mx.array:
        """The logits with -inf where the constraint forbids an id.

        Args:
            logits: (B, 260), before any softmax or sampling.
            states: one per row; None for a row that is free.
            budgets: the bytes that each row may still write, None for no limit.

        Raises:
            ConfigError: a row cannot be completed within its budget, or the shapes differ.
        """
        if logits.shape != (len(states), VOCABULARY):
            raise ConfigError(
                f"logits have the shape {logits.shape}; {(len(states), VOCABULARY)} is expected"
            )
        return mx.where(mx.array(self.mask(states, budgets)), logits, -mx.inf)
