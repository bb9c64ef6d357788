"""One hash for the weights of a model, so that an adapter knows the base it belongs to.

Hashing gigabytes takes seconds, so the sum of each large file is remembered in the cache folder,
keyed by path, size and modification time.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path

from mlx_companion.runtime.files import atomic_write_json, sha256_file
from mlx_companion.runtime.paths import cache_dir

_REMEMBER_FROM = 16_000_000
# A file changed twice within one tick of the file system's clock keeps its modification time.
_SETTLED_SECONDS = 2.0


def content_sha256(files: Sequence[Path]) -> str:
    """The SHA-256 of the files' contents, hex; names and places do not count.

    Args:
        files: at least one. For a single file this is its own SHA-256; for several, that of
            their sums in the order given.
    """
    sums = [_remembered(path) for path in files]
    return sums[0] if len(sums) == 1 else hashlib.sha256("".join(sums).encode()).hexdigest()


def _remembered(path: Path) -> str:
    state = path.stat()
    if state.st_size < _REMEMBER_FROM:
        return sha256_file(path)
    book, key = _read_book(), str(path.resolve())
    stamp = [state.st_size, state.st_mtime_ns]
    entry = book.get(key)
    if entry is not None and entry[:2] == stamp:
        return entry[2]
    digest = sha256_file(path)
    if time.time() - state.st_mtime > _SETTLED_SECONDS:
        atomic_write_json(_book_path(), _read_book() | {key: [*stamp, digest]})
    return digest


def _book_path() -> Path:
    return cache_dir() / "hashes.json"


def _read_book() -> dict[str, list]:
    try:
        book = json.loads(_book_path().read_text())
    except (OSError, ValueError):
        return {}
    return book if isinstance(book, dict) else {}
