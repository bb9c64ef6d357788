"""Constraints on bytes: text that a model writes and that is valid whatever the model prefers.

A model of bytes needs no bridge from tokens to characters: an automaton over bytes says at each
step exactly which of the 256 may follow. `regex` is a minimal automaton (`regular`), `json_schema`
and `json_value` are automata that call one another (`schema`, `pushdown`). Each state also knows
the fewest bytes to a complete text, so a budget can be kept: only bytes from which the text can
still be completed are allowed, and what comes out is valid even when the budget runs out.

::

    constraint = json_schema({"type": "object", "properties": {"age": {"type": "integer"}}})
    constraint.check_budget(max_bytes)          # refuses what no text fits in
    masked = LogitsConstraint(constraint)
    states = [constraint.start()] * rows
    logits = masked.apply(logits, states, [max_bytes - written] * rows)

How it is built: charsets (sets of characters) -> encodings (characters as bytes) -> syntax and
anchors (a pattern) -> nodes (a tree) -> automaton and products (a minimal `Dfa`) -> regular; and
schema, with schema_keywords, schema_machines, numbers and formats -> pushdown. `base` is what they
all offer, `logits` puts the masks on a model's output.

Why not llguidance? It serves token vocabularies well and can be run on bytes, but it says only what
may come next, not how far the end is, and that distance is what keeps a budget. The tests use it
as a second opinion on the masks where it is installed.
"""

from mlx_companion.blt.constraints.base import Constraint
from mlx_companion.blt.constraints.logits import LogitsConstraint
from mlx_companion.blt.constraints.pushdown import PushdownConstraint
from mlx_companion.blt.constraints.regular import RegexConstraint, regex
from mlx_companion.blt.constraints.schema import json_schema, json_value

__all__ = [
    "Constraint",
    "LogitsConstraint",
    "PushdownConstraint",
    "RegexConstraint",
    "json_schema",
    "json_value",
    "regex",
]
