"""The kinds of lines in an exported file, one per table, and the check of each line.

Why: an import must refuse a bad line before it writes anything, and say which line and field.
Column names and types come from the open database itself, so that a new column needs no edit
here; only keys, references, times and choices are listed. A line is
`{"kind": "feedback", "row": {"id": ..., "kind": "up", ...}}`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, get_args

from mlx_companion.errors import DataError
from mlx_companion.store.database import Database
from mlx_companion.store.records import ContextStatus, ModuleAction
from mlx_companion.store.values import (
    MAX_INT,
    canonical_time,
    check_prompt,
    check_text,
    dump_json,
)

HEADER = "header"
_TIMES = {
    "created_at", "started_at", "finished_at", "at", "event_at", "decided_at", "updated_at",
}  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """A table as lines.

    `json` are columns that hold an object and `any_json` those with any JSON value; `refs` gives
    the kind that a column refers to; `choices` what a column may hold; `filled` are texts that
    must say something; `own` is what a store may set for itself, and which therefore makes no
    row another one; `numbered` is counted on by the store that imports it.
    """

    name: str
    table: str
    key: tuple[str, ...] = ("id",)
    json: frozenset[str] = frozenset()
    refs: Mapping[str, str] = field(default_factory=dict)
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    filled: tuple[str, ...] = ()
    any_json: frozenset[str] = frozenset()
    own: frozenset[str] = frozenset()
    numbered: str | None = None

    def is_json(self, column: str) -> bool:
        """Whether a column holds JSON."""
        return column in self.json or column in self.any_json


class Column(NamedTuple):
    """One column: its SQLite type, and whether a line must give it."""

    type: str
    required: bool
    nullable: bool


# In an order in which nothing refers to a later kind.
KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("setting", "settings", key=("key",), any_json=frozenset({"value"})),
        Kind(
            "interaction",
            "interactions",
            json=frozenset({"meta"}),
            filled=("prompt",),
            own=frozenset({"created_at"}),
        ),
        Kind(
            "feedback",
            "feedback",
            own=frozenset({"created_at"}),
            refs={"interaction_id": "interaction"},
            choices={"kind": ("up", "down", "edit")},
        ),
        Kind(
            "round",
            "rounds",
            json=frozenset({"config", "summary"}),
            own=frozenset({"number"}),
            numbered="number",
        ),
        Kind(
            "round_step",
            "round_steps",
            key=("round_id", "step"),
            json=frozenset({"payload"}),
            refs={"round_id": "round"},
            choices={"status": ("running", "done", "failed")},
        ),
        Kind(
            "example",
            "examples",
            json=frozenset({"sampling", "scores"}),
            refs={"round_id": "round"},
            choices={"purpose": ("train", "gate"), "verdict": ("good", "bad")},
            filled=("prompt",),
        ),
        Kind(
            "replay",
            "replay",
            key=("round_id", "example_id"),
            refs={"round_id": "round", "example_id": "example"},
            choices={"role": ("new", "replay")},
        ),
        Kind(
            "run",
            "runs",
            json=frozenset({"config", "versions", "machine", "summary"}),
            choices={"status": ("running", "done", "failed", "stopped")},
        ),
        Kind("metric", "run_metrics", key=("run_id", "name", "step"), refs={"run_id": "run"}),
        Kind(
            "version",
            "versions",
            json=frozenset({"metrics"}),
            refs={"parent": "version"},
            own=frozenset({"active"}),
        ),
        Kind(
            "version_event",
            "version_history",
            refs={"from_version": "version", "to_version": "version"},
            choices={"action": ("promote", "rollback")},
        ),
        Kind("gate_look", "gate_ledger"),
        Kind(
            "context_update",
            "context_updates",
            any_json=frozenset({"value"}),
            choices={"status": get_args(ContextStatus)},
            filled=("key", "source"),
            own=frozenset({"position", "current"}),
            numbered="position",
        ),
        Kind(
            "module_state",
            "module_states",
            key=("module", "name"),
            any_json=frozenset({"value"}),
        ),
        Kind(
            "module_version",
            "module_versions",
            json=frozenset({"metrics"}),
            filled=("module",),
            own=frozenset({"active"}),
        ),
        Kind(
            "module_event",
            "module_events",
            json=frozenset({"meta"}),
            choices={"action": get_args(ModuleAction)},
        ),
        Kind(
            "module_traffic",
            "module_traffic",
            any_json=frozenset({"input", "result", "label"}),
        ),
    )
}


def columns_of(database: Database, kind: Kind) -> dict[str, Column]:
    """The columns of a kind's table, by name."""
    rows = database.rows(f"PRAGMA table_info({kind.table})")
    return {
        row["name"]: Column(
            type=row["type"],
            required=bool(row["notnull"]) and row["dflt_value"] is None,
            nullable=not row["notnull"],
        )
        for row in rows
    }


def check_fields(
    kind: Kind, columns: Mapping[str, Column], row: Mapping[str, Any]
) -> dict[str, Any]:
    """The row of one line as the database keeps it.

    Raises:
        DataError: a field is unknown, missing or wrong; names the field, not yet the line.
    """
    values: dict[str, Any] = {}
    for name, value in row.items():
        if name not in columns:
            known = ", ".join(columns)
            raise DataError(f"a line of kind '{kind.name}' has only: {known}", field=name)
        values[name] = _value(kind, name, columns[name], value)
    for name, column in columns.items():
        if column.required and name not in values:
            raise DataError(f"it is missing; a line of kind '{kind.name}' needs it", field=name)
    return values


def _value(kind: Kind, name: str, column: Column, value: Any) -> Any:
    if kind.is_json(name):
        if name in kind.json and not isinstance(value, dict):
            raise DataError(f"expected an object, got {_type(value)}", field=name)
        return dump_json(value, name)
    if value is None:
        if column.nullable:
            return None
        raise DataError("it is null; expected a value", field=name)
    checked = _CHECKS[column.type](value, name)
    if name in kind.choices and checked not in kind.choices[name]:
        allowed = ", ".join(map(repr, kind.choices[name]))
        raise DataError(f"{checked!r} is none of {allowed}", field=name)
    if name in kind.filled or (name in kind.key and column.type == "TEXT"):
        check_prompt(checked, name)
    return canonical_time(checked, name) if name in _TIMES else checked


def _integer(value: Any, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise DataError(f"expected a whole number, got {_type(value)}", field=name)
    if not -MAX_INT <= value <= MAX_INT:
        raise DataError("the number does not fit into 64 bits", field=name)
    return value


def _real(value: Any, name: str) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise DataError(f"expected a number, got {_type(value)}", field=name)
    if abs(value) > sys.float_info.max:
        raise DataError("the number is too large", field=name)
    return float(value)


_CHECKS: dict[str, Callable[[Any, str], Any]] = {
    "TEXT": check_text,
    "INTEGER": _integer,
    "REAL": _real,
}


def _type(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false"}
    return "null" if value is None else names.get(type(value), "a number")


def line_of(kind: Kind, row: Mapping[str, Any]) -> dict[str, Any]:
    """A stored row as the object of its line."""
    plain = dict(row)
    for column in kind.json | kind.any_json:
        plain[column] = json.loads(plain[column])
    return {"kind": kind.name, "row": plain}
