"""The first source of models: the hub, through `huggingface_hub`.

Adds to that library: a short look whether the hub answers at all (being offline costs seconds,
not minutes), only the files that are used, a check that what lies in its cache is complete, and
errors that say what to do.
"""

from __future__ import annotations

import errno
import json
import threading
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from mlx_companion.errors import DiskFullError, DownloadError, ModelNotFoundError
from mlx_companion.models.registry import ModelSpec
from mlx_companion.runtime.files import sha256_file

_PATTERNS = {
    "language": ["*.json", "model*.safetensors", "tokenizer.model", "*.txt", "*.jinja"],
    "encoder": ["*.json", "1_Pooling/*.json", "model*.safetensors"],
    "bytes": ["*.json", "*.safetensors", "*.pth"],
}


def cached(spec: ModelSpec, verify: bool = False) -> Path | None:
    """The complete snapshot in the hub library's cache, or None. Touches no network.

    Args:
        spec: the model.
        verify: hash every large file; its name in that cache is its SHA-256.
    """
    try:
        path = _snapshot(spec, local=True)
    except (OSError, ValueError):
        return None
    if not is_complete(path) or (verify and not all(map(_is_intact, path.rglob("*")))):
        return None
    return path


def is_complete(folder: Path) -> bool:
    """True when a folder has a configuration and every weight file that its index names."""
    index = folder / "model.safetensors.index.json"
    if not (folder / "config.json").is_file():
        return False
    if not index.is_file():
        return any(folder.glob("model*.safetensors"))
    names = set(json.loads(index.read_text())["weight_map"].values())
    return all((folder / name).is_file() for name in names)


def why_unreachable(spec: ModelSpec, patience: float) -> str | None:
    """None when the hub answers for this model within `patience` seconds, else what went wrong.

    Raises:
        ModelNotFoundError: the hub answers and knows no such model.
    """
    problem: list[Exception | None] = []

    def ask() -> None:
        try:
            HfApi().model_info(spec.hub_id, timeout=patience)
            problem.append(None)
        except Exception as error:
            problem.append(error)

    # A thread, because looking up a name has no timeout of its own.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(patience + 0.5)
    if not problem:
        return f"the hub did not answer within {patience:g} seconds"
    error = problem[0]
    if isinstance(error, GatedRepoError):
        raise _gated(spec) from error
    if isinstance(error, RepositoryNotFoundError):
        raise ModelNotFoundError(
            f"the hub knows no model '{spec.hub_id}' (or it is private); check the name, "
            "or log in with: hf auth login"
        ) from error
    return None if error is None else f"the hub cannot be reached ({error})"


def download(spec: ModelSpec) -> Path:
    """Fetch a model's files; a download that was cut off is continued.

    Raises:
        DownloadError: it failed, or the licence has to be accepted first.
        DiskFullError: there is no room.
    """
    try:
        path = _snapshot(spec, local=False)
    except GatedRepoError as error:
        raise _gated(spec) from error
    except Exception as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(
                f"no space left to fetch '{spec.hub_id}'; free some space, or set HF_HOME to a "
                "folder on another disk, and run it again to continue"
            ) from error
        raise DownloadError(
            f"fetching '{spec.hub_id}' from the hub failed ({error}); run it again to continue"
        ) from error
    if not is_complete(path):
        raise DownloadError(
            f"'{spec.hub_id}' has no safetensors weights on the hub; look for a converted copy"
        )
    return path


def _snapshot(spec: ModelSpec, local: bool) -> Path:
    patterns = _PATTERNS[spec.kind]
    return Path(snapshot_download(spec.hub_id, allow_patterns=patterns, local_files_only=local))


def _gated(spec: ModelSpec) -> DownloadError:
    return DownloadError(
        f"'{spec.hub_id}' asks you to accept its licence on its page on the hub; do that, then "
        "run: hf auth login"
    )


def _is_intact(path: Path) -> bool:
    """False when a file of the cache differs from its name; small files are named otherwise."""
    blob = path.resolve()
    return not blob.is_file() or len(blob.name) != 64 or sha256_file(blob) == blob.name
