"""Versions of the companion and the pointer to the active one.

Why: deploying new weights is nothing but moving this pointer, in one transaction together with
its line in the history, so a kill leaves the old version or the new one. A partial unique index
makes two active versions impossible. Adapter paths are kept relative to the database's folder
where they lie inside it, so that the folder can be moved.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlx_companion.errors import AdapterError, StoreError
from mlx_companion.runtime.files import sha256_file
from mlx_companion.store.database import Database
from mlx_companion.store.records import Version, VersionAction, VersionEvent, load
from mlx_companion.store.values import dump_json, new_id, now

ADAPTER_WEIGHTS = "adapters.safetensors"


class Versions:
    """The versions, which of them is active, and how it came to be."""

    def __init__(self, database: Database) -> None:
        self._db = database
        self._folder = database.path.parent

    def create(
        self,
        *,
        name: str = "",
        parent: str | None = None,
        adapter_path: str | Path | None = None,
        adapter_sha256: str | None = None,
        base_sha256: str | None = None,
        model_source: str | None = None,
        metrics: Any = None,
        round_id: str | None = None,
    ) -> Version:
        """Record a version (not yet active) under the next number.

        The same round and adapter hash again returns the version that is there, so that a
        deploying step can be repeated.

        Args:
            name: for people.
            parent: the version that it was trained from or compared with.
            adapter_path: the adapter's folder or file; None for the base model itself.
            adapter_sha256: of the adapter's weights file.
            base_sha256: content hash of the base model's weights.
            model_source: what `load` was given for the base model.
            metrics: a dataclass or a mapping.
            round_id: the round that made it.

        Raises:
            StoreError: there is no version `parent`.
        """
        with self._db.transaction():
            # Inside the transaction, so that two processes cannot take one number.
            row = self._db.row(
                "SELECT * FROM versions WHERE round_id = ? AND adapter_sha256 = ?",
                (round_id, adapter_sha256),
            )
            if row is not None:
                return self._load(row)
            if parent is not None:
                self.get(parent)
            number = self._db.value("SELECT ifnull(max(number), 0) + 1 FROM versions")
            version_id = f"v{number:04d}"
            self._db.execute(
                "INSERT INTO versions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0)",
                (
                    version_id,
                    number,
                    name,
                    parent,
                    None if adapter_path is None else self._stored_path(adapter_path),
                    adapter_sha256,
                    base_sha256,
                    model_source,
                    dump_json(metrics or {}, "metrics"),
                    now(),
                    round_id,
                ),
            )
            return self.get(version_id)

    def ensure_base(self, base_sha256: str, model_source: str) -> Version:
        """The version that is the plain base model; made, and activated if none is, when missing.

        Safe when several processes start at once.
        """
        with self._db.transaction():
            row = self._db.row(
                "SELECT * FROM versions WHERE adapter_path IS NULL AND base_sha256 = ? "
                "ORDER BY number",
                (base_sha256,),
            )
            version = (
                self._load(row)
                if row is not None
                else self.create(name="base", base_sha256=base_sha256, model_source=model_source)
            )
            if self.active() is None:
                version = self.activate(version.id, "first use of the base model")
            return version

    def get(self, version_id: str) -> Version:
        """One version. Raises StoreError, naming the known ones, when there is none."""
        row = self._db.row("SELECT * FROM versions WHERE id = ?", (version_id,))
        if row is None:
            known = ", ".join(version.id for version in self.all()[-10:]) or "none yet"
            raise StoreError(f"there is no version '{version_id}'; the last ones are: {known}")
        return self._load(row)

    def active(self) -> Version | None:
        """The version in use, or None before the first one is activated."""
        row = self._db.row("SELECT * FROM versions WHERE active = 1")
        return None if row is None else self._load(row)

    def all(self) -> list[Version]:
        """All versions, oldest first."""
        return [self._load(row) for row in self._db.rows("SELECT * FROM versions ORDER BY number")]

    def activate(self, version_id: str, reason: str, *, verify: bool = True) -> Version:
        """Make a version the active one, in one transaction with its line in the history.

        Args:
            version_id: activating the active one changes nothing.
            reason: kept in the history.
            verify: first make sure that the adapter is there and unchanged (see `verify`).

        Raises:
            StoreError: there is no such version.
            AdapterError: its adapter is missing or changed; the active version stays.
        """
        if verify:
            self.verify(version_id)
        return self._move(version_id, "promote", reason)

    def rollback(self, reason: str, *, to: str | None = None, verify: bool = True) -> Version:
        """Go back to the version that was active before, or to the parent when there was none.

        A second rollback goes one further back, not forward again.

        Args:
            reason: kept in the history.
            to: go back to this version instead.
            verify: as in `activate`.

        Raises:
            StoreError: nothing is active, or there is nothing to go back to.
            AdapterError: the adapter to go back to is missing or changed; choose another (`to`).
        """
        with self._db.transaction():
            target = to or self.previous()
            if verify:
                self.verify(target)
            return self._move(target, "rollback", reason)

    def previous(self) -> str:
        """The version that `rollback` would go back to. Raises StoreError when there is none."""
        active = self.active()
        if active is None:
            raise StoreError("no version is active, so there is nothing to go back from")
        earlier = self._stack()[:-1]
        target = earlier[-1] if earlier else active.parent
        if target is None:
            raise StoreError(
                f"{active.id} is the first version that was active and has no parent; there is "
                "nothing to go back to"
            )
        return target

    def history(self) -> list[VersionEvent]:
        """Every change of the active version, oldest first."""
        rows = self._db.rows("SELECT * FROM version_history ORDER BY at, id")
        return [load(VersionEvent, row) for row in rows]

    def verify(self, version_id: str) -> Version:
        """Make sure that a version's adapter is there and is the one that was recorded.

        Raises:
            StoreError: there is no such version.
            AdapterError: its adapter is missing, or its SHA-256 is another.
        """
        version = self.get(version_id)
        if version.adapter_path is None:
            return version
        file = version.adapter_path
        if file.is_dir():
            file = file / ADAPTER_WEIGHTS
        if not file.is_file():
            raise AdapterError(
                f"the adapter of {version_id} is missing: {file} does not exist; put it back or "
                "choose another version"
            )
        if version.adapter_sha256 and (found := sha256_file(file)) != version.adapter_sha256:
            raise AdapterError(
                f"the adapter of {version_id} is damaged: {file} has SHA-256 {found[:12]}..., "
                f"recorded was {version.adapter_sha256[:12]}...; choose another version"
            )
        return version

    def _move(self, version_id: str, action: VersionAction, reason: str) -> Version:
        with self._db.transaction():
            target = self.get(version_id)
            active = self.active()
            if target.active:
                return target
            self._db.execute("UPDATE versions SET active = 0 WHERE active = 1")
            self._db.execute("UPDATE versions SET active = 1 WHERE id = ?", (version_id,))
            self._db.execute(
                "INSERT INTO version_history VALUES (?, ?, ?, ?, ?, ?)",
                (new_id(), now(), active.id if active else None, version_id, action, reason),
            )
            return self.get(version_id)

    def _stack(self) -> list[str]:
        """The versions one would see by going back step by step; the active one is last."""
        # Not simply the event before: after two rollbacks that would lead forward again.
        stack: list[str] = []
        for event in self.history():
            if event.action == "rollback":
                stack.pop()
                while event.to_version in stack and stack.pop() != event.to_version:
                    pass
            stack.append(event.to_version)
        return stack

    def _load(self, row: Any) -> Version:
        values: dict[str, Any] = dict(row)
        if values["adapter_path"] is not None:
            values["adapter_path"] = self._folder.absolute() / values["adapter_path"]
        return load(Version, values)

    def _stored_path(self, path: str | Path) -> str:
        full, folder = Path(path).resolve(), self._folder.resolve()
        return full.relative_to(folder).as_posix() if full.is_relative_to(folder) else str(full)
