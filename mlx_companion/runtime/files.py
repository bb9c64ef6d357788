"""Writing files so that a `kill -9` or a full disk leaves the last good state.

Everything is written to a temporary sibling in the same folder, flushed to the disk (fsync) and
then renamed into place; a reader sees the old content or the new, never a part. Temporary names
start with `.tmp-` and end with the real name, because some writers (`mx.save_safetensors`) add a
suffix when it is missing. What a killed process left behind is swept on the next write to the
same name::

    with atomic_path(folder / "weights.safetensors") as temporary:
        mx.save_safetensors(str(temporary), weights)
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlx_companion.errors import ConfigError, DiskFullError

_CHUNK = 1 << 20
_FULL = {errno.ENOSPC, errno.EDQUOT}
_WRITE_FAILED = re.compile(r"unable to write|i/o error|no space left", re.IGNORECASE)


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path whose file replaces `path` when the block ends without an error.

    Args:
        path: the file to write; its folder is created when missing. A link stays one: what it
            points to is written.

    Yields:
        A path in the same folder, with the same suffix, that does not exist yet.

    Raises:
        ConfigError: `path` is a folder, a device or a pipe, which must not be replaced, or its
            folder cannot be made.
        DiskFullError: the disk filled up; `path` is as it was before.
    """
    target = _file_to_write(Path(path))
    with _written_beside(target) as temporary:
        yield temporary
        _fsync_file(temporary)
        os.replace(temporary, target)
        fsync_dir(target.parent)


@contextlib.contextmanager
def atomic_dir(path: str | Path) -> Iterator[Path]:
    """Yield an empty temporary folder that becomes `path` when the block ends without an error.

    An older folder at `path` is swapped out in one step where the system can (Linux, macOS) and
    then removed.

    Args:
        path: the folder to write.

    Yields:
        The temporary folder, in the same parent.

    Raises:
        ConfigError: the parent cannot be made.
        DiskFullError: the disk filled up; `path` is as it was before.
    """
    target = Path(path)
    with _written_beside(target) as temporary:
        temporary.mkdir()
        yield temporary
        _fsync_tree(temporary)
        _move_into_place(temporary, target)
        fsync_dir(target.parent)


def atomic_write_bytes(path: str | Path, data: bytes) -> None:
    """Write `data` to `path` atomically. Raises DiskFullError when there is no space."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def atomic_write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, atomically. Raises DiskFullError when there is no space."""
    atomic_write_bytes(path, text.encode("utf-8"))


def atomic_write_json(path: str | Path, data: Any) -> None:
    """Write `data` to `path` as indented JSON, atomically.

    Raises:
        DiskFullError: there is no space.
        ValueError: `data` holds NaN or an infinity, which are not JSON.
    """
    text = json.dumps(data, ensure_ascii=False, indent=2, allow_nan=False)
    atomic_write_text(path, text + "\n")


def sha256_file(path: str | Path) -> str:
    """The SHA-256 of a file's content, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync_dir(folder: str | Path) -> None:
    """Flush a folder's entries, so that a rename in it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems refuse fsync on a folder; the rename itself is still atomic.
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:
            raise
    finally:
        os.close(descriptor)


def left_behind(name: str) -> str | None:
    """What a temporary file or folder was to become; None unless its process is surely gone.

    Args:
        name: of the file, without its folder.
    """
    prefix = f".tmp-{_host()}-"
    if not name.startswith(prefix):
        return None
    pid, _, rest = name.removeprefix(prefix).partition("-")
    _, _, final = rest.partition("-")
    return final if final and pid.isdigit() and not _alive(int(pid)) else None


def _file_to_write(path: Path) -> Path:
    target = path.resolve() if path.is_symlink() else path
    if target.exists() and not target.is_file():
        # Renaming onto /dev/null would take it away from the whole machine.
        kind = "a folder" if target.is_dir() else "a device or a pipe"
        raise ConfigError(f"{path} is {kind}; expected the name of a file to write")
    return target


@contextlib.contextmanager
def _written_beside(target: Path) -> Iterator[Path]:
    """Yield a temporary name beside `target`; afterwards nothing is left under it."""
    temporary = None
    try:
        _make_folder(target.parent)
        _sweep(target)
        name = f".tmp-{_host()}-{os.getpid()}-{uuid.uuid4().hex[:8]}-{target.name}"
        temporary = target.parent / name
        yield temporary
    except Exception as error:
        # Asked while the half-written file is still there to fill the disk.
        if not _means_full_disk(error, target.parent):
            raise
        raise DiskFullError(
            f"no space left to write {target}; what was there before is untouched; "
            "free some space and run it again"
        ) from error
    finally:
        if temporary is not None:
            # After a swap of folders this is the old content.
            _remove(temporary)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in _FULL:
            raise
        why = "a file is in its place" if isinstance(error, FileExistsError) else error.strerror
        raise ConfigError(
            f"the folder {folder} cannot be made ({why}); give a place where it can"
        ) from error


def _means_full_disk(error: Exception, folder: Path) -> bool:
    if isinstance(error, OSError):
        return error.errno in _FULL
    # MLX ("Unable to write") and safetensors ("I/O error") hide the cause: try a small write.
    return bool(_WRITE_FAILED.search(str(error))) and not _can_write(folder)


def _can_write(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_CHUNK))
            file.flush()
    except OSError as error:
        return error.errno not in _FULL
    return True


def _host() -> str:
    """Marks whose process ids those in temporary names are; containers may share a folder."""
    return f"{zlib.crc32(os.uname().nodename.encode()):08x}"


def _sweep(target: Path) -> None:
    """Remove what processes that are gone left behind while writing `target`."""
    with os.scandir(target.parent) as entries:
        names = [entry.name for entry in entries]
    for name in names:
        if left_behind(name) == target.name:
            _remove(target.parent / name)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _fsync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fsync_tree(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            _fsync_file(Path(parent) / name)
        fsync_dir(parent)


def _move_into_place(new: Path, target: Path) -> None:
    if not target.exists():
        os.rename(new, target)
    elif not _exchange(new, target):
        # Two renames: the only moment without a folder at `target` lies between them.
        aside = new.with_name(new.name + "-old")
        os.rename(target, aside)
        os.rename(new, target)
        shutil.rmtree(aside, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two paths in one step; False where the system or the file system cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    one, two = os.fsencode(first), os.fsencode(second)
    if sys.platform == "darwin":
        swap = getattr(libc, "renamex_np", None)
        return swap is not None and swap(one, two, ctypes.c_uint(2)) == 0
    swap = getattr(libc, "renameat2", None)
    here = ctypes.c_int(-100)
    return swap is not None and swap(here, one, here, two, ctypes.c_uint(2)) == 0
