"""Checks and copies of the database file.

Why: a disk can damage a file. `check` finds that out when the store is opened, before anything
is written; `make_backup` copies a consistent state with SQLite's backup API while others go on
writing; `restore_backup` puts a copy in place and keeps the damaged file beside it.

Nothing here opens the database with Python's `open`: closing such a file would drop the locks
that SQLite holds on it for the whole process (POSIX advisory locks).
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sqlite3
from pathlib import Path

from mlx_companion.errors import StoreError
from mlx_companion.runtime.files import atomic_path, fsync_dir, left_behind
from mlx_companion.store.faults import damaged, explained, files_explained
from mlx_companion.store.values import now

# A full check reads every index entry; beyond this size (bytes) only the structure is checked.
FULL_CHECK_BYTES = 32 * 1024 * 1024
KEEP = 5
# Of the name of a backup, behind that of the database.
_STAMP = r"-\d{8}T\d{12}Z-v\d+\.db"


def backup_folder(path: Path) -> Path:
    """Where the backups of the database at `path` lie."""
    return path.parent / "backups"


def list_backups(path: Path) -> list[Path]:
    """The backups of the database at `path`, oldest first."""
    pattern = re.compile(re.escape(path.stem) + _STAMP)
    folder = backup_folder(path)
    if not folder.is_dir():
        return []
    return sorted(entry for entry in folder.iterdir() if pattern.fullmatch(entry.name))


def list_copies(path: Path) -> list[Path]:
    """Every file that holds a copy of the database at `path`, or a part of one.

    Those are the backups, damaged files put aside, and what a kill left of a copy half-way, with
    the logs of each.
    """
    logs = r"(-wal|-shm|-journal)?"
    half = r"(\.tmp-[0-9a-f]+-\d+-[0-9a-f]+-)?"
    name, backup = re.escape(path.name), re.escape(path.stem) + _STAMP
    places = {
        path.parent: rf"{name}\.damaged-.*|{half}{name}{logs}",
        backup_folder(path): rf"{half}{backup}{logs}",
    }
    own = {path.with_name(f"{path.name}{end}") for end in ("", "-wal", "-shm", "-journal")}
    return [
        entry
        for folder, pattern in places.items()
        if folder.is_dir()
        for entry in sorted(folder.iterdir())
        if re.fullmatch(pattern, entry.name) and entry not in own
    ]


def sweep_copies(path: Path) -> None:
    """Remove what processes that are gone left of copies half-way; backups themselves stay."""
    # What cannot be listed or removed stays, which is no reason not to open the database.
    with contextlib.suppress(OSError):
        for copy in list_copies(path):
            if left_behind(copy.name) is not None:
                copy.unlink(missing_ok=True)


def latest_backup(path: Path) -> Path | None:
    """The newest backup of the database at `path`, or None."""
    return next(reversed(list_backups(path)), None)


def make_backup(path: Path, version: int, keep: int = KEEP) -> Path:
    """Copy the committed state of the database at `path`; keep the newest `keep` copies.

    Works while others write, and while the caller's own connection holds a write transaction
    (whose changes are not yet in the copy).

    Raises:
        DiskFullError: no space; no copy was made.
        StoreError: the copy failed its check, so the original is damaged; or the folder cannot
            be written.
    """
    folder = backup_folder(path)
    stamp = re.sub(r"[-:.]", "", now().partition("+")[0])
    target = folder / f"{path.stem}-{stamp}Z-v{version}.db"
    with files_explained(target):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        # First: what was left is as large as the copy that is to be made.
        sweep_copies(path)
        with atomic_path(target) as temporary:
            _copy(path, temporary)
            os.chmod(temporary, 0o600)
        for old in list_backups(path)[:-keep]:
            old.unlink(missing_ok=True)
    return target


def _copy(source: Path, target: Path) -> None:
    with (
        explained(source),
        contextlib.closing(sqlite3.connect(source, timeout=30)) as reader,
        contextlib.closing(sqlite3.connect(target, isolation_level=None)) as writer,
    ):
        reader.backup(writer)
        # One file that needs no companions: a copy that is moved must not lose its WAL.
        writer.execute("PRAGMA journal_mode = DELETE")
        check(writer, source)


def check(connection: sqlite3.Connection, path: Path) -> None:
    """Check the structure of an open database, and its content too when it is small.

    Raises:
        StoreError: it is damaged; names the file and its newest backup.
    """
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    size = pages * connection.execute("PRAGMA page_size").fetchone()[0]
    pragma = "integrity_check" if size <= FULL_CHECK_BYTES else "quick_check"
    problems = [row[0] for row in connection.execute(f"PRAGMA {pragma}(3)")]
    if problems != ["ok"]:
        raise damaged(path, "; ".join(problems))


def restore_backup(path: str | Path, backup: str | Path | None = None) -> Path:
    """Put a backup (the newest by default) in the place of the database at `path`.

    No store may have the database open. The file that was there is kept under another name.

    Returns:
        The new path of the file that was there (or where it would be, when there was none).

    Raises:
        StoreError: there is no such backup, or the folder cannot be written.
        DiskFullError: no space; the damaged file stays where it is.
    """
    path = Path(path)
    chosen = latest_backup(path) if backup is None else Path(backup)
    if chosen is None or not chosen.is_file():
        raise StoreError(f"there is no backup of {path} at {chosen or backup_folder(path)}")
    aside = path.with_name(f"{path.name}.damaged-{re.sub(r'[-:.+]', '', now())[:20]}")
    with files_explained(path), atomic_path(path) as temporary:
        shutil.copyfile(chosen, temporary)
        # The old log must go first: beside the new file it would be taken for its own. The old
        # file keeps its name until the new one takes it, so a kill never leaves none.
        for suffix in ("-wal", "-shm", "-journal"):
            if (old := Path(f"{path}{suffix}")).exists():
                os.replace(old, f"{aside}{suffix}")
        if path.exists():
            shutil.copyfile(path, aside)
    os.chmod(path, 0o600)
    fsync_dir(path.parent)
    return aside
