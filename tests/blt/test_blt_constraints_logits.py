"""Masks on logits: rows with one constraint, with several and with none."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from mlx_companion.blt.constraints import LogitsConstraint, json_schema, regex
from mlx_companion.errors import ConfigError

OFFSET = 4


def random_logits(rows: int) -> mx.array:
    return mx.array(np.random.default_rng(0).normal(size=(rows, 260)).astype(np.float32))


def test_only_forbidden_ids_become_impossible() -> None:
    constraint = regex("ab|cd{2}")
    states = [0, constraint.advance(0, ord("a") + OFFSET), 0]
    logits = random_logits(3)
    masked = np.array(LogitsConstraint(constraint).apply(logits, states, [2, 1, None]))
    kept = np.isfinite(masked)
    assert [[chr(i - OFFSET) for i in np.flatnonzero(row)] for row in kept] == [
        ["a"],
        ["b"],
        ["a", "c"],
    ]
    assert np.array_equal(masked[kept], np.array(logits)[kept])
    assert (masked[~kept] == -np.inf).all()


def test_rows_may_have_constraints_of_their_own_or_none() -> None:
    one, other = regex("x+"), json_schema({"type": "boolean"})
    adapter = LogitsConstraint([one, None, other, one])
    states = [one.start(), None, other.start(), None]
    mask = adapter.mask(states, [3, None, 4, 1])
    assert [int(row.sum()) for row in mask] == [1, 260, 1, 260]
    assert mask[2, ord("t") + OFFSET]
    assert adapter.of_row(2) is other


def test_wrong_shapes_are_refused() -> None:
    adapter = LogitsConstraint(regex("a"))
    with pytest.raises(ConfigError, match=r"\(2, 260\) is expected"):
        adapter.apply(random_logits(3), [0, 0])
    with pytest.raises(ConfigError, match="2 states and 1 budgets"):
        adapter.mask([0, 0], [1])
    with pytest.raises(ConfigError, match="row 1 may write 0 more bytes"):
        adapter.apply(random_logits(2), [0, 0], [1, 0])


def test_a_batch_of_random_models_writes_only_what_is_valid() -> None:
    """Sampling from masked logits, as generation does, with a budget per row."""
    constraint = json_schema({"type": "array", "items": {"enum": ["a", "bc"]}, "minItems": 1})
    adapter = LogitsConstraint(constraint)
    rng = np.random.default_rng(1)
    budgets = [5, 9, 40]
    states, written = [constraint.start()] * 3, [bytearray() for _ in budgets]
    for _ in range(60):
        logits = mx.array(rng.normal(size=(3, 260)).astype(np.float32))
        left = [budget - len(text) for budget, text in zip(budgets, written, strict=True)]
        ids = mx.argmax(adapter.apply(logits, states, left), axis=-1).tolist()
        for row, next_id in enumerate(ids):
            states[row] = constraint.advance(states[row], next_id)
            if next_id >= OFFSET:
                written[row].append(next_id - OFFSET)
    assert all(constraint.accepts(bytes(text)) for text in written)
    assert all(state == () for state in states)
    assert [len(text) <= budget for text, budget in zip(written, budgets, strict=True)] == [
        True
    ] * 3
