"""Byte models to disk: our layout, transformers' layout, and from one folder to another.

    save(model, "mine")                              # config.json and model.safetensors
    export_hf(model, "for-transformers")             # BltForCausalLM.from_pretrained reads it
    convert("path/to/blt-1b", "small", bits=8)       # any layout in, ours or transformers' out

Our layout is a `model.safetensors` whose names are transformers', and a `config.json` with our
configuration, how packed layers are packed, and the SHA-256 of the weights. A folder is replaced as
a whole or not at all; other files in it (a model card) are kept.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx

from mlx_companion.blt.hf_config import patches_in_transformers, to_hf
from mlx_companion.blt.layouts import FORMAT, HASH_TABLE, find_layout
from mlx_companion.blt.load import KINDS, VERSION, ByteModel, find_model, open_model
from mlx_companion.blt.model import BltModel
from mlx_companion.blt.weights import (
    INDEX,
    dequantize,
    quantization_of,
    quantize,
    stored_tensors,
)
from mlx_companion.errors import ConfigError, ModelError
from mlx_companion.runtime.config import to_dict
from mlx_companion.runtime.files import atomic_dir, atomic_write_json, sha256_file
from mlx_companion.runtime.logs import get_logger

WEIGHTS = "model.safetensors"
_TYPE_NAMES = {mx.float32: "float32", mx.float16: "float16", mx.bfloat16: "bfloat16"}

_log = get_logger(__name__)


def save(model: ByteModel, folder: str | Path, *, dtype: mx.Dtype | None = None) -> Path:
    """Write a model in our layout; packed layers stay packed.

    Args:
        model: of either kind.
        folder: made when missing; replaced when it holds a byte model.
        dtype: number type of what is written, scales of packed layers included; None for that in
            memory.

    Returns:
        The folder.

    Raises:
        ConfigError: the folder holds something else.
        DiskFullError: no space; what was there before is untouched.
    """
    config = {
        "format": FORMAT,
        "version": VERSION,
        "kind": next(kind for kind, cls in KINDS.items() if isinstance(model.config, cls)),
        "config": _finite(to_dict(model.config)),
        "quantization": quantization_of(model),
    }
    _write(Path(folder), config, _cast(stored_tensors(model), dtype), {"format": "mlx"})
    return Path(folder)


def export_hf(model: ByteModel, folder: str | Path, *, dtype: mx.Dtype | None = None) -> Path:
    """Write a model so that transformers loads it and computes the same logits.

    Packed layers are unpacked. Where transformers would find other patches (a mode it does not
    know, or a limit on their length, which it handles differently at the end of a text), that is
    logged: give it `patch_lengths` then.

    Args:
        model: a byte latent transformer; transformers has no class for a flat byte model.
        folder: made when missing; replaced when it holds a byte model.
        dtype: number type of the weights; None for that in memory.

    Returns:
        The folder.

    Raises:
        ConfigError: the folder holds something else, or transformers has no such model.
        DiskFullError: no space; what was there before is untouched.
    """
    if not isinstance(model, BltModel):
        raise ConfigError("transformers has no flat byte model; save it in our layout instead")
    if not patches_in_transformers(model.config):
        _log.warning(
            "transformers would patch this model differently; give it patch_lengths",
            extra={"mode": model.config.patching.mode},
        )
    tensors = _cast(_plain_tensors(model), dtype)
    if HASH_TABLE not in tensors:
        tensors[HASH_TABLE] = mx.zeros((0, model.config.encoder.width))
    kind = _TYPE_NAMES.get(tensors["lm_head.weight"].dtype, "float32")
    _write(Path(folder), to_hf(model.config) | {"dtype": kind}, tensors, {"format": "pt"})
    return Path(folder)


def convert(
    src: str | Path,
    dst: str | Path,
    *,
    to: Literal["mlx", "hf"] = "mlx",
    bits: int | None = None,
    table_bits: int | None = None,
) -> Path:
    """Read a model in any layout and write it in another; number types stay as they are.

    Args:
        src: a folder or a hub id.
        dst: the folder to write.
        to: "mlx" for our layout, "hf" for transformers'.
        bits: pack linear layers and the hash table in so many bits; None leaves them.
        table_bits: bits of the hash table, if others; alone, only the table is packed.

    Returns:
        `dst`.

    Raises:
        ConfigError: an unknown layout, or packing for transformers.
        ModelError: `src` cannot be read; see `load`.
        DiskFullError: no space; what was there before is untouched.
    """
    if to not in ("mlx", "hf"):
        raise ConfigError(f"to is {to!r}; expected 'mlx' or 'hf'")
    packs = bits is not None or table_bits is not None
    if to == "hf" and packs:
        raise ConfigError("transformers reads no packed weights; leave bits out, or use to='mlx'")
    model = open_model(find_model(src))
    if packs:
        dequantize(model, mx.float32)
        quantize(model, bits, table_bits)
    return export_hf(model, dst) if to == "hf" else save(model, dst)


def _write(
    folder: Path, config: dict[str, Any], tensors: dict[str, mx.array], metadata: dict[str, str]
) -> None:
    kept = _other_files(folder)
    with atomic_dir(folder) as temporary:
        mx.save_safetensors(str(temporary / WEIGHTS), tensors, metadata)
        if config.get("format") == FORMAT:
            config = config | {"sha256": {WEIGHTS: sha256_file(temporary / WEIGHTS)}}
        atomic_write_json(temporary / "config.json", config)
        for path in kept:
            copy = shutil.copytree if path.is_dir() else shutil.copy2
            copy(path, temporary / path.name)


def _other_files(folder: Path) -> list[Path]:
    """What of a folder that is about to be replaced has to stay.

    Raises:
        ConfigError: the folder is not a byte model's.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return []
    try:
        find_layout(folder)
    except ModelError as error:
        raise ConfigError(
            f"{folder} holds something that is no byte model, and would be replaced; give another "
            "folder"
        ) from error
    return [
        path
        for path in folder.iterdir()
        if path.name not in ("config.json", INDEX) and not path.match("model*.safetensors")
    ]


def _plain_tensors(model: BltModel) -> dict[str, mx.array]:
    tensors = stored_tensors(model)
    for path, how in quantization_of(model).items():
        parts = [tensors.pop(f"{path}.{name}", None) for name in ("weight", "scales", "biases")]
        tensors[path + ".weight"] = mx.dequantize(*parts, **how)  # type: ignore[arg-type]
    return tensors


def _cast(tensors: Mapping[str, mx.array], dtype: mx.Dtype | None) -> dict[str, mx.array]:
    if dtype is None:
        return dict(tensors)
    return {
        name: x.astype(dtype) if mx.issubdtype(x.dtype, mx.floating) else x
        for name, x in tensors.items()
    }


def _finite(value: Any) -> Any:
    """A threshold may be infinite, which JSON cannot say; read back, the text is the number."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
