"""Taking a database from the schema it has to the schema this program knows.

Why: a person's interactions outlive many releases. Each migration runs in one transaction and
after a backup, so a failure or a `kill -9` in the middle leaves the old schema and its data.
Several processes may open an old database at once: the first to get the write lock migrates,
the others find the work done.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlx_companion.errors import CompanionError, StoreError
from mlx_companion.store.values import now

_VERSION_TABLE = """
    CREATE TABLE IF NOT EXISTS schema_versions (
        version INTEGER PRIMARY KEY NOT NULL,
        name TEXT NOT NULL,
        applied_at TEXT NOT NULL
    ) STRICT
"""


@dataclass(frozen=True)
class Migration:
    """The statements that lead to schema `version` from the one before it."""

    version: int
    name: str
    statements: tuple[str, ...]


def schema_version(connection: sqlite3.Connection, path: Path) -> int:
    """The schema version of an open database; 0 when it is empty.

    Raises:
        StoreError: the file is the SQLite database of some other program.
    """
    tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}
    if "schema_versions" in tables:
        return connection.execute("SELECT max(version) FROM schema_versions").fetchone()[0] or 0
    if tables:
        raise StoreError(
            f"{path} is a database of another program (it has the tables "
            f"{', '.join(sorted(tables)[:3])}); give the path of a mlx-companion database or a "
            "new file"
        )
    return 0


def migrate(
    connection: sqlite3.Connection,
    path: Path,
    migrations: Sequence[Migration],
    backup: Callable[[int], Path],
) -> int:
    """Apply every migration that the database lacks; return the version reached.

    Args:
        connection: in autocommit mode (`isolation_level=None`).
        path: the database file, for messages.
        migrations: in ascending order of version.
        backup: called with the old version before each migration of a database with content.

    Raises:
        StoreError: the database is newer than `migrations`, or one of them failed (undone).
    """
    newest = migrations[-1].version
    while (current := schema_version(connection, path)) != newest:
        if current > newest:
            raise StoreError(
                f"the database {path} has schema version {current}, but this mlx-companion knows "
                f"only up to {newest}; upgrade it (pip install -U mlx-companion); nothing was "
                "changed"
            )
        # A new database has nothing to lose between two of them, and nothing to back up.
        due = migrations if current == 0 else [m for m in migrations if m.version > current][:1]
        _step(connection, path, due, backup)
    return newest


def _step(
    connection: sqlite3.Connection,
    path: Path,
    migrations: Sequence[Migration],
    backup: Callable[[int], Path],
) -> None:
    migration = migrations[-1]
    # Rebuilding a table needs foreign keys off, which SQLite ignores inside a transaction.
    connection.execute("PRAGMA foreign_keys = OFF")
    saved: Path | None = None
    connection.execute("BEGIN IMMEDIATE")
    try:
        # Asked again under the lock: another process may have migrated while this one waited.
        current = schema_version(connection, path)
        # When that is another version by now, the caller asks again.
        if current < migrations[0].version:
            saved = backup(current) if current else None
            for migration in migrations:
                _apply(connection, migration)
        connection.execute("COMMIT")
    except BaseException as error:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        if isinstance(error, CompanionError) or not isinstance(error, sqlite3.Error):
            raise
        raise StoreError(
            f"migration {migration.version} ({migration.name}) of {path} failed: {error}; it was "
            f"undone and the data is as before{f'; a backup is at {saved}' if saved else ''}"
        ) from error
    finally:
        connection.execute("PRAGMA foreign_keys = ON")


def _apply(connection: sqlite3.Connection, migration: Migration) -> None:
    connection.execute(_VERSION_TABLE)
    for statement in migration.statements:
        connection.execute(statement)
    orphans = connection.execute("PRAGMA foreign_key_check").fetchall()
    if orphans:
        raise sqlite3.IntegrityError(f"{len(orphans)} rows would refer to nothing")
    connection.execute(
        "INSERT INTO schema_versions VALUES (?, ?, ?)",
        (migration.version, migration.name, now()),
    )
