"""Files that grow together, a part at a time, and survive a `kill -9` between any two bytes.

Writing such files whole and renaming them, as everything else here does, would lose hours when a
long pass over large data is interrupted. So they are appended to, and a journal says how far they
are good: a part counts once it is on the disk (fsync) and its line, with sizes and hashes, is in
the journal. What lies behind the last line is cut off when the files are opened again.

    with JournalFiles(folder, ("tokens.bin", "rows.bin"), "hash of what they are made of") as files:
        while not files.finished:
            files.append({"tokens.bin": b"...", "rows.bin": b"..."}, {"samples": 100})
            files.finish()
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from mlx_companion.errors import DiskFullError
from mlx_companion.runtime.files import fsync_dir
from mlx_companion.runtime.logs import get_logger

_JOURNAL, _LOCK = "journal.jsonl", ".lock"
_PIECE = 1 << 20
_FULL = {errno.ENOSPC, errno.EDQUOT}
_log = get_logger(__name__)


class JournalFiles:
    """Files in a folder of their own; one process at a time holds them, others wait.

    Args:
        folder: made when missing; what it holds of another fingerprint is removed.
        names: of the files.
        fingerprint: names all that they are made of.

    Attributes:
        state: the values given with the last part; empty at the start.
        finished: whether `finish` was called, now or before.

    Raises:
        DiskFullError: no space, when opened or appended to; what was good stays good.
    """

    def __init__(self, folder: str | Path, names: Sequence[str], fingerprint: str) -> None:
        self.folder = Path(folder)
        self.names = tuple(names)
        self.fingerprint = fingerprint
        self.state: dict[str, Any] = {}
        self.finished = False

    def __enter__(self) -> JournalFiles:
        """Take the lock, check every part, cut off what is not good."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            lock = stack.enter_context(open(self.folder / _LOCK, "w", encoding="utf-8"))
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._open(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Close the files and let others in."""
        self._stack.close()

    def append(self, parts: Mapping[str, bytes], state: Mapping[str, Any]) -> None:
        """Add to the files.

        Args:
            parts: bytes by name; names left out get nothing.
            state: JSON values, whole, not what changed.
        """
        try:
            hashes = {}
            for name, data in parts.items():
                file = self._files[name]
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                hashes[name] = [len(data), hashlib.sha256(data).hexdigest()]
            self._note({"parts": hashes, "state": dict(state)})
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise DiskFullError(
                f"no space left in {self.folder}; free some and run it again: it goes on where it "
                "stopped"
            ) from error
        self.state = dict(state)

    def finish(self) -> None:
        """Nothing more will come."""
        self._note({"finished": True})
        self.finished = True

    def _note(self, line: Mapping[str, Any]) -> None:
        self._journal.write(json.dumps(line).encode() + b"\n")
        self._journal.flush()
        os.fsync(self._journal.fileno())

    def _open(self, stack: ExitStack) -> None:
        good, sizes = self._good_lines()
        if good is None:
            _clear(self.folder)
            good, sizes = [self._head()], dict.fromkeys(self.names, 0)
        path = self.folder / _JOURNAL
        text = b"".join(line + b"\n" for line in good)
        self._journal = stack.enter_context(path.open("ab"))
        if path.stat().st_size != len(text):
            self._journal.truncate(0)
            self._journal.write(text)
            self._journal.flush()
            os.fsync(self._journal.fileno())
        self._files = {n: stack.enter_context((self.folder / n).open("ab")) for n in self.names}
        for name, file in self._files.items():
            if os.fstat(file.fileno()).st_size != sizes[name]:
                file.truncate(sizes[name])
        fsync_dir(self.folder)

    def _head(self) -> bytes:
        return json.dumps({"fingerprint": self.fingerprint, "names": self.names}).encode()

    def _good_lines(self) -> tuple[list[bytes] | None, dict[str, int]]:
        """The journal as far as it and the files are sound; None if it is of something else."""
        sizes = dict.fromkeys(self.names, 0)
        try:
            lines = (self.folder / _JOURNAL).read_bytes().split(b"\n")[:-1]
        except FileNotFoundError:
            return None, sizes
        if not lines or lines[0] != self._head():
            return None, sizes
        good = lines[:1]
        for line in lines[1:]:
            entry = _parsed(line)
            if not self._sound(entry, sizes):
                _log.warning(
                    "files are damaged, made again from there on",
                    extra={"folder": str(self.folder), "part": len(good)},
                )
                break
            good.append(line)
            self.finished = bool(entry.get("finished"))
            self.state = entry.get("state", self.state)
        return good, sizes

    def _sound(self, entry: dict[str, Any], sizes: dict[str, int]) -> bool:
        """Whether the files hold what a line of the journal says; `sizes` then grows by it."""
        if entry.get("finished"):
            return True
        parts = entry.get("parts")
        if not isinstance(parts, dict) or not set(parts) <= set(sizes):
            return False
        for name, (size, expected) in parts.items():
            if _hash(self.folder / name, sizes[name], size) != expected:
                return False
        for name, (size, _) in parts.items():
            sizes[name] += size
        return True


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}


def _hash(path: Path, start: int, size: int) -> str | None:
    """SHA-256 of a piece of a file; None when it is shorter or not there."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            file.seek(start)
            while size and (data := file.read(min(size, _PIECE))):
                digest.update(data)
                size -= len(data)
    except OSError:
        return None
    return None if size else digest.hexdigest()


def _clear(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.name != _LOCK:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
