"""Tensors from files into a model and back, with errors that name what does not fit.

Weight files are safetensors, in one piece or in shards that `model.safetensors.index.json` lists,
or a PyTorch `.pth`. Arrays of safetensors are read when they are used, so a number type may be
chosen before anything is in memory.

    tensors = read_tensors(folder)
    quantize_as(model, config.get("quantization", {}))
    fit(model, tensors, folder)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_companion.blt.hash_table import (
    HashEmbedding,
    MappedHashEmbedding,
    QuantizedHashEmbedding,
)
from mlx_companion.blt.torch_file import load_pth
from mlx_companion.errors import ConfigError, WeightsError
from mlx_companion.models.folder import check_safetensors, read_json

INDEX = "model.safetensors.index.json"

_NAMED = 10
_FLOATS = (mx.float32, mx.float16, mx.bfloat16)
_PACKED = (nn.QuantizedLinear, nn.QuantizedEmbedding, QuantizedHashEmbedding)
_GROUP_SIZES = (64, 32)


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a model's weights, in a fixed order.

    Args:
        folder: in any layout.

    Raises:
        WeightsError: none there, a shard missing, or several `.pth` (parts of a model that was
            split for several accelerators).
    """
    if (folder / INDEX).is_file():
        return _shards(folder)
    for pattern in ("model*.safetensors", "consolidated*.safetensors", "*.pth"):
        files = sorted(folder.glob(pattern))
        if len(files) > 1 and pattern == "*.pth":
            raise WeightsError(
                f"{folder} has {len(files)} .pth files; a model split for several accelerators "
                "has to be merged first"
            )
        if files:
            return files
    raise WeightsError(
        f"{folder} has no weights: no model.safetensors, no {INDEX} and no .pth file"
    )


def read_tensors(folder: Path) -> dict[str, mx.array]:
    """All tensors of a folder, by the names in its files.

    Raises:
        WeightsError: a file is missing, truncated or damaged.
    """
    tensors: dict[str, mx.array] = {}
    for file in weight_files(folder):
        tensors |= load_pth(file) if file.suffix == ".pth" else read_safetensors(file)
    return tensors


def read_safetensors(file: Path) -> dict[str, mx.array]:
    """The tensors of one file, not in memory yet.

    Raises:
        WeightsError: it is truncated, or no safetensors file.
    """
    check_safetensors(file)
    try:
        loaded: Any = mx.load(str(file))
    except (RuntimeError, ValueError) as error:
        raise WeightsError(f"{file} cannot be read: {error}") from error
    return loaded


def fit(
    model: nn.Module, tensors: Mapping[str, mx.array], source: Path, strict: bool = True
) -> None:
    """Put tensors into a model; nothing is put when anything does not fit.

    Args:
        model: its parameters' names are the tensors' names.
        tensors: by name.
        source: for messages.
        strict: whether tensors that the model has no place for are an error.

    Raises:
        WeightsError: tensors are missing, unexpected, of another shape or no floating-point
            numbers; names the first ten of each kind.
    """
    expected = dict(tree_flatten(model.parameters()))
    shared = expected.keys() & tensors.keys()
    shapes = [
        f"{name} {tensors[name].shape} instead of {expected[name].shape}"
        for name in sorted(shared)
        if tensors[name].shape != expected[name].shape
    ]
    kinds = [
        f"{name} {tensors[name].dtype}"
        for name in sorted(shared)
        if not _same_kind(tensors[name].dtype, expected[name].dtype)
    ]
    problems = [
        _listed("missing", sorted(expected.keys() - tensors.keys())),
        _listed("unexpected", sorted(tensors.keys() - expected.keys()) if strict else []),
        _listed("wrongly shaped", shapes),
        _listed("of an unsupported number type", kinds),
    ]
    if any(problems):
        found = "; ".join(filter(None, problems))
        raise WeightsError(f"the weights in {source} do not fit its configuration: {found}")
    model.load_weights([(name, tensors[name]) for name in expected])


def _same_kind(found: mx.Dtype, expected: mx.Dtype) -> bool:
    return found in _FLOATS if expected in _FLOATS else found == expected


