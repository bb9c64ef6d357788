"""What a backup that was killed half-way leaves: gone with the next opening or backup."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mlx_companion.store import Store
from mlx_companion.store import backups as backups_module

# Stops in the middle of a copy, of the database or of a backup put in its place.
MAKER = """
import sys, threading
from pathlib import Path
from mlx_companion.store import backups

def stop(connection, target):
    Path(f"{target}-journal").write_bytes(b"log")
    Path(target).write_bytes(b"half")
    print("half", flush=True)
    threading.Event().wait()

backups._copy = stop
backups.shutil.copyfile = stop
path = Path(sys.argv[1])
backups.restore_backup(path) if sys.argv[2:] else backups.make_backup(path, 1)
"""


def leftovers(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.parent.rglob(".tmp-*"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with Store(tmp_path / "mine.db") as store:
        store.settings.set("said", "hello")
        store.backup()
    return store.path


def stopped(path: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", MAKER, str(path), *options]
    maker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert maker.stdout is not None
    assert maker.stdout.readline() == "half\n"
    return maker


def end(maker: subprocess.Popen[str]) -> None:
    with maker:
        maker.kill()


def opened(path: Path) -> None:
    with Store(path) as store:
        assert store.settings.get("said") == "hello"


def backed_up(path: Path) -> None:
    backups_module.make_backup(path, 1)


@pytest.mark.parametrize("later", [opened, backed_up])
@pytest.mark.parametrize("options", [(), ("restore",)])
def test_it_is_removed_once_its_maker_is_gone(
    path: Path, options: tuple[str, ...], later: Callable[[Path], None]
) -> None:
    kept = backups_module.list_backups(path)
    maker = stopped(path, *options)
    try:
        there = leftovers(path)
        assert len(there) == 2
        # Somebody is still at work on it.
        later(path)
        assert leftovers(path) == there
    finally:
        end(maker)
    # Not of this database; and of another machine, whose processes nobody here knows.
    name = next(name for name in there if not name.endswith("-journal"))
    start, _, rest = name.partition("-mine")
    foreign = f".tmp-00000000-{start.split('-', 2)[2]}-mine{rest}"
    for other in (f"{start}-yours.db", foreign):
        (path.parent / "backups" / other).write_bytes(b"x")
    later(path)
    assert leftovers(path) == sorted([f"{start}-yours.db", foreign])
    assert set(kept) <= set(backups_module.list_backups(path))


def test_what_cannot_be_removed_stops_nobody(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    end(stopped(path))

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        opened(path)
    assert len(leftovers(path)) == 2
    opened(path)
    assert leftovers(path) == []
