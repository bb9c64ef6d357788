"""Adapters on disk: a folder that appears whole or not at all, and knows its base model.

adapters.safetensors   A, B and magnitude (DoRA) of every adapted layer, float32; PiSSA's A and B
                       have twice the rank (`attach.stored_parameters`)
adapter_config.json    format version, LoRA config, hash of the base model, SHA-256 of the
                       weights file, shape of every tensor, and whatever the caller adds

sha = save_adapter("runs/a", model, config, base_sha256=lm.base_sha256)
config = load_adapter("runs/a", model, base_sha256=lm.base_sha256, expected_sha256=sha)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_companion.errors import AdapterError
from mlx_companion.lora.attach import (
    attach_layers,
    attached_config,
    check_shapes,
    detach,
    expected_shapes,
    get_multiplier,
    is_attached,
    load_stored,
    set_multiplier,
    stored_parameters,
)
from mlx_companion.lora.config import LoraConfig, config_from_dict, config_to_dict
from mlx_companion.runtime.files import atomic_dir

FORMAT = "mlx-companion-lora"
FORMAT_VERSION = 1
WEIGHTS_FILE = "adapters.safetensors"
CONFIG_FILE = "adapter_config.json"


@dataclass(frozen=True)
class AdapterInfo:
    """What `adapter_config.json` says; `shapes` gives the shape of every tensor by name."""

    config: LoraConfig
    multiplier: float
    base_sha256: str
    weights_sha256: str
    shapes: dict[str, tuple[int, ...]]
    extra: dict[str, Any]


def save_adapter(
    folder: str | Path,
    model: nn.Module,
    config: LoraConfig,
    base_sha256: str,
    extra: Mapping[str, Any] | None = None,
) -> str:
    """Write the model's adapter, its multiplier included, replacing an older one in one step.

    Args:
        folder: where to; its parent is made if needed.
        model: carries the adapter.
        config: what it was attached with.
        base_sha256: hash of the base model's weights (`LanguageModel.base_sha256`).
        extra: JSON values to keep with it.

    Returns:
        SHA-256 of the weights file.

    Raises:
        AdapterError: no adapter is attached, or it was attached with another config.
        DiskFullError: no space; an older adapter in the folder is untouched.
    """
    weights = stored_parameters(model)
    if attached_config(model) not in (None, config):
        raise AdapterError(f"attached with {attached_config(model)}, but saved as {config}")
    shapes = {name: list(weight.shape) for name, weight in weights.items()}
    with atomic_dir(folder) as temporary:
        sha256 = write_weights(temporary / WEIGHTS_FILE, weights)
        head = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "lora": config_to_dict(config),
            "multiplier": get_multiplier(model),
            "base_sha256": base_sha256,
            "weights_sha256": sha256,
            "tensors": shapes,
            "extra": dict(extra or {}),
        }
        write_json(temporary / CONFIG_FILE, head)
    return sha256


def load_adapter(
    folder: str | Path,
    model: nn.Module,
    base_sha256: str | None = None,
    expected_sha256: str | None = None,
) -> LoraConfig:
    """Load an adapter into a model, attaching it first where needed.

    Adapters that are on the model with another config are taken off. The multiplier becomes the
    one that it was saved with.

    Args:
        folder: what `save_adapter` wrote.
        model: the base model the adapter was trained on.
        base_sha256: hash of that model; checked against the one in the folder when given.
        expected_sha256: hash that the weights file must have (from the version registry).

    Returns:
        The adapter's config.

    Raises:
        AdapterError: missing, corrupt, changed, or made for another base; the model is as before.
    """
    folder = Path(folder)
    info = read_adapter_config(folder)
    if base_sha256 is not None and base_sha256 != info.base_sha256:
        raise AdapterError(
            f"the adapter in {folder} was made for the base model {info.base_sha256[:12]}, "
            f"but this one is {base_sha256[:12]}; load the model it was trained on"
        )
    weights = _read_weights(folder / WEIGHTS_FILE, info, expected_sha256)
    try:
        check_shapes(expected_shapes(model, info.config), weights)
    except AdapterError as error:
        raise AdapterError(f"the adapter in {folder} does not fit this model: {error}") from error
    if not is_attached(model) or attached_config(model) != info.config:
        detach(model)
        attach_layers(model, info.config, decompose=False)
    load_stored(model, weights)
    set_multiplier(model, info.multiplier)
    return info.config


def read_adapter_config(folder: str | Path) -> AdapterInfo:
    """Read and check an adapter's description, without its weights.

    Raises:
        AdapterError: no such folder, a missing or unreadable file, an unknown format.
    """
    path = Path(folder) / CONFIG_FILE
    head = read_json(path)
    if head.get("format") != FORMAT:
        raise AdapterError(f"{path} is not an adapter of this package (format '{FORMAT}' expected)")
    version = head.get("format_version")
    if version != FORMAT_VERSION:
        raise AdapterError(
            f"{path} has format version {version!r}, this package reads {FORMAT_VERSION}; "
            "update mlx-companion"
        )
    return _parse_head(head, path)


def read_json(path: Path) -> dict[str, Any]:
    """An adapter's description, whatever program wrote it; empty where it is no mapping.

    Raises:
        AdapterError: no such folder, or a missing or unreadable file.
    """
    if not path.parent.is_dir():
        raise AdapterError(f"no adapter folder at {path.parent}; check the path")
    try:
        head = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AdapterError(f"{path} is missing; the folder holds no adapter") from None
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path} cannot be read: {error}") from error
    return head if isinstance(head, dict) else {}


def write_weights(path: Path, weights: Mapping[str, mx.array]) -> str:
    """Write tensors as safetensors, float16 ones as they are and others as float32.

    Returns:
        SHA-256 of the file.
    """
    from safetensors.numpy import save

    # safetensors writes a transposed array's memory as it lies, which is not its content.
    arrays = {
        name: np.ascontiguousarray(
            # NumPy has no bfloat16.
            np.array(weight if weight.dtype == mx.float16 else weight.astype(mx.float32))
        )
        for name, weight in weights.items()
    }
    # Through Python's own write, whose error on a full disk says so.
    data = save(arrays)
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write readable JSON."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _parse_head(head: dict[str, Any], path: Path) -> AdapterInfo:
    try:
        return AdapterInfo(
            config=config_from_dict(head["lora"]),
            multiplier=float(head["multiplier"]),
            base_sha256=str(head["base_sha256"]),
            weights_sha256=str(head["weights_sha256"]),
            shapes={name: tuple(shape) for name, shape in head["tensors"].items()},
            extra=dict(head["extra"]),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise AdapterError(f"{path} is damaged: {type(error).__name__}: {error}") from error


def _read_weights(path: Path, info: AdapterInfo, expected: str | None) -> dict[str, mx.array]:
    """The tensors, from one read of the file, checked against every hash and the listed shapes."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise AdapterError(f"{path} is missing; the adapter is incomplete") from None
    except OSError as error:
        raise AdapterError(f"{path} cannot be read: {error}") from error
    found = hashlib.sha256(data).hexdigest()
    for wanted, whose in ((info.weights_sha256, CONFIG_FILE), (expected, "the caller")):
        if wanted is not None and wanted != found:
            raise AdapterError(
                f"{path} is corrupt or was replaced: its SHA-256 is {found[:12]}, "
                f"{whose} expects {wanted[:12]}"
            )
    try:
        arrays = load(data)
    except (SafetensorError, ValueError) as error:
        raise AdapterError(f"{path} is not a readable safetensors file: {error}") from error
    if {name: tuple(array.shape) for name, array in arrays.items()} != info.shapes:
        raise AdapterError(f"{path} does not hold the tensors that {CONFIG_FILE} lists")
    return {name: mx.array(array) for name, array in arrays.items()}
