"""`load(x)`: a byte model from a folder in any known layout, or from the hub.

    model = load()                                   # the small model that comes with the package
    model = load("path/to/folder")                   # ours, transformers', or Meta's
    model = load("owner/name")                       # a hub id, fetched once
    model = load(folder, map_table=True)             # the hash table stays in its file

Meta's folders hold `config.json` or `params.json`, weights in safetensors or `.pth`, and the
entropy model in a folder `entropy_model` of the same kind. An entropy model on its own is loaded as
a `ByteLM`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_companion.blt.byte_lm import ByteLM
from mlx_companion.blt.config import BltConfig, ByteLMConfig
from mlx_companion.blt.hash_table import MappedHashEmbedding
from mlx_companion.blt.hf_config import from_hf
from mlx_companion.blt.layouts import (
    HASH_TABLE,
    entropy_to_hf,
    find_layout,
    meta_section,
    meta_to_hf,
    without_computed,
)
from mlx_companion.blt.meta_config import from_meta, lm_from_meta
from mlx_companion.blt.model import BltModel
from mlx_companion.blt.weights import (
    dequantize as unpack,
)
from mlx_companion.blt.weights import (
    fit,
    put,
    quantize_as,
    read_safetensors,
    read_tensors,
    weight_files,
)
from mlx_companion.errors import ConfigError, ModelNotFoundError, WeightsError
from mlx_companion.models.fetch import fetch
from mlx_companion.models.folder import read_json
from mlx_companion.models.hashing import content_sha256
from mlx_companion.runtime.config import load_config

ByteModel = BltModel | ByteLM

# Of our own layout: the highest that is read, and what it may hold.
VERSION = 1
KINDS: dict[str, type] = {"blt": BltConfig, "byte_lm": ByteLMConfig}

_ENTROPY_FOLDER = "entropy_model"
_TABLE_PATH = HASH_TABLE.removesuffix(".weight")


def load(
    x: str | Path | None = None,
    *,
    dtype: mx.Dtype | None = None,
    dequantize: bool | None = None,
    map_table: bool = False,
    strict: bool = True,
    lazy: bool = False,
) -> ByteModel:
    """Load a byte model.

    Args:
        x: a folder, or a hub id `owner/name`; None for the model that comes with the package.
        dtype: number type of weights that are not packed. Default: float32 on the CPU backend,
            elsewhere that of the files.
        dequantize: unpack packed linear layers. Default: only on the CPU backend, where they are
            slow. A packed hash table always stays packed.
        map_table: leave the hash table in its file (inference only).
        strict: whether tensors that the model has no place for are an error.
        lazy: leave weights on the disk until they are first used.

    Returns:
        A `BltModel` or `ByteLM` in evaluation mode.

    Raises:
        ModelNotFoundError: `x` names nothing.
        DownloadError: the model could not be fetched.
        WeightsError: weights or configuration are missing, damaged, or do not fit each other.
    """
    on_cpu = mx.default_device().type == mx.DeviceType.cpu
    model = open_model(find_model(x), map_table=map_table, strict=strict)
    if dtype is None and on_cpu:
        dtype = mx.float32
    if dtype is not None:
        # Before unpacking, so that scale times value is not rounded to the scale's type.
        model.set_dtype(dtype)
    if on_cpu if dequantize is None else dequantize:
        unpack(model, dtype or mx.float32, tables=False)
    if not lazy:
        mx.eval(model.parameters())
    return model


def find_model(x: str | Path | None = None) -> Path:
    """The folder that `x` names, fetched when need be.

    Raises:
        ModelNotFoundError: `x` is no folder and no hub id.
        DownloadError: the model could not be fetched.
    """
    path, name = default_model_path() if x is None else Path(x).expanduser(), str(x)
    if path.is_dir():
        return path
    if x is None:
        raise ModelNotFoundError("this installation came without a byte model; give a folder")
    if path.exists():
        raise ModelNotFoundError(f"'{x}' is a file; give the folder of a byte model")
    owner, _, rest = name.partition("/")
    if isinstance(x, Path) or not owner.strip(".~") or not rest or "/" in rest:
        raise ModelNotFoundError(
            f"there is no folder '{x}', and it is no hub id (owner/name); check the path"
        )
    return fetch(name, kind="bytes")


def default_model_path() -> Path:
    """The folder of the model that comes with the package."""
    return Path(__file__).parent / "data"


def open_model(folder: Path, *, map_table: bool = False, strict: bool = True) -> ByteModel:
    """The model of a folder, its arrays not evaluated and of the files' number types.

    Args, Raises: as for `load`.
    """
    stored = _read(folder)
    model: ByteModel
    if isinstance(stored.config, BltConfig):
        model = BltModel(stored.config)
    else:
        model = ByteLM(stored.config)
    if map_table:
        _map_table(model, stored, folder)
    quantize_as(model, stored.packed)
    fit(model, stored.tensors, folder, strict)
    model.eval()
    return model


@dataclass
class _Stored:
    """What a folder holds.

    Attributes:
        config: of the model.
        tensors: by our names.
        packed: how packed layers are packed, by path.
    """

    config: BltConfig | ByteLMConfig
    tensors: dict[str, mx.array]
    packed: dict[str, Any]


def _read(folder: Path) -> _Stored:
    layout, tree = find_layout(folder)
    reader = {"ours": _read_ours, "hf": _read_hf, "meta": _read_meta}[layout]
    try:
        return reader(folder, tree)
    except WeightsError as error:
        if str(folder) in str(error):
            raise
        raise WeightsError(f"{folder} cannot be loaded: {error}") from error
    except ConfigError as error:
        raise WeightsError(f"the configuration in {folder} cannot be used: {error}") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise WeightsError(f"the configuration in {folder} is malformed ({error})") from error


def _read_ours(folder: Path, tree: dict[str, Any]) -> _Stored:
    version, kind = tree.get("version"), tree.get("kind")
    if not isinstance(version, int) or version > VERSION or kind not in KINDS:
        raise WeightsError(
            f"{folder} has version {version!r} and kind {kind!r}; this release reads version "
            f"{VERSION} of {', '.join(KINDS)}; update the package"
        )
    config: Any = load_config(KINDS[str(kind)], None, tree.get("config") or {})
    _check_sums(folder, tree.get("sha256") or {})
    return _Stored(config, read_tensors(folder), tree.get("quantization") or {})


def _check_sums(folder: Path, sums: dict[str, str]) -> None:
    for file in weight_files(folder):
        # Sums of large files are remembered, so that this costs time once.
        if file.name in sums and content_sha256([file]) != sums[file.name]:
            raise WeightsError(
                f"{file} is not the file that was saved (its SHA-256 differs); copy it again"
            )


def _read_hf(folder: Path, tree: dict[str, Any]) -> _Stored:
    config = from_hf(tree)
    return _Stored(config, without_computed(read_tensors(folder)), {})


def _read_meta(folder: Path, tree: dict[str, Any]) -> _Stored:
    tensors = read_tensors(folder)
    if not any("local_encoder." in name for name in tensors):
        tensors = entropy_to_hf(tensors, "model.")
        return _Stored(lm_from_meta(tree, tensors), tensors, {})
    tensors = meta_to_hf(tensors)
    entropy_tree: dict[str, Any] = {}
    if (entropy := folder / _ENTROPY_FOLDER).is_dir():
        tensors |= entropy_to_hf(read_tensors(entropy), "model.patcher.")
        entropy_tree = _entropy_settings(entropy)
    return _Stored(from_meta(tree, entropy_tree, tensors), tensors, {})


def _entropy_settings(folder: Path) -> dict[str, Any]:
    names = [n for n in ("params.json", "config.json") if (folder / n).is_file()]
    tree = read_json(folder / (names[0] if names else "params.json"))
    if not isinstance(tree, dict) or not isinstance(meta_section(tree), dict):
        raise WeightsError(f"{folder / names[0]} holds no settings")
    return tree


def _map_table(model: ByteModel, stored: _Stored, folder: Path) -> None:
    """Replace the hash table by one that reads from its file, and leave its tensors out."""
    if "encoder_hash_tok_embedding" not in model.model:
        return
    files = [f for f in weight_files(folder) if f.suffix == ".safetensors"]
    file = next((f for f in files if HASH_TABLE in read_safetensors(f)), None)
    if file is None:
        raise WeightsError(f"{folder} has no hash table that can be mapped; convert it first")
    packing = dict(stored.packed.get(_TABLE_PATH, {}))
    if packing.pop("mode", "affine") != "affine":
        raise WeightsError(f"the hash table in {folder} is packed in a way that cannot be mapped")
    table = MappedHashEmbedding(file, HASH_TABLE, **packing)
    config: Any = stored.config
    found = (stored.tensors[HASH_TABLE].shape[0], table.width)
    if found != (config.hash.rows, config.encoder.width):
        raise WeightsError(
            f"the hash table in {folder} is {found}, expected "
            f"{(config.hash.rows, config.encoder.width)}"
        )
    put(model, _TABLE_PATH, table)
    stored.packed = {key: how for key, how in stored.packed.items() if key != _TABLE_PATH}
    stored.tensors = {
        name: x for name, x in stored.tensors.items() if not name.startswith(_TABLE_PATH + ".")
    }
