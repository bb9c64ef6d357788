"""Arrays that are computed once and kept beside the data, read back as memory maps.

    entropies = cached_array(folder / "entropies", text.sha256 + weights_sha256, compute)
    rows = PackedRows(text, context=1024, extra={"entropies": entropies})

A cache is a folder with `values.npy` and `about.json`; it is written whole or not at all, and used
only if it was made of the same things and its content has the SHA-256 that it was written with.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mlx_companion.runtime.files import atomic_dir, sha256_file
from mlx_companion.runtime.logs import get_logger

_VALUES, _ABOUT = "values.npy", "about.json"
_log = get_logger(__name__)


def cached_array(
    folder: str | Path, fingerprint: str, compute: Callable[[], np.ndarray]
) -> np.ndarray:
    """The array of that fingerprint, read from the folder or computed and put there.

    Args:
        folder: of this one array.
        fingerprint: names everything that the array is made of (hashes of data, weights and
            settings); a cache of another one is replaced.
        compute: makes the array.

    Returns:
        The array, memory-mapped and read-only.

    Raises:
        DiskFullError: no space; what was there before is untouched.
    """
    path = Path(folder)
    found = _open(path, fingerprint)
    if found is not None:
        return found
    values = compute()
    with atomic_dir(path) as temporary:
        np.save(temporary / _VALUES, values, allow_pickle=False)
        about = {"fingerprint": fingerprint, "sha256": sha256_file(temporary / _VALUES)}
        (temporary / _ABOUT).write_text(json.dumps(about) + "\n", encoding="utf-8")
    return np.load(path / _VALUES, mmap_mode="r", allow_pickle=False)


def _open(path: Path, fingerprint: str) -> np.ndarray | None:
    try:
        about = json.loads((path / _ABOUT).read_text(encoding="utf-8"))
        if about["fingerprint"] != fingerprint:
            return None
        if about["sha256"] == sha256_file(path / _VALUES):
            return np.load(path / _VALUES, mmap_mode="r", allow_pickle=False)
        why = "its content has changed"
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = str(error)
    _log.warning("array cache is damaged, made again", extra={"path": str(path), "why": why})
    return None
