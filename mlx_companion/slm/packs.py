"""A pack: everything that one version of a module was made of, checked as one.

A threshold that was calibrated for other weights is a silent fault. So a module's weights,
thresholds, calibration and rules lie in one folder with one checksum over all of them, are loaded
together and are replaced together::

    slm/data/research_classifier/
        pack.json             module, version, SHA-256 of each file and of the whole
        weights.safetensors   arrays
        settings.json         thresholds, calibration
        rules.yaml            rules, where there are any
        README.md             the model card (not part of the checksum)

    pack = load_pack(packaged("research_classifier"))
    pack.arrays["weights"]; pack.settings["threshold"]; pack.sha256
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from mlx_companion.errors import ConfigError, SLMError
from mlx_companion.runtime.files import atomic_dir, atomic_write_bytes, atomic_write_json

WEIGHTS = "weights.safetensors"
SETTINGS = "settings.json"
RULES = "rules.yaml"
CARD = "README.md"
_INDEX = "pack.json"
# A pack ships in the package; anything much larger is not one.
_LARGEST = 64 << 20


@dataclass(frozen=True)
class Pack:
    """One version of a module, loaded and checked.

    Attributes:
        module: which module it belongs to.
        version: its name, such as "1".
        sha256: over all files that count, hex.
        arrays: the weights.
        settings: thresholds, calibration and the like.
        rules: text of the rule file; empty when there is none.
        metrics: held-out figures, as measured when it was made.
        folder: where it lies; None when it was never saved.
    """

    module: str
    version: str
    sha256: str
    arrays: dict[str, np.ndarray] = field(repr=False, default_factory=dict)
    settings: dict[str, Any] = field(repr=False, default_factory=dict)
    rules: str = field(repr=False, default="")
    metrics: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None


def packaged(module: str) -> Path:
    """The folder of the pack that comes with the package.

    Raises:
        SLMError: there is none.
    """
    folder = Path(str(resources.files("mlx_companion.slm"))) / "data" / module
    if not folder.is_dir():
        raise SLMError(f"no pack of '{module}' comes with the package; train one with its recipe")
    return folder


def save_pack(
    folder: str | Path,
    module: str,
    version: str,
    *,
    arrays: Mapping[str, np.ndarray] | None = None,
    settings: Mapping[str, Any] | None = None,
    rules: str | None = None,
    metrics: Mapping[str, Any] | None = None,
    card: str | None = None,
) -> Pack:
    """Write a pack; an older one in `folder` is replaced as a whole.

    Args:
        folder: where.
        module: which module it belongs to.
        version: its name.
        arrays: the weights.
        settings: thresholds and calibration, JSON values.
        rules: a rule file's text.
        metrics: held-out figures; they are no part of the checksum.
        card: the model card; no part of the checksum either.

    Returns:
        The pack, as read back.

    Raises:
        DiskFullError: no space; the older pack is untouched.
        ConfigError: settings or metrics that are not JSON.
    """
    files: dict[str, bytes] = {
        WEIGHTS: save_arrays({k: np.ascontiguousarray(v) for k, v in (arrays or {}).items()}),
        SETTINGS: _json(dict(settings or {})),
    }
    if rules is not None:
        files[RULES] = rules.encode()
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())}
    index = {
        "module": module,
        "version": version,
        "files": hashes,
        "sha256": _whole(module, version, hashes),
        "metrics": json.loads(_json(dict(metrics or {}))),
    }
    with atomic_dir(folder) as new:
        for name, data in files.items():
            atomic_write_bytes(new / name, data)
        atomic_write_json(new / _INDEX, index)
        if card is not None:
            atomic_write_bytes(new / CARD, card.encode())
    return load_pack(folder, module)


def load_pack(folder: str | Path, module: str | None = None) -> Pack:
    """Read a pack and check all of it.

    Args:
        folder: where it lies.
        module: the module that it must belong to.

    Raises:
        SLMError: missing, damaged, changed, or another module's.
    """
    folder = Path(folder)
    index = _read_index(folder)
    if module not in (None, index["module"]):
        raise SLMError(f"{folder} is a pack of '{index['module']}', expected '{module}'")
    files = {name: _read(folder, name, wanted) for name, wanted in index["files"].items()}
    if _whole(index["module"], index["version"], index["files"]) != index["sha256"]:
        raise SLMError(f"{folder / _INDEX} does not match its own checksum; restore the pack")
    try:
        arrays = load_arrays(files[WEIGHTS])
        settings = json.loads(files[SETTINGS])
        rules = files.get(RULES, b"").decode()
        if not isinstance(settings, dict):
            raise TypeError(f"{SETTINGS} holds a {type(settings).__name__}, not an object")
    except Exception as error:
        raise SLMError(f"the pack in {folder} cannot be read ({error}); restore it") from error
    return Pack(
        index["module"],
        index["version"],
        index["sha256"],
        arrays,
        settings,
        rules,
        index.get("metrics", {}),
        folder,
    )


def copy_pack(folder: str | Path, target: str | Path) -> None:
    """Copy a pack and nothing else that lies beside it.

    Raises:
        OSError: a file cannot be read or written.
    """
    source, target = Path(folder), Path(target)
    for name in (_INDEX, WEIGHTS, SETTINGS, RULES, CARD):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / _INDEX
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        kinds = {"module": str, "version": str, "files": dict, "sha256": str}
        good = all(isinstance(index[key], kind) for key, kind in kinds.items())
        good = good and isinstance(index.get("metrics", {}), dict)
        # Names become paths: none may lead out of the folder.
        good = good and set(index["files"]) <= {WEIGHTS, SETTINGS, RULES}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise SLMError(f"{path} is no index of a pack ({error}); give a pack's folder") from error
    if not good or not {WEIGHTS, SETTINGS} <= set(index["files"]):
        raise SLMError(f"{path} is no index of a pack; expected {WEIGHTS} and {SETTINGS} in it")
    return index


def _read(folder: Path, name: str, wanted: str) -> bytes:
    path = folder / name
    try:
        if path.stat().st_size > _LARGEST:
            raise SLMError(f"{path} is larger than {_LARGEST >> 20} MB; it is no module's pack")
        data = path.read_bytes()
    except OSError as error:
        raise SLMError(f"{path} cannot be read ({error}); restore the pack") from error
    if hashlib.sha256(data).hexdigest() != wanted:
        raise SLMError(f"{path} was changed or damaged (its SHA-256 differs); restore the pack")
    return data


def _whole(module: str, version: str, hashes: Mapping[str, str]) -> str:
    told = "\n".join([module, version, *(f"{name} {hashes[name]}" for name in sorted(hashes))])
    return hashlib.sha256(told.encode()).hexdigest()


def _json(value: dict[str, Any]) -> bytes:
    try:
        text = json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"a pack's settings and metrics must be JSON: {error}") from error
    return f"{text}\n".encode()