def _listed(what: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{len(names)} {what} ({', '.join(names[:_NAMED])}{more})"


def _shards(folder: Path) -> list[Path]:
    index = read_json(folder / INDEX)
    names = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(names, dict) or not all(isinstance(n, str) for n in names.values()):
        raise WeightsError(f"{folder / INDEX} has no 'weight_map' of tensors to files")
    files = sorted({folder / name for name in names.values()})
    if outside := [file.name for file in files if file.parent != folder]:
        raise WeightsError(f"{folder / INDEX} names files outside of its folder ({outside[0]})")
    if missing := [file.name for file in files if not file.is_file()]:
        raise WeightsError(
            f"{folder} lacks {len(missing)} of {len(files)} weight files: "
            f"{', '.join(missing[:_NAMED])}; fetch them again"
        )
    return files


def quantize(model: nn.Module, bits: int | None, table_bits: int | None = None) -> None:
    """Quantize a model's linear layers and its hash table in place; the rest keeps its type.

    Layers whose width is no multiple of 32 stay as they are.

    Args:
        model: any byte model.
        bits: per weight of a linear layer: 2, 3, 4, 5, 6 or 8; None leaves those layers.
        table_bits: per value of the hash table; None for `bits`.

    Raises:
        ConfigError: a number of bits that MLX does not pack.
    """
    table_bits = bits if table_bits is None else table_bits
    for count in (bits, table_bits):
        if count not in (None, 2, 3, 4, 5, 6, 8):
            raise ConfigError(f"bits is {count!r}; expected 2, 3, 4, 5, 6 or 8")

    def choice(_: str, part: nn.Module) -> bool | dict[str, Any]:
        is_table = isinstance(part, HashEmbedding)
        if not is_table and type(part) is not nn.Linear:
            return False
        chosen = table_bits if is_table else bits
        size = next((g for g in _GROUP_SIZES if part.weight.shape[1] % g == 0), None)
        if size is None or chosen is None:
            return False
        return {"group_size": size, "bits": chosen, "mode": "affine"}

    nn.quantize(model, class_predicate=choice)


def quantization_of(model: nn.Module) -> dict[str, dict[str, Any]]:
    """How each packed layer is packed, by its path: the "quantization" of a configuration."""
    return {
        path: {
            "group_size": part.group_size,
            "bits": part.bits,
            "mode": getattr(part, "mode", "affine"),
        }
        for path, part in model.named_modules()
        if isinstance(part, (*_PACKED, MappedHashEmbedding)) and part.bits is not None
    }


def quantize_as(model: nn.Module, packed: Mapping[str, Any]) -> None:
    """Give a model the packed layers that a configuration names; their contents mean nothing yet.

    Raises:
        WeightsError: a path that is no layer, or settings that MLX does not know.
    """
    known = {path for path, part in model.named_modules() if hasattr(part, "to_quantized")}
    if unknown := sorted(packed.keys() - known):
        raise WeightsError(
            f"the configuration packs {_listed('unknown layers', unknown)}; it is damaged or newer"
        )
    try:
        nn.quantize(model, class_predicate=lambda path, _: packed.get(path, False))
    except (ValueError, TypeError, RuntimeError) as error:
        raise WeightsError(f"the configuration's quantization cannot be made: {error}") from error


def dequantize(model: nn.Module, dtype: mx.Dtype, tables: bool = True) -> None:
    """Turn packed layers into plain ones in place.

    Args:
        model: any byte model.
        dtype: of the new weights.
        tables: the hash table too, which costs no time packed and much memory unpacked.
    """
    replaced = [
        (path, _plain(part, dtype))
        for path, part in model.named_modules()
        if isinstance(part, _PACKED) and (tables or not isinstance(part, QuantizedHashEmbedding))
    ]
    for path, part in replaced:
        if ".patcher." in path:
            # The entropy model is never trained together with the rest.
            part.freeze()
        put(model, path, part)


def put(model: nn.Module, path: str, part: nn.Module) -> None:
    """Replace the module at a path such as "model.local_encoder.layers.0.mlp.up_proj"."""
    *parents, last = path.split(".")
    owner: Any = model
    for name in parents:
        owner = owner[int(name)] if isinstance(owner, list) else owner[name]
    owner[last] = part


def stored_tensors(model: nn.Module) -> dict[str, mx.array]:
    """What goes into a weight file: the parameters, and a mapped table's tensors from its file."""
    tensors: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
    for path, part in model.named_modules():
        if isinstance(part, MappedHashEmbedding):
            stem = part.key.removesuffix("weight")
            found = read_safetensors(part.path)
            tensors |= {
                f"{path}.{kind}": found[stem + kind]
                for kind in ("weight", "scales", "biases")
                if stem + kind in found
            }
    return tensors


def _plain(part: Any, dtype: mx.Dtype) -> nn.Module:
    weight = mx.dequantize(
        part.weight,
        part.scales,
        part.get("biases"),
        group_size=part.group_size,
        bits=part.bits,
        mode=part.mode,
    ).astype(dtype)
    if isinstance(part, QuantizedHashEmbedding):
        plain: nn.Module = HashEmbedding(1, weight.shape[1])
    elif isinstance(part, nn.QuantizedEmbedding):
        plain = nn.Embedding(1, weight.shape[1])
    else:
        plain = nn.Linear(weight.shape[1], 1, bias=False)
        if "bias" in part:
            plain.bias = part.bias
    plain.weight = weight
    return plain
