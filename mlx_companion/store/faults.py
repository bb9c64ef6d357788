"""SQLite's errors in this package's words: what happened, to which file, and what to do.

Why: "database is locked" or "disk I/O error" tells a person nothing. Every statement that the
store sends runs inside `explained`, so nothing from `sqlite3` reaches a caller.
"""

from __future__ import annotations

import contextlib
import errno
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from mlx_companion.errors import (
    CompanionError,
    ConfigError,
    DataError,
    DiskFullError,
    StoreError,
)
from mlx_companion.store.values import surrogate_problem

# With less than this left, an I/O error of SQLite (which hides its errno) is a full disk.
_LITTLE_SPACE = 256 * 1024

_PLAIN_CODES = {
    sqlite3.SQLITE_READONLY: "it is read-only; make the file and its folder writable",
    sqlite3.SQLITE_PERM: "access was denied; check the permissions of the file and its folder",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened; check that the folder exists, that you may "
    "write to it, and that the path names a file",
    sqlite3.SQLITE_IOERR: "the disk reported a read or write error; check the disk, then run it "
    "again",
}


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what SQLite raises inside the block into an error of this package.

    Args:
        path: the database file, for the message.

    Raises:
        DiskFullError: there is no space left; the transaction was undone.
        DataError: a value cannot be stored (a lone surrogate, an integer over 64 bits, a type).
        StoreError: everything else.
    """
    try:
        yield
    except UnicodeEncodeError as error:
        raise DataError(surrogate_problem(error)) from error
    except OverflowError as error:
        raise DataError(f"a number does not fit into 64 bits: {error}") from error
    except sqlite3.Error as error:
        raise _explain(error, path) from error


@contextlib.contextmanager
def files_explained(path: Path) -> Iterator[None]:
    """Turn what the operating system refuses about `path` inside the block into our errors.

    Raises:
        DiskFullError: there is no space left.
        StoreError: anything else, such as missing permissions.
    """
    try:
        yield
    except DiskFullError:
        raise
    except ConfigError as error:
        # A device, or a folder that cannot be made: the place is the trouble, and no setting.
        raise StoreError(f"cannot write {path}: {error}") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(f"no space left for {path}; free some and run it again") from error
        raise StoreError(
            f"cannot write {error.filename or path}: {error.strerror}; check that it is a place "
            "that you may write to"
        ) from error


def damaged(path: Path, detail: str) -> StoreError:
    """The error for a database that fails its check; names the newest backup."""
    from mlx_companion.store.backups import latest_backup

    backup = latest_backup(path)
    advice = (
        f"the newest backup is {backup}; put it in place with mlx_companion.store.restore_backup, "
        "which keeps the damaged file beside it"
        if backup
        else "there is no backup of it; move the file away to start with an empty one"
    )
    return StoreError(f"the database {path} is damaged ({detail}); nothing was changed; {advice}")


def _explain(error: sqlite3.Error, path: Path) -> CompanionError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StoreError(
            f"the database {path} stayed locked by another process; nothing was written; "
            "let the other one finish (or end it) and run this again"
        )
    if code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR and _no_space(path)):
        return DiskFullError(
            f"no space left to write {path}; the change was undone and what was there before is "
            "untouched; free some space and run it again"
        )
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return damaged(path, str(error))
    if code in _PLAIN_CODES:
        return StoreError(f"the database {path}: {_PLAIN_CODES[code]} (SQLite: {error})")
    if code == sqlite3.SQLITE_CONSTRAINT:
        return StoreError(f"the database {path} refused the change: {_constraint(error)}")
    if code == sqlite3.SQLITE_TOOBIG or ("type" in str(error) and "not supported" in str(error)):
        return DataError(f"a value cannot be stored: {error}")
    return StoreError(f"the database {path}: {error}")


def _constraint(error: sqlite3.Error) -> str:
    if "FOREIGN KEY" in str(error):
        return "it refers to a row that does not exist (or is still referred to)"
    return str(error)


def _no_space(path: Path) -> bool:
    try:
        return shutil.disk_usage(path.parent).free < _LITTLE_SPACE
    except OSError:
        return False
