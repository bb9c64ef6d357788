"""Deleting what the store holds, for good: all of it, or what was learned about the person.

Why a module: rows are the smaller half of it. What was deleted lives on in free pages, in the
write-ahead log, in backups, in damaged copies that were put aside and, in a way, in the adapters
that were trained on it. All of these go. What the file system or an SSD keeps below is out of
reach; a disk that is encrypted takes care of that.

In the user-data folder, whole folders go. Beside a database that somebody keeps elsewhere, only
what the rows name: a folder `adapters` there may be somebody's own work.

`forget` takes less: what was learned from the person goes (context, states and traffic of the
small modules, packs trained on them), and the conversations and all that was made of them when
asked. Models, measured thresholds and other people's packs stay. Adapters stay too: what a
conversation left in their weights goes with `delete_everything` only.

Another companion may have the store open, with what was learned in its memory, and would write it
back. So there are `marks`, which change when something is forgotten: who keeps a copy compares them
before it is used, and writes it only in a transaction in which they are still the same.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

from mlx_companion.errors import StoreError
from mlx_companion.runtime.paths import data_dir
from mlx_companion.store.backups import backup_folder, list_copies
from mlx_companion.store.faults import files_explained
from mlx_companion.store.kinds import KINDS
from mlx_companion.store.store import Store
from mlx_companion.store.values import new_id

# What the companion itself puts into the user-data folder.
FOLDERS = ("adapters", "rounds", "reports", "logs", "packs")
_MARKS = "memory.marks"
_MADE = ("rounds", "reports")
_LEARNED = ("context_update", "module_state", "module_traffic")
# What was said, and what holds copies of it; in an order in which nothing is left without its row.
_SAID = ("feedback", "interaction", "replay", "example", "round_step", "round")


class Marks(NamedTuple):
    """Ids of what is in a store's memory: of what was learned, and of what was said."""

    learned: str
    said: str


def marks(store: Store) -> Marks:
    """The marks of now; another id means that everything of that kind was forgotten since."""
    found = store.settings.get(_MARKS)
    if found is None:
        with store.transaction():
            found = store.settings.get(_MARKS) or _mark(store, Marks(new_id(), new_id()))
    return Marks(*found)


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
        counts = _delete_rows(store, [*reversed(KINDS)])
        _wipe_free_pages(store)
    return {**counts, "files": files, "backups": backups}


def forget(store: Store, *, conversations: bool = False) -> dict[str, int]:
    """Delete what was learned about the person, in rows, files, free pages, log and backups.

    The store stays open and can be used again. Killed half-way, it can be repeated.

    Args:
        store: no `improve` may run on it, and nobody else may be reading it.
        conversations: the exchanges too, with rounds, samples and reports made of them. Without
            it they stay, and with them what was said in them.

    Returns:
        What was deleted: rows by kind, and the numbers of 'files' and 'backups'.

    Raises:
        StoreError: another process is at work (what is left is said).
    """
    kinds = [*_LEARNED, *(_SAID if conversations else ())]
    with store.exclusive(), files_explained(store.folder):
        files = sum(_delete(path) for path in _personal(store, conversations))
        backups = _delete_copies(store.path)
        with store.transaction():
            counts = _delete_rows(store, kinds)
            counts["module_version"] = store.database.execute(
                "DELETE FROM module_versions WHERE personal = 1"
            )
            _mark(store, Marks(new_id(), new_id() if conversations else marks(store).said))
        _wipe_free_pages(store)
    return {**counts, "files": files, "backups": backups}


def _mark(store: Store, now: Marks) -> Marks:
    store.settings.set(_MARKS, list(now))
    return now


def _owned(store: Store) -> list[Path]:
    folder = store.folder.resolve()
    if folder == data_dir().resolve():
        return [folder / name for name in FOLDERS]
    adapters = [version.adapter_path for version in store.versions.all() if version.adapter_path]
    rounds = [folder / "rounds" / f"{one.number:04d}" for one in store.rounds.all()]
    packs = [version.folder for version in store.module_versions.all()]
    return _inside(folder, [*adapters, *rounds, *packs])


def _personal(store: Store, conversations: bool) -> list[Path]:
    folder = store.folder.resolve()
    paths = [version.folder for version in store.module_versions.all() if version.personal]
    in_data_dir = folder == data_dir().resolve()
    if in_data_dir:
        # A log line may quote what a module could not read.
        paths += [folder / name for name in ("logs", *(_MADE if conversations else ()))]
    elif conversations:
        paths += [folder / "rounds" / f"{one.number:04d}" for one in store.rounds.all()]
    return _inside(folder, paths)


def _inside(folder: Path, paths: list[Path]) -> list[Path]:
    # An imported row may name any path, such as "../..", so only what lies inside counts.
    return [path for path in paths if folder in path.resolve().parents]


def _delete_rows(store: Store, kinds: list[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    with store.transaction():
        store.database.execute("PRAGMA defer_foreign_keys = ON")
        for kind in map(KINDS.__getitem__, kinds):
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
    copies = list_copies(path)
    for copy in copies:
        copy.unlink(missing_ok=True)
    folder = backup_folder(path)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
    return len(copies)
