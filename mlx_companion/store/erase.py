"""Deleting everything that the store holds, for good.

Why a module: rows are the smaller half of it. What was deleted lives on in free pages, in the
write-ahead log, in backups, in damaged copies that were put aside and, in a way, in the adapters
that were trained on it. All of these go. What the file system or an SSD keeps below is out of
reach; a disk that is encrypted takes care of that.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from mlx_companion.errors import StoreError
from mlx_companion.store.backups import backup_folder, list_backups
from mlx_companion.store.kinds import KINDS
from mlx_companion.store.store import Store


def delete_everything(store: Store, *, confirm: bool) -> dict[str, int]:
    """Delete all rows, the adapters, the backups and the damaged copies put aside.

    The store stays open, empty, and can be used again.

    Args:
        store: no `improve` may run on it, and nobody else may be reading it.
        confirm: must be True; there is no way back.

    Returns:
        What was deleted: rows by kind, and files as 'adapter_files' and 'backups'.

    Raises:
        StoreError: not confirmed, or another process is at work (what is left is said).
    """
    if confirm is not True:
        raise StoreError(
            "nothing was deleted: deleting everything cannot be undone and must be confirmed"
        )
    with store.exclusive():
        counts = _delete_rows(store)
        _wipe_free_pages(store)
        counts["adapter_files"] = _delete_folder(store.folder / "adapters")
        counts["backups"] = _delete_copies(store.path)
    return counts


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
            f"all rows are deleted, but another process is reading {store.path}, so traces, "
            "adapters and backups remain; end it and delete everything again"
        )


def _delete_folder(folder: Path) -> int:
    if folder.is_symlink() or not folder.is_dir():
        return 0
    count = sum(1 for entry in folder.rglob("*") if entry.is_file())
    shutil.rmtree(folder)
    return count


def _delete_copies(path: Path) -> int:
    copies = [*list_backups(path), *path.parent.glob(f"{path.name}.damaged-*")]
    for copy in copies:
        copy.unlink(missing_ok=True)
    folder = backup_folder(path)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
    return len(copies)
