"""What to plan for: a name or a file, to a configuration; no weights are read, nothing is fetched.

describe("qwen2.5-3b")          # the table of well-known models
describe("runs/mine")           # a folder with a config.json, with or without weights
describe("owner/name")          # a model that is in the hub's cache
describe("model.gguf")          # its header
describe("blt:small")           # a preset of byte models
"""

from __future__ import annotations

import difflib
import functools
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlx_companion.errors import ConfigError, ModelNotFoundError
from mlx_companion.quant.plan_families import FAMILIES, family_shape
from mlx_companion.quant.plan_shapes import ModelShape, Quantization, from_config

_TABLE = Path(__file__).with_name("plan_models.json")
_PRESET = "blt:"
# What MLX makes of them.
_GGUF_BITS = {
    "Q4_0": {"bits": 4, "group_size": 32},
    "Q4_1": {"bits": 4, "group_size": 32},
    "Q8_0": {"bits": 8, "group_size": 32},
}


@functools.cache
def known_models() -> dict[str, dict[str, Any]]:
    """Well-known models by name: `hub_id` and `config`, as their authors published them."""
    found: dict[str, dict[str, Any]] = json.loads(_TABLE.read_text(encoding="utf-8"))
    return found


def describe(source: str | Path | Mapping[str, Any]) -> tuple[ModelShape, Quantization | None]:
    """The shape of a model, and how its weights are quantized if the configuration says so.

    Args:
        source: an alias or another name of `known_models`, a hub id, a folder, a `config.json`, a
            GGUF file, "blt:" and a preset, or the configuration itself.

    Raises:
        ModelNotFoundError: nothing is called that, or it is not on this disk.
        WeightsError: the file is damaged.
        ConfigError: the configuration lacks something, or its architecture is unknown.
    """
    if isinstance(source, Mapping):
        return _from_config(source, str(source.get("model_type", "model")))
    name = str(source)
    if name.startswith(_PRESET):
        return _preset(name), None
    if name.lower() in known_models():
        return _from_config(known_models()[name.lower()]["config"], name.lower())
    path = Path(source).expanduser()
    if isinstance(source, Path) or name.startswith(("/", "./", "../", "~")) or path.exists():
        if not path.exists():
            raise ModelNotFoundError(f"there is no folder or file '{source}'; check the path")
        return _from_config(_config_of(path), path.stem if path.is_file() else path.name)
    return _from_hub(name)


def _config_of(path: Path) -> Mapping[str, Any]:
    from mlx_companion.models.folder import read_json
    from mlx_companion.models.gguf_header import is_gguf

    if path.is_file() and is_gguf(path):
        return _gguf_config(path)
    file = path / "config.json" if path.is_dir() else path
    ggufs = sorted(path.glob("*.gguf")) if path.is_dir() else []
    if len(ggufs) == 1 and not file.exists():
        return _gguf_config(ggufs[0])
    found = read_json(file)
    if not isinstance(found, dict):
        raise ConfigError(f"{file} holds no JSON object; expected the configuration of a model")
    return found


def _gguf_config(path: Path) -> Mapping[str, Any]:
    from mlx_companion.models.gguf import config_from_header
    from mlx_companion.models.gguf_header import read_header

    header = read_header(path)
    kinds = {tensor.kind for tensor in header.tensors.values()}
    packed = next((entry for kind, entry in _GGUF_BITS.items() if kind in kinds), None)
    config = config_from_header(header, path) | {"model_type": "llama"}
    return config | ({"quantization": packed} if packed else {})


def _from_hub(name: str) -> tuple[ModelShape, Quantization | None]:
    from mlx_companion.models import hub
    from mlx_companion.models.registry import spec_for

    by_id = {entry["hub_id"].lower(): key for key, entry in known_models().items()}
    if name.lower() in by_id:
        return describe(by_id[name.lower()])
    if name.count("/") != 1 or not all(name.split("/")):
        raise _unknown(name)
    folder = hub.cached(spec_for(name))
    if folder is None:
        raise ModelNotFoundError(
            f"'{name}' is not in the hub's cache here; download its config.json and give that "
            f"file, or run: mlx-companion fetch {name}"
        )
    return _from_config(_config_of(folder), name)


def _unknown(name: str) -> ModelNotFoundError:
    near = difflib.get_close_matches(name.lower(), known_models(), n=1, cutoff=0.4)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return ModelNotFoundError(
        f"'{name}' is no folder, no config.json, no hub id (owner/name) and no known model; {hint}"
        f"known: {', '.join(known_models())}"
    )


def _from_config(config: Mapping[str, Any], name: str) -> tuple[ModelShape, Quantization | None]:
    from mlx_companion.blt.hf_config import MODEL_TYPE
    from mlx_companion.blt.layouts import FORMAT

    if config.get("format") == FORMAT:
        return _our_byte_model(config, name), None
    family = config.get("model_type")
    if not isinstance(family, str):
        raise ConfigError(
            f"{name}: the configuration has no 'model_type'; expected the config.json of a "
            "transformers or mlx-lm model"
        )
    if family == MODEL_TYPE:
        return _byte_model(config, name), None
    if family in FAMILIES:
        shape = family_shape(config, name)
    else:
        from mlx_companion.quant.plan_modules import module_shape

        shape = module_shape(config, name)
    packed = config.get("quantization") or config.get("quantization_config")
    known = isinstance(packed, Mapping) and "bits" in packed and "quant_method" not in packed
    return shape, from_config(packed) if known and isinstance(packed, Mapping) else None


def _byte_model(config: Mapping[str, Any], name: str) -> ModelShape:
    from mlx_companion.blt.hf_config import from_hf
    from mlx_companion.quant.plan_modules import byte_shape

    return byte_shape(from_hf(config), name)


def _our_byte_model(config: Mapping[str, Any], name: str) -> ModelShape:
    from mlx_companion.blt.load import KINDS
    from mlx_companion.quant.plan_modules import byte_shape
    from mlx_companion.runtime.config import load_config

    kind: Any = KINDS.get(str(config.get("kind")))
    if kind is None:
        raise ConfigError(
            f"{name}: kind is {config.get('kind')!r}; expected one of {', '.join(KINDS)}"
        )
    return byte_shape(load_config(kind, None, config.get("config") or {}), name)


def _preset(name: str) -> ModelShape:
    from typing import cast

    from mlx_companion.blt.presets import Preset, blt_preset
    from mlx_companion.quant.plan_modules import byte_shape

    shape = byte_shape(blt_preset(cast(Preset, name.removeprefix(_PRESET))), name)
    return replace(shape, name=name)
