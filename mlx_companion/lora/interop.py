"""Adapters of mlx-lm, both ways.

    export_mlx_lm(model, "out")     # then: mlx_lm.generate --adapter-path out
    import_mlx_lm("adapters", model)

LoRA and DoRA on linear layers, LoRA on embeddings. mlx-lm has one rank and one scale for all
layers, and its DoRA on embeddings has a magnitude per token where the paper, PEFT and this package
have one per output. For PEFT see `lora.peft`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_companion.errors import AdapterError, ConfigError
from mlx_companion.lora.attach import attached_config
from mlx_companion.lora.config import LoraConfig
from mlx_companion.lora.exchange import Part, install, parts_of
from mlx_companion.lora.io import CONFIG_FILE, WEIGHTS_FILE, read_json, write_json, write_weights
from mlx_companion.lora.layers import EMBEDDING_TYPES
from mlx_companion.lora.targets import base_layers
from mlx_companion.runtime.files import atomic_dir

_NAMES = {"lora_a": "a", "lora_b": "b", "m": "magnitude"}


def export_mlx_lm(model: nn.Module, folder: str | Path) -> Path:
    """Write the model's adapter as mlx-lm's `load_adapters` reads it.

    Args:
        model: carries the adapter; its multiplier goes into the exported scale. PiSSA becomes a
            plain adapter of twice the rank.
        folder: where to; replaced in one step.

    Returns:
        The folder.

    Raises:
        AdapterError: no adapter, layers that differ in rank or strength (mlx-lm has one each), or
            one that mlx-lm has no form for.
    """
    parts = parts_of(model)
    ranks = {part.rank for part in parts.values()}
    scales = {part.scale for part in parts.values()}
    if len(ranks) > 1 or len(scales) > 1:
        raise AdapterError("mlx-lm's format has one rank and one scale; these layers differ")
    _check_embeddings(parts)
    config = attached_config(model)
    dora = any(part.magnitude is not None for part in parts.values())
    head = {
        "fine_tune_type": "dora" if dora else "lora",
        "num_layers": len(model.layers),
        "lora_parameters": {
            "rank": ranks.pop(),
            "scale": scales.pop(),
            "dropout": config.dropout if config else 0.0,
            # Whole paths, because names within a block would adapt every block.
            "keys": list(parts),
        },
    }
    weights = {f"{path}.{n}": v for path, part in parts.items() for n, v in _tensors(part).items()}
    with atomic_dir(folder) as temporary:
        write_weights(temporary / WEIGHTS_FILE, weights)
        write_json(temporary / CONFIG_FILE, head)
    return Path(folder)


def import_mlx_lm(folder: str | Path, model: nn.Module) -> LoraConfig:
    """Attach an adapter that mlx-lm trained; adapters on the model are taken off.

    Args:
        folder: with adapter_config.json and adapters.safetensors.
        model: the base that it was trained on, plain or quantized.

    Returns:
        The config that it is attached with, for `save_adapter`.

    Raises:
        AdapterError: files missing or unreadable, fully trained weights, adapters of stacked
            experts, or another architecture; the model is as before.
    """
    folder = Path(folder)
    head = read_json(folder / CONFIG_FILE)
    kind = head.get("fine_tune_type", "lora")
    if kind not in ("lora", "dora"):
        raise AdapterError(f"{folder} holds a fine-tune of the kind {kind!r}, not lora or dora")
    try:
        settings = head["lora_parameters"]
        rank, scale = int(settings["rank"]), float(settings["scale"])
        dropout = float(settings.get("dropout", 0.0))
        hints = LoraConfig(rank=rank, alpha=scale * rank, dropout=dropout, dora=kind == "dora")
    except (ConfigError, KeyError, TypeError, ValueError) as error:
        raise AdapterError(f"{folder / CONFIG_FILE} is damaged: {error}") from error
    layers = base_layers(model)
    grouped: dict[str, dict[str, mx.array]] = {}
    for name, value in _read_tensors(folder / WEIGHTS_FILE).items():
        path, _, leaf = name.rpartition(".")
        if leaf not in _NAMES or value.ndim > 2:
            raise AdapterError(f"{folder} holds {name} {value.shape}, which is no plain adapter")
        grouped.setdefault(path, {})[_NAMES[leaf]] = value
    parts = {path: _part(path, values, scale, layers) for path, values in grouped.items()}
    _check_embeddings(parts)
    return install(model, parts, hints)


def _part(path: str, values: dict[str, mx.array], scale: float, layers: dict[str, Any]) -> Part:
    if not {"a", "b"} <= set(values):
        raise AdapterError(f"the adapter's layer {path} is incomplete")
    embedding = isinstance(layers.get(path), EMBEDDING_TYPES)
    return Part(values["a"], values["b"], scale, values.get("magnitude"), embedding)


def _tensors(part: Part) -> dict[str, mx.array]:
    magnitude = {} if part.magnitude is None else {"m": part.magnitude}
    return {"lora_a": part.a, "lora_b": part.b} | magnitude


def _check_embeddings(parts: dict[str, Part]) -> None:
    for path, part in parts.items():
        if part.embedding and part.magnitude is not None:
            raise AdapterError(
                f"{path} is an embedding with DoRA, of which mlx-lm has a magnitude per token and "
                "this package one per output; adapt it with plain LoRA"
            )
        if part.use != "both":
            raise AdapterError(f"mlx-lm adapts both uses of {path}; this adapter has one only")


def _read_tensors(path: Path) -> dict[str, mx.array]:
    try:
        loaded: Any = mx.load(str(path))
        mx.eval(loaded)
    except (RuntimeError, ValueError, OSError) as error:
        raise AdapterError(f"{path} is missing or no readable safetensors file: {error}") from error
    return {name: value.astype(mx.float32) for name, value in loaded.items()}
