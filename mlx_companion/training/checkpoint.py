"""Checkpoints on disk: whole or not there, checked when read, tied to their run.

    checkpoints/
      step-00000150/
        parameters.safetensors   what is trained
        optimizer.safetensors    AdamW's moments and step
        state.json               progress, random states, SHA-256 of the files and of itself
      step-00000200/
      best/                      parameters of the lowest held-out loss, likewise checked

A folder is written beside its place and renamed, so that a `kill -9` leaves the last good one. A
damaged newest one is set aside with a warning and the one before it is used.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_companion.errors import CheckpointError
from mlx_companion.runtime.files import atomic_dir, sha256_file
from mlx_companion.runtime.logs import get_logger

FORMAT = "mlx-companion-checkpoint"
FORMAT_VERSION = 1
STATE_FILE = "state.json"
BEST = "best"

Arrays = dict[str, mx.array]

_NAME = re.compile(r"step-(\d{8,})")
_REMOVED = ".removed-"
_log = get_logger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """What was read: groups of named arrays ("parameters", "optimizer") and the run's state."""

    path: Path
    arrays: dict[str, Arrays]
    state: dict[str, Any]


class CheckpointFolder:
    """The checkpoints of one run.

    Args:
        folder: where they lie; made on the first save.
        run_hash: identifies data, model and settings; checkpoints of another run are refused.
        keep_last: how many stay.
    """

    def __init__(self, folder: str | Path, run_hash: str, keep_last: int = 2) -> None:
        self.folder = Path(folder)
        self.run_hash = run_hash
        self.keep_last = keep_last

    def save(self, step: int, arrays: Mapping[str, Arrays], state: Mapping[str, Any]) -> Path:
        """Write the checkpoint of a step, then remove those that are too old.

        Args:
            step: optimizer steps done.
            arrays: groups of named arrays.
            state: JSON values.

        Returns:
            Its folder.

        Raises:
            DiskFullError: no space; the earlier checkpoints are as they were.
        """
        path = self.path_of(step)
        self._write(path, arrays, state)
        self._prune()
        return path

    def path_of(self, step: int) -> Path:
        """The folder of the checkpoint of a step."""
        return self.folder / f"step-{step:08d}"

    def save_best(self, parameters: Arrays, state: Mapping[str, Any]) -> None:
        """Write the parameters of the lowest held-out loss. Raises as `save`."""
        self._write(self.folder / BEST, {"parameters": parameters}, state)

    def load_latest(self) -> Checkpoint | None:
        """The newest checkpoint that is sound; damaged ones are removed with a warning.

        Raises:
            CheckpointError: it belongs to another run.
        """
        for path in reversed(self.steps()):
            try:
                return self._read(path)
            except _DamagedError as damage:
                _log.warning(
                    "checkpoint is damaged, going back to the one before",
                    extra={"checkpoint": str(path), "damage": str(damage)},
                )
                _remove(path)
        return None

    def load_best(self) -> Arrays | None:
        """The parameters of the lowest held-out loss, or None (also when damaged).

        Raises:
            CheckpointError: they belong to another run.
        """
        path = self.folder / BEST
        if not path.is_dir():
            return None
        try:
            return self._read(path).arrays["parameters"]
        except (_DamagedError, KeyError) as damage:
            _log.warning("best weights are damaged", extra={"damage": str(damage)})
            return None

    def steps(self) -> list[Path]:
        """Folders of the checkpoints, oldest first."""
        if not self.folder.is_dir():
            return []
        found = [p for p in self.folder.iterdir() if _NAME.fullmatch(p.name) and p.is_dir()]
        return sorted(found, key=lambda path: int(path.name.partition("-")[2]))

    def clear(self) -> None:
        """Remove every checkpoint of this folder, the best one included."""
        for path in [*self.steps(), self.folder / BEST]:
            _remove(path)

    def _write(self, path: Path, arrays: Mapping[str, Arrays], state: Mapping[str, Any]) -> None:
        with atomic_dir(path) as temporary:
            files, dtypes = {}, {}
            for group, values in arrays.items():
                name = f"{group}.safetensors"
                dtypes[group] = _write_arrays(temporary / name, values)
                files[name] = sha256_file(temporary / name)
            body = {
                "format": FORMAT,
                "format_version": FORMAT_VERSION,
                "run_hash": self.run_hash,
                "files": files,
                "dtypes": dtypes,
                "state": dict(state),
            }
            text = json.dumps({"sha256": _digest(body), **body}, ensure_ascii=False, indent=1)
            (temporary / STATE_FILE).write_text(text + "\n", encoding="utf-8")

    def _read(self, path: Path) -> Checkpoint:
        body = _read_body(path / STATE_FILE)
        if body["run_hash"] != self.run_hash:
            raise CheckpointError(
                f"{path} belongs to another run: its model, data or settings "
                f"({body['run_hash'][:12]}) are not those given ({self.run_hash[:12]}); choose "
                "another output folder, or start over in this one with resume=False"
            )
        arrays = {}
        for name, expected in body["files"].items():
            group = name.removesuffix(".safetensors")
            arrays[group] = _read_arrays(path / name, expected, body["dtypes"][group])
        return Checkpoint(path, arrays, body["state"])

    def _prune(self) -> None:
        for path in self.steps()[: -self.keep_last]:
            _remove(path)
        for leftover in self.folder.glob(f"{_REMOVED}*"):
            shutil.rmtree(leftover, ignore_errors=True)


class _DamagedError(Exception):
    """A checkpoint that cannot be used, and why."""


def _write_arrays(path: Path, arrays: Arrays) -> dict[str, str]:
    """Write safetensors; returns the types of arrays that NumPy lacks, stored as 16-bit words."""
    from safetensors.numpy import save

    odd = {name: "bfloat16" for name, value in arrays.items() if value.dtype == mx.bfloat16}
    plain = {n: np.array(v.view(mx.uint16) if n in odd else v) for n, v in arrays.items()}
    # Through Python's own write, whose error on a full disk says so.
    path.write_bytes(save(plain))
    return odd


def _read_arrays(path: Path, expected_sha256: str, odd: Mapping[str, str]) -> Arrays:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != expected_sha256:
            raise _DamagedError(f"{path.name} has another SHA-256 than when it was written")
        loaded = {name: mx.array(value) for name, value in load(data).items()}
    except (OSError, SafetensorError, ValueError) as error:
        raise _DamagedError(f"{path.name}: {error}") from error
    return {n: v.view(mx.bfloat16) if n in odd else v for n, v in loaded.items()}


def _read_body(path: Path) -> dict[str, Any]:
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        stated = body.pop("sha256")
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise _DamagedError(f"{path.name}: {type(error).__name__}: {error}") from error
    if stated != _digest(body):
        raise _DamagedError(f"{path.name} was changed after it was written")
    if (body.get("format"), body.get("format_version")) != (FORMAT, FORMAT_VERSION):
        raise CheckpointError(
            f"{path} has format {body.get('format')!r} version {body.get('format_version')!r}; "
            f"this package reads {FORMAT!r} version {FORMAT_VERSION}"
        )
    return body


def _digest(body: Mapping[str, Any]) -> str:
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _remove(path: Path) -> None:
    """Remove a folder so that no half of it can ever be taken for a checkpoint."""
    aside = path.with_name(f"{_REMOVED}{path.name}")
    shutil.rmtree(aside, ignore_errors=True)
    if path.is_dir():
        os.rename(path, aside)
        shutil.rmtree(aside, ignore_errors=True)
