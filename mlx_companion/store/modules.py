"""What the small modules keep between runs: state, versions, events and recent traffic.

Why four small parts: a module's running state (a drift baseline) changes with every reply and is
the person's; its registered versions change rarely and point to folders; events say what happened
to them; traffic is a bounded sample of what came in, on which a candidate is tried beside the
version in use (`slm/registry.py`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mlx_companion.errors import StoreError
from mlx_companion.store.database import Database
from mlx_companion.store.records import ModuleAction, ModuleEvent, ModuleVersion, Traffic, load
from mlx_companion.store.values import check_prompt, dump_json, new_id, now

# Rows of traffic kept for each module; older ones go.
KEPT = 500


class ModuleStates:
    """A JSON value for each module and name, such as the drift monitor's baseline."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def get(self, module: str, name: str = "state", default: Any = None) -> Any:
        """The value, or `default` when it was never set."""
        text = self._db.value(
            "SELECT value FROM module_states WHERE module = ? AND name = ?", (module, name)
        )
        return default if text is None else json.loads(text)

    def set(self, module: str, value: Any, name: str = "state") -> None:
        """Keep `value` in place of what was there.

        Raises:
            DataError: a name is empty, or the value has no JSON form.
        """
        self._db.execute(
            "INSERT INTO module_states VALUES (?, ?, ?, ?) ON CONFLICT (module, name) DO UPDATE "
            "SET value = excluded.value, updated_at = excluded.updated_at",
            (check_prompt(module, "module"), check_prompt(name, "name"), dump_json(value), now()),
        )


class ModuleVersions:
    """The registered packs of every module, which of them is active, and how it came to be."""

    def __init__(self, database: Database) -> None:
        self._db = database
        self._folder = database.path.parent

    def add(
        self, module: str, label: str, folder: Path, sha256: str, *, metrics: Any, personal: bool
    ) -> ModuleVersion:
        """Record a pack under the module's next number; not yet active."""
        with self._db.transaction():
            number = self._db.value(
                "SELECT ifnull(max(number), 0) + 1 FROM module_versions WHERE module = ?",
                (check_prompt(module, "module"),),
            )
            row_id = f"{module}-v{number:04d}"
            self._db.execute(
                "INSERT INTO module_versions VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0, ?)",
                (
                    row_id,
                    module,
                    number,
                    label,
                    self._stored(folder),
                    sha256,
                    dump_json(metrics or {}, "metrics"),
                    int(personal),
                    now(),
                ),
            )
            return self.get(row_id)

    def make_personal(self, version_id: str) -> ModuleVersion:
        """Mark a version as trained on this person's traffic."""
        self._db.execute("UPDATE module_versions SET personal = 1 WHERE id = ?", (version_id,))
        return self.get(version_id)

    def get(self, version_id: str) -> ModuleVersion:
        """One version. Raises StoreError when there is none."""
        row = self._db.row("SELECT * FROM module_versions WHERE id = ?", (version_id,))
        if row is None:
            raise StoreError(f"there is no version '{version_id}' of a module in the store")
        return self._load(row)

    def all(self, module: str | None = None) -> list[ModuleVersion]:
        """All versions (of one module), oldest first."""
        rows = self._db.rows(
            "SELECT * FROM module_versions WHERE ?1 IS NULL OR module = ?1 ORDER BY module, number",
            (module,),
        )
        return [self._load(row) for row in rows]

    def active(self, module: str) -> ModuleVersion | None:
        """The version in use; None is the shipped pack."""
        row = self._db.row(
            "SELECT * FROM module_versions WHERE module = ? AND active = 1", (module,)
        )
        return None if row is None else self._load(row)

    def move(self, module: str, to: str | None, action: ModuleAction, reason: str) -> None:
        """Make `to` the active version (None: the shipped pack), with its line in the history."""
        with self._db.transaction():
            active = self.active(module)
            self._db.execute(
                "UPDATE module_versions SET active = 0 WHERE module = ? AND active = 1", (module,)
            )
            self._db.execute(
                "UPDATE module_versions SET active = 1 WHERE module = ? AND id = ?", (module, to)
            )
            self.note(module, action, reason, from_version=active.id if active else None,
                      to_version=to)  # fmt: skip

    def note(
        self,
        module: str,
        action: ModuleAction,
        reason: str,
        *,
        from_version: str | None = None,
        to_version: str | None = None,
        meta: Any = None,
    ) -> None:
        """Record what happened to a module's versions."""
        self._db.execute(
            "INSERT INTO module_events VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (new_id(), now(), module, action, from_version, to_version, reason,
             dump_json(meta or {}, "meta")),
        )  # fmt: skip

    def events(
        self, module: str | None = None, action: ModuleAction | None = None
    ) -> list[ModuleEvent]:
        """What happened (to one module, of one kind), oldest first."""
        rows = self._db.rows(
            "SELECT * FROM module_events WHERE (?1 IS NULL OR module = ?1) "
            "AND (?2 IS NULL OR action = ?2) ORDER BY at, id",
            (module, action),
        )
        return [load(ModuleEvent, row) for row in rows]

    def _stored(self, path: Path) -> str:
        full, folder = path.resolve(), self._folder.resolve()
        return full.relative_to(folder).as_posix() if full.is_relative_to(folder) else str(full)

    def _load(self, row: Any) -> ModuleVersion:
        return load(ModuleVersion, {**row, "folder": self._folder.absolute() / row["folder"]})


class TrafficLog:
    """The last inputs of each module and what it answered; at most `KEPT` of each are kept."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def add(
        self,
        module: str,
        version: str,
        item: Any,
        result: Any,
        seconds: float,
        *,
        label: Any = None,
    ) -> str:
        """Keep one input and its answer; its id, with which `label` can follow."""
        row_id = new_id()
        with self._db.transaction():
            self._db.execute(
                "INSERT INTO module_traffic VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (row_id, check_prompt(module, "module"), version, now(), dump_json(item, "input"),
                 dump_json(result, "result"), dump_json(label, "label"), seconds),
            )  # fmt: skip
            self._db.execute(
                "DELETE FROM module_traffic WHERE id IN (SELECT id FROM module_traffic "
                "WHERE module = ? ORDER BY at DESC, id DESC LIMIT -1 OFFSET ?)",
                (module, KEPT),
            )
        return row_id

    def label(self, traffic_id: str, label: Any) -> None:
        """Say what the right answer would have been. Raises StoreError when it is gone."""
        changed = self._db.execute(
            "UPDATE module_traffic SET label = ? WHERE id = ?", (dump_json(label), traffic_id)
        )
        if not changed:
            raise StoreError(f"there is no traffic '{traffic_id}'; only the last {KEPT} are kept")

    def recent(
        self, module: str, limit: int = KEPT, *, since: str = "", labelled: bool = False
    ) -> list[Traffic]:
        """The last inputs of a module, newest first (after a moment; with a label)."""
        rows = self._db.rows(
            "SELECT * FROM module_traffic WHERE module = ? AND at > ? "
            "AND (label <> 'null' OR NOT ?) ORDER BY at DESC, id DESC LIMIT ?",
            (module, since, labelled, limit),
        )
        return [load(Traffic, row) for row in rows]
