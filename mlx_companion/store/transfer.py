"""Export to JSONL, and import from it.

Why: what a person told the companion belongs to them, in a form that any program reads: UTF-8,
one JSON object per line, a header line and then `{"kind": ..., "row": {...}}` for every row of
every table. Adapters are not in it: a version is recorded by the path and SHA-256 of its
adapter, so copy the folder `adapters` beside the database as well to move a companion.

An import is all or nothing, and idempotent: rows whose id is there already are left as they are.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlx_companion.errors import DataError, StoreError
from mlx_companion.runtime.files import atomic_path
from mlx_companion.store.database import Database
from mlx_companion.store.faults import files_explained
from mlx_companion.store.kinds import HEADER, KINDS, Kind, line_of
from mlx_companion.store.lines import FORMAT, FORMAT_VERSION, Lines, Planned
from mlx_companion.store.store import Store
from mlx_companion.store.values import now


@dataclass
class ImportReport:
    """What an import did, by kind.

    `conflicts` says, row by row, what the store holds in another form and therefore kept.
    """

    added: Counter[str] = field(default_factory=Counter)
    existing: Counter[str] = field(default_factory=Counter)
    conflicts: list[str] = field(default_factory=list)


def export(store: Store, path: str | Path, kinds: Iterable[str] | None = None) -> dict[str, int]:
    """Write the store to a JSONL file, atomically and as of one moment.

    Args:
        store: others may go on writing to it.
        path: the file.
        kinds: such as 'interaction' and 'feedback' (all by default); what they refer to comes
            with them, so that the file can be imported on its own.

    Returns:
        The number of lines by kind.

    Raises:
        DataError: there is no such kind, or `path` is the database itself.
        DiskFullError: no space; an older file at `path` is untouched.
        StoreError: the file cannot be written.
    """
    chosen = _with_references(KINDS if kinds is None else kinds)
    if Path(path).absolute().name.startswith(store.path.name) and (
        Path(path).resolve().parent == store.folder.resolve()
    ):
        raise DataError("this would overwrite the database; give another name", path=path)
    counts: dict[str, int] = {}
    with (
        files_explained(Path(path)),
        atomic_path(path) as temporary,
        temporary.open("w", encoding="utf-8", newline="\n") as file,
        store.database.snapshot() as connection,
    ):
        header = {"format": FORMAT, "version": FORMAT_VERSION, "exported_at": now()}
        file.write(_line({"kind": HEADER, "row": header}))
        for kind in chosen:
            counts[kind.name] = 0
            order = kind.numbered or ", ".join(kind.key)
            for row in connection.execute(f"SELECT * FROM {kind.table} ORDER BY {order}"):
                file.write(_line(line_of(kind, row)))
                counts[kind.name] += 1
    return counts


def import_(store: Store, path: str | Path) -> ImportReport:
    """Read an exported file, or plain chat lines (see `chatlines.py`), into the store.

    Every line is checked before the first is written, and all of them are written in one
    transaction. What holds for a key of the person's context is chosen anew among the updates of
    both. The active version and its history are taken over only by a store that has no
    version yet; two histories cannot be one.

    Raises:
        DataError: a line is wrong; names file, line and field; nothing was written.
        StoreError: the file cannot be read, or the store cannot be written.
        DiskFullError: no space; nothing was written.
    """
    path = Path(path)
    lines = Lines(store.database, path)
    lines.check()
    report = ImportReport()
    with store.transaction():
        # Lines may come in any order, so references are judged when all of them are written.
        store.database.execute("PRAGMA defer_foreign_keys = ON")
        writer = _Writer(store.database, report)
        for number, planned in lines.planned():
            try:
                writer.write(planned)
            except StoreError as error:
                raise DataError(str(error), path=path, line=number) from error
        if report.added["context_update"]:
            store.context.choose_all()
    return report


class _Writer:
    """Writes planned rows and counts what became of them."""

    def __init__(self, database: Database, report: ImportReport) -> None:
        self._db = database
        self._report = report
        self._left_out: set[tuple[str, str]] = set()
        self._takes_history = not database.value("SELECT EXISTS (SELECT 1 FROM versions)")

    def write(self, planned: Planned) -> None:
        kind, values = planned
        where, key = _key(kind, values)
        stored = self._db.row(f"SELECT * FROM {kind.table} WHERE {where}", key)
        if stored is not None:
            if self._same(kind, values, dict(stored)):
                self._report.existing[kind.name] += 1
            else:
                self._conflict(kind, key, "is here with another content")
        elif self._orphan(kind, values):
            self._leave_out(kind, values, key, "belongs to a row that was left out")
        elif kind.name == "version_event" and not self._takes_history:
            self._leave_out(kind, values, key, "belongs to another history of versions")
        elif self._insert(kind, values):
            self._report.added[kind.name] += 1
        else:
            self._leave_out(kind, values, key, "is here under another id")

    def _insert(self, kind: Kind, values: dict[str, Any]) -> bool:
        values = dict(values)
        if kind.numbered:
            values[kind.numbered] = self._number(kind, values[kind.numbered])
        if kind.name == "version" and not self._takes_history:
            values["active"] = 0
        if kind.name == "module_version" and self._has_active(values["module"]):
            values["active"] = 0
        if kind.name == "context_update":
            values["current"] = 0
        names = ", ".join(values)
        marks = ", ".join(f":{name}" for name in values)
        sql = f"INSERT INTO {kind.table} ({names}) VALUES ({marks}) ON CONFLICT DO NOTHING"
        return self._db.execute(sql, values) > 0

    def _number(self, kind: Kind, wanted: int) -> int:
        name = kind.numbered
        # Updates queue up behind those that are here; rounds keep their number where it is free.
        if kind.name != "context_update" and not self._db.value(
            f"SELECT EXISTS (SELECT 1 FROM {kind.table} WHERE {name} = ?)", (wanted,)
        ):
            return wanted
        return self._db.value(f"SELECT ifnull(max({name}), 0) + 1 FROM {kind.table}")

    def _has_active(self, module: str) -> bool:
        return bool(
            self._db.value(
                "SELECT EXISTS (SELECT 1 FROM module_versions WHERE module = ? AND active = 1)",
                (module,),
            )
        )

    def _same(self, kind: Kind, values: dict[str, Any], stored: dict[str, Any]) -> bool:
        return all(
            _decoded(kind, name, value) == _decoded(kind, name, stored[name])
            for name, value in values.items()
            if name not in kind.own
        )

    def _orphan(self, kind: Kind, values: dict[str, Any]) -> bool:
        return any((other, values.get(name)) in self._left_out for name, other in kind.refs.items())

    def _leave_out(
        self, kind: Kind, values: dict[str, Any], key: tuple[Any, ...], why: str
    ) -> None:
        self._left_out.add((kind.name, values.get("id", "")))
        self._conflict(kind, key, why)

    def _conflict(self, kind: Kind, key: tuple[Any, ...], why: str) -> None:
        self._report.conflicts.append(f"{kind.name} {' '.join(map(str, key))} {why}; kept as it is")


def _with_references(names: Iterable[str]) -> list[Kind]:
    wanted: set[str] = set()
    queue = list(names)
    while queue:
        name = queue.pop()
        if name not in KINDS:
            raise DataError(f"there is no kind '{name}'; known are: {', '.join(KINDS)}")
        if name not in wanted:
            wanted.add(name)
            queue.extend(KINDS[name].refs.values())
    return [kind for kind in KINDS.values() if kind.name in wanted]


def _key(kind: Kind, values: dict[str, Any]) -> tuple[str, tuple[Any, ...]]:
    return " AND ".join(f"{name} = ?" for name in kind.key), tuple(values[n] for n in kind.key)


def _decoded(kind: Kind, name: str, value: Any) -> Any:
    return json.loads(value) if kind.is_json(name) else value


def _line(item: dict[str, Any]) -> str:
    return json.dumps(item, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n"
