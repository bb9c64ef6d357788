"""Deleting everything that the store holds, for good.

Why a module: rows are the smaller half of it. What was deleted lives on in free pages, in the
write-ahead log, in backups, in damaged copies that were put aside and, in a way, in the adapters
that were trained on it. All of these go. What the file system or an SSD keeps below is out of
reach; a disk that is encrypted takes care of that.

In the user-data folder, whole folders go. Beside a database that somebody keeps elsewhere, only
what the rows name: a folder `adapters` there may be somebody's own work.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from mlx_companion.errors import StoreError
from mlx_companion.runtime.paths import data_dir
from mlx_companion.store.backups import backup_folder, list_backups
from mlx_companion.store.faults import files_explained
from mlx_companion.store.kinds import KINDS
from mlx_companion.store.store import Store

# What the companion itself puts into the user-data folder.
FOLDERS = ("adapters", "rounds", "reports", "logs")


def delete_everything(store: Store, *, confirm: bool) -> dict[str, int]:
    """Delete all rows, adapters, files of rounds, backups and damaged copies put aside.

    The store stays open, empty, and can be used again. Killed half-way, it can be repeated.

    Args:
        store: no `improve` may run on it, and nobody else may be reading it.
        confirm: must be True; there is no way back.

    Returns:
        What was deleted: rows by kind, and the numbers of 'files' and 'backups'.

    Raises:
        StoreError: not confirmed, or another process is at work (what is left is said).
    """
    if confirm is not True:
        raise StoreError(
            "nothing was deleted: deleting everything cannot be undone and must be confirmed"
        )
    # Files before rows: the rows say where the files are, should this be killed in between.
    with store.exclusive(), files_explained(store.folder):
        files = sum(_delete(path) for path in _owned(store))
        backups = _delete_copies(store.path)
        counts = _delete_rows(store)
        _wipe_free_pages(store)
    return {**counts, "files": files, "backups": backups}


def _owned(store: Store) -> list[Path]:
    folder = store.folder.resolve()
    if folder == data_dir().resolve():
        return [folder / name for name in FOLDERS]
    adapters = [version.adapter_path for version in store.versions.all() if version.adapter_path]
    rounds = [folder / "rounds" / f"{one.number:04d}" for one in store.rounds.all()]
    # An imported row may name any path, such as "../..", so only what lies inside counts.
    return [path for path in (*adapters, *rounds) if folder in path.resolve().parents]


def _delete_rows(store: Store) -> dict[str, int]:
    counts: dict[str, int] = {}
    with store.transaction():
        store.database.execute("PRAGMA defer_foreign_keys = ON")
        for kind in reversed(KINDS.values()):
            counts[kind.name] = store.database.value(f"SELECT count(*) FROM {kind.table}")
            store.database.execute(f"DELETE FROM {kind.table}")
    return counts


def _wipe_free_pages(store: Store) -> None:
    store.database.execute("VACUUM")
    busy = store.database.value("PRAGMA wal_checkpoint(TRUNCATE)")
    if busy:
        raise StoreError(
            f"everything is deleted, but another process is reading {store.path}, so traces of it "
            "remain in the file; end that process and delete everything again"
        )


def _delete(path: Path) -> int:
    if path.is_symlink() or not path.exists():
        return 0
    if path.is_file():
        path.unlink()
        return 1
    count = sum(1 for entry in path.rglob("*") if entry.is_file())
    shutil.rmtree(path)
    return count


def _delete_copies(path: Path) -> int:
    copies = [*list_backups(path), *path.parent.glob(f"{path.name}.damaged-*")]
    for copy in copies:
        copy.unlink(missing_ok=True)
    folder = backup_folder(path)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
    return len(copies)
