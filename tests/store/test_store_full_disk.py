"""A real full disk: a small tmpfs, where mounting one is allowed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from small_disk import mounted_disk

from mlx_companion.errors import DiskFullError
from mlx_companion.store import Store, export, import_, list_backups

BIG = "ä" * 20_000


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of 2 MiB."""
    with mounted_disk(tmp_path / "disk", "2m") as folder:
        yield folder


def fill(folder: Path, leave: int = 0) -> Path:
    """Fill the disk but for about `leave` bytes."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            file.truncate(max(0, file.tell() - leave))
    return ballast


def test_a_full_disk_loses_nothing_that_was_acknowledged(small_disk: Path) -> None:
    kept = []
    with Store(small_disk / "companion.db") as store:
        with pytest.raises(DiskFullError, match=r"no space left to write.*free some space"):
            for number in range(1000):
                kept.append(store.interactions.add(f"{number}", BIG).id)
        # Reading goes on, and after the failure the transaction is gone.
        assert [one.id for one in store.interactions.iter()] == kept
        with pytest.raises(DiskFullError), store.transaction():
            store.settings.set("a", 1)
            for number in range(1000):
                store.interactions.add(f"more {number}", BIG)
        assert store.settings.all() == {}
    assert len(kept) > 5
    with Store(small_disk / "companion.db") as store:
        assert [one.id for one in store.interactions.iter()] == kept


def test_it_goes_on_when_there_is_space_again(small_disk: Path) -> None:
    with Store(small_disk / "companion.db") as store:
        first = store.interactions.add("before", "x")
        ballast = fill(small_disk)
        with pytest.raises(DiskFullError):
            for number in range(100):
                store.interactions.add(f"{number}", BIG)
        ballast.unlink()
        store.interactions.add("after", "x")
        store.check()
        assert next(store.interactions.iter()) == first


def test_backup_and_export_leave_no_half_file(small_disk: Path) -> None:
    with Store(small_disk / "companion.db") as store:
        with store.transaction():
            for number in range(12):
                store.interactions.add(f"{number}", BIG)
        (small_disk / "data.jsonl").write_text("older\n")
        fill(small_disk, leave=64 * 1024)
        with pytest.raises(DiskFullError):
            store.backup()
        with pytest.raises(DiskFullError):
            export(store, small_disk / "data.jsonl")
        assert store.interactions.count() == 12
    assert (small_disk / "data.jsonl").read_text() == "older\n"
    assert list_backups(small_disk / "companion.db") == []
    assert not [one for one in small_disk.rglob("*") if one.name.startswith(".tmp")]


def test_an_import_that_does_not_fit_writes_nothing(small_disk: Path, tmp_path: Path) -> None:
    lines = [f'{{"prompt": "{n}", "response": "{BIG}"}}\n' for n in range(100)]
    (tmp_path / "chat.jsonl").write_text("".join(lines), encoding="utf-8")
    with Store(small_disk / "companion.db") as store:
        with pytest.raises(DiskFullError):
            import_(store, tmp_path / "chat.jsonl")
        assert store.interactions.count() == 0


def test_a_disk_without_any_space_is_explained_on_opening(small_disk: Path) -> None:
    Store(small_disk / "companion.db").close()
    ballast = fill(small_disk)
    for name in ("another.db", "companion.db"):
        with pytest.raises(DiskFullError, match="no space left"):
            Store(small_disk / name)
    ballast.unlink()
    for name in ("another.db", "companion.db"):
        Store(small_disk / name).close()
