"""One connection to the SQLite file, shared by the threads of a process behind a lock.

Why one: SQLite lets a single writer in at a time anyway, and a connection per thread leaks when
threads come and go. Other processes have their own; WAL lets them read while one writes, and
the busy timeout makes writers wait for each other.

    with database.transaction():
        database.execute("INSERT ...", values)

Transactions nest: an inner one is a savepoint of the outer one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mlx_companion.errors import DiskFullError, StoreError
from mlx_companion.store.backups import check, list_backups, make_backup
from mlx_companion.store.faults import damaged, explained
from mlx_companion.store.migrations import Migration, migrate, schema_version

BUSY_SECONDS = 30.0
_OLDEST_SQLITE = (3, 37, 0)

_PRAGMAS = (
    "PRAGMA foreign_keys = ON",
    # FULL: an acknowledged commit survives a power cut, not only a crash of the process.
    "PRAGMA synchronous = FULL",
    "PRAGMA fullfsync = ON",
    "PRAGMA checkpoint_fullfsync = ON",
    # Deleted text is overwritten, and sorting a person's text leaves no temporary file behind.
    "PRAGMA secure_delete = ON",
    "PRAGMA temp_store = MEMORY",
    "PRAGMA cell_size_check = ON",
    "PRAGMA trusted_schema = OFF",
)

# One opening at a time in a process: creating the file closes a descriptor of it, which would
# drop locks that another thread's connection had just taken.
_opening = threading.Lock()
_databases: weakref.WeakSet[Database] = weakref.WeakSet()


class Database:
    """The open database file.

    Args:
        path: the file; it and its folder are created when missing, for the owner only.
        migrations: the schema, see `schema.py`.
        busy_seconds: how long to wait for another process's write lock.

    Raises:
        StoreError: the file is damaged, foreign, newer than this program, or cannot be opened.
        DiskFullError: there is no space for a new file or for the backup before a migration.
    """

    def __init__(
        self, path: Path, migrations: Sequence[Migration], busy_seconds: float = BUSY_SECONDS
    ) -> None:
        if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
            raise StoreError(
                f"this Python has SQLite {sqlite3.sqlite_version}; 3.37 or newer is needed; "
                "use a newer Python"
            )
        self.path = path
        self._busy_seconds = busy_seconds
        self._lock = threading.RLock()
        self._depth = 0
        self._owner: int | None = None
        self._connection: sqlite3.Connection | None = None
        self._unusable = ""
        with _opening, explained(path):
            _create_file(path)
            self.schema_version = self._prepare(migrations)
        _databases.add(self)

    def _prepare(self, migrations: Sequence[Migration]) -> int:
        connection = connect(self.path, self._busy_seconds)
        with contextlib.closing(connection):
            check(connection, self.path)
            if schema_version(connection, self.path) <= migrations[-1].version:
                _use_wal(connection, self.path, self._busy_seconds)
            return migrate(
                connection, self.path, migrations, lambda version: make_backup(self.path, version)
            )

    def _open(self) -> sqlite3.Connection:
        """The connection, opened on first use; the caller holds the lock."""
        if self._unusable:
            raise StoreError(f"the store {self.path} {self._unusable}")
        if self._connection is None:
            self._connection = connect(self.path, self._busy_seconds)
        return self._connection

    def before_fork(self) -> None:
        """Let go of the file: SQLite's locks are not inherited, so no connection may be either."""
        self._lock.acquire()
        if self._depth == 0:
            self._disconnect()

    def after_fork(self, child: bool) -> None:
        """Go on in the parent or in the child; each opens its own connection when it needs one."""
        if child and self._depth:
            self._unusable = "was in the middle of a transaction when this process was forked off"
        self._lock.release()

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All of the block's changes or none of them; others see them when it ends.

        Raises:
            StoreError: another process held the write lock for longer than the busy timeout.
        """
        with self._lock:
            begin, keep, undo = self._statements()
            self._depth, self._owner = self._depth + 1, threading.get_ident()
            try:
                self.execute(begin)
                yield
                self.execute(keep)
            except BaseException:
                self._undo(undo)
                raise
            finally:
                self._depth -= 1

    @property
    def in_transaction(self) -> bool:
        """Whether this thread is inside of a `transaction` block."""
        # Without the lock: only this thread can make both true or end that.
        return self._depth > 0 and self._owner == threading.get_ident()

    def _statements(self) -> tuple[str, str, tuple[str, ...]]:
        # IMMEDIATE takes the write lock at once: a reader that starts to write half-way through
        # is refused without waiting when somebody else wrote in between.
        if self._depth == 0:
            return "BEGIN IMMEDIATE", "COMMIT", ("ROLLBACK",)
        name = f"nested_{self._depth}"
        return f"SAVEPOINT {name}", f"RELEASE {name}", (f"ROLLBACK TO {name}", f"RELEASE {name}")

    def _undo(self, statements: tuple[str, ...]) -> None:
        # A full disk makes SQLite roll back by itself, and then there is nothing left to undo.
        if self._connection is not None and self._connection.in_transaction:
            for statement in statements:
                self.execute(statement)

    def execute(self, sql: str, values: Sequence[Any] | dict[str, Any] = ()) -> int:
        """Run one statement; the number of rows that it changed."""
        with self._lock, explained(self.path):
            return self._open().execute(sql, values).rowcount

    def rows(self, sql: str, values: Sequence[Any] | dict[str, Any] = ()) -> list[sqlite3.Row]:
        """All rows of one statement."""
        with self._lock, explained(self.path):
            # All at once: a cursor left open would see, and hold up, what other threads do.
            return self._open().execute(sql, values).fetchall()

    def row(self, sql: str, values: Sequence[Any] | dict[str, Any] = ()) -> sqlite3.Row | None:
        """The first row of one statement, or None."""
        return next(iter(self.rows(sql, values)), None)

    def value(self, sql: str, values: Sequence[Any] | dict[str, Any] = ()) -> Any:
        """The first column of the first row of one statement, or None."""
        row = self.row(sql, values)
        return None if row is None else row[0]

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[sqlite3.Connection]:
        """A second connection that sees one unchanging state while the others go on writing."""
        with (
            explained(self.path),
            contextlib.closing(connect(self.path, self._busy_seconds)) as connection,
        ):
            connection.execute("BEGIN")
            yield connection
            connection.execute("ROLLBACK")

    def close(self) -> None:
        """Close the connection; closing twice does nothing."""
        with self._lock, explained(self.path):
            self._disconnect()
            self._unusable = "is closed; open it again with Store(path)"


def connect(path: Path, busy_seconds: float) -> sqlite3.Connection:
    """A connection in autocommit mode with the settings of the house."""
    connection = sqlite3.connect(
        path, timeout=busy_seconds, isolation_level=None, check_same_thread=False
    )
    connection.row_factory = sqlite3.Row
    try:
        for pragma in _PRAGMAS:
            connection.execute(pragma)
    except BaseException:
        connection.close()
        raise
    return connection


def _create_file(path: Path) -> None:
    if path.is_dir():
        raise StoreError(f"{path} is a folder; give the path of a file in it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except OSError as error:
        if isinstance(error, FileExistsError) and path.is_file():
            _refuse_emptied(path)
            return
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(f"no space left to create {path}; free some space") from error
        raise StoreError(
            f"cannot create the database {path}: {error.strerror}; give a path in a folder that "
            "you may write to"
        ) from error


def _refuse_emptied(path: Path) -> None:
    # SQLite takes a file of 0 bytes for a new database; with backups beside it, it is a loss.
    wal = Path(f"{path}-wal")
    if (
        path.stat().st_size == 0
        and not (wal.exists() and wal.stat().st_size)
        and list_backups(path)
    ):
        raise damaged(path, "it has 0 bytes")


def _use_wal(connection: sqlite3.Connection, path: Path, busy_seconds: float) -> None:
    # Processes that switch a new file at the same moment are told "locked" without any waiting.
    deadline = time.monotonic() + busy_seconds
    while True:
        try:
            mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
            break
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
    if mode != "wal":
        raise StoreError(
            f"the database {path} cannot use a write-ahead log (mode {mode!r}); keep it on a local "
            "disk, not on a network share"
        )


def _before_fork() -> None:
    for database in list(_databases):
        database.before_fork()


def _after_fork(child: bool) -> None:
    for database in list(_databases):
        database.after_fork(child)


os.register_at_fork(
    before=_before_fork,
    after_in_parent=lambda: _after_fork(child=False),
    after_in_child=lambda: _after_fork(child=True),
)
