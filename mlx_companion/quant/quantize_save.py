"""Quantized models to disk, in the layouts that their loaders read.

Language models: mlx-lm's (`config.json` with what differs by layer, `model.safetensors`, the
tokenizer), read by `mlx_lm.load` and by `load`. Byte models: our layout. Sentence encoders:
sentence-transformers' layout with a "quantization" in `config.json`, read by `load_encoder`.
Adapters are left out: they are saved on their own (`lora.save_adapter`).

A folder is replaced as a whole or not at all.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_companion.errors import ConfigError
from mlx_companion.models.encoder import SentenceEncoder
from mlx_companion.models.folder import read_json
from mlx_companion.models.load import LanguageModel
from mlx_companion.quant.quantize_layers import base_name, of_adapter, parameters_of
from mlx_companion.quant.quantize_subjects import quantization_entry
from mlx_companion.runtime.files import atomic_dir, atomic_write_json

WEIGHTS = "model.safetensors"
_ENCODER_FILES = ("tokenizer.json", "tokenizer_config.json", "sentence_bert_config.json",
                  "modules.json", "vocab.txt", "special_tokens_map.json")  # fmt: skip


def check_target(folder: str | Path) -> Path:
    """The folder, when a model may be written there: new, empty, or one that holds a model.

    Raises:
        ConfigError: a file, or a folder with other things in it.
    """
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise ConfigError(f"{target} is a file; give a folder to write to")
    if target.is_dir() and any(target.iterdir()) and not (target / "config.json").is_file():
        raise ConfigError(f"{target} holds something else than a model; give a new folder")
    return target


def save_language_model(lm: LanguageModel, folder: str | Path, dtype: mx.Dtype) -> Path:
    """Write a language model in mlx-lm's layout.

    Args:
        lm: with packed layers or without.
        folder: new, empty, or one with a model, which is replaced.
        dtype: of everything that is not packed, scales included.

    Raises:
        ConfigError: the folder holds something else.
        DiskFullError: no space; what was there before is untouched.
    """
    target = check_target(folder)
    config = {k: v for k, v in lm.config.items() if not k.startswith("quantization")}
    config |= quantization_entry(lm.model)
    config.setdefault("eos_token_id", sorted(lm.tokenizer.eos_token_ids))
    with atomic_dir(target) as temporary:
        _write_weights(lm.model, temporary, dtype)
        atomic_write_json(temporary / "config.json", config)
        lm.tokenizer.save_pretrained(str(temporary))
    return target


def save_encoder(encoder: SentenceEncoder, folder: str | Path, dtype: mx.Dtype) -> Path:
    """Write a sentence encoder. Arguments and errors as of `save_language_model`."""
    target = check_target(folder)
    config = read_json(encoder.path / "config.json") | quantization_entry(encoder.model)
    with atomic_dir(target) as temporary:
        _write_weights(encoder.model, temporary, dtype)
        atomic_write_json(temporary / "config.json", config)
        encoder.tokenizer.save(str(temporary / "tokenizer.json"))
        for name in _ENCODER_FILES[1:]:
            if (encoder.path / name).is_file():
                shutil.copy(encoder.path / name, temporary / name)
        if (encoder.path / "1_Pooling").is_dir():
            shutil.copytree(encoder.path / "1_Pooling", temporary / "1_Pooling")
    return target


def weights_of(model: nn.Module, dtype: mx.Dtype) -> dict[str, mx.array]:
    """Weights by their names in files, adapters left out, of one number type."""
    found: dict[str, mx.array] = {}
    for name, value in parameters_of(model).items():
        path, _, leaf = name.rpartition(".")
        if of_adapter(name):
            continue
        floating = mx.issubdtype(value.dtype, mx.floating)
        found[f"{base_name(path)}.{leaf}"] = value.astype(dtype) if floating else value
    return found


def _write_weights(model: nn.Module, folder: Path, dtype: mx.Dtype) -> None:
    weights: Any = weights_of(model, dtype)
    mx.save_safetensors(str(folder / WEIGHTS), weights, metadata={"format": "mlx"})
