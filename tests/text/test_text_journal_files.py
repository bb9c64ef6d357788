"""Files with a journal: whatever happens to them, what is read back was written."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_companion.errors import DiskFullError
from mlx_companion.text.journal_files import JournalFiles

NAMES = ("left.bin", "right.bin")


def write(folder: Path, parts: int, start: int = 0, print_of: str = "print") -> None:
    with JournalFiles(folder, NAMES, print_of) as files:
        for number in range(start, parts):
            files.append(
                {"left.bin": bytes([number]) * number, "right.bin": b"%d," % number}, {"n": number}
            )


def content(folder: Path) -> tuple[bytes, bytes]:
    return (folder / NAMES[0]).read_bytes(), (folder / NAMES[1]).read_bytes()


def expected(parts: int) -> tuple[bytes, bytes]:
    numbers = range(parts)
    return b"".join(bytes([n]) * n for n in numbers), b"".join(b"%d," % n for n in numbers)


def test_parts_and_state(tmp_path: Path) -> None:
    write(tmp_path, 4)
    assert content(tmp_path) == expected(4)
    with JournalFiles(tmp_path, NAMES, "print") as files:
        assert files.state == {"n": 3}
        assert not files.finished
        files.finish()
    with JournalFiles(tmp_path, NAMES, "print") as files:
        assert files.finished
    assert content(tmp_path) == expected(4)


def test_another_fingerprint_starts_over(tmp_path: Path) -> None:
    write(tmp_path, 4)
    (tmp_path / "stray").mkdir()
    with JournalFiles(tmp_path, NAMES, "other") as files:
        assert files.state == {}
    assert content(tmp_path) == (b"", b"")
    assert not (tmp_path / "stray").exists()


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from([*NAMES, "journal.jsonl"]),
    place=st.floats(0, 1, exclude_max=True),
    damage=st.sampled_from(["cut", "flip", "grow", "remove"]),
)
def test_any_damage(
    tmp_path_factory: pytest.TempPathFactory, name: str, place: float, damage: str
) -> None:
    folder = tmp_path_factory.mktemp("files")
    write(folder, 6)
    path = folder / name
    data = path.read_bytes()
    at = int(place * len(data))
    if damage == "remove":
        path.unlink()
    elif damage == "cut":
        os.truncate(path, at)
    elif damage == "grow":
        path.write_bytes(data + b"\0{}" * 5)
    else:
        path.write_bytes(data[:at] + bytes([data[at] ^ 8]) + data[at + 1 :])
    with JournalFiles(folder, NAMES, "print") as files:
        done = files.state.get("n", -1) + 1
    assert content(folder) == expected(done)
    assert done == 6 if damage == "grow" else done <= 6
    write(folder, 6, start=done)
    assert content(folder) == expected(6)


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 3)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with JournalFiles(tmp_path, NAMES, "print") as files:
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(DiskFullError, match="goes on where it stopped"):
            files.append({"left.bin": b"xyz"}, {"n": 9})
        monkeypatch.undo()
    with JournalFiles(tmp_path, NAMES, "print") as files:
        assert files.state == {"n": 2}
    assert content(tmp_path) == expected(3)


def test_the_journal_says_what_it_is_of(tmp_path: Path) -> None:
    write(tmp_path, 1)
    head = json.loads((tmp_path / "journal.jsonl").read_text().splitlines()[0])
    assert head == {"fingerprint": "print", "names": list(NAMES)}
