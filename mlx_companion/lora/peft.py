"""Adapters of PEFT, both ways: `adapter_config.json` and `adapter_model.safetensors`.

    import_peft("downloaded/adapter", model)          # attaches it
    export_peft(model, "for-peft", base_model="HuggingFaceTB/SmolLM2-135M-Instruct")

| PEFT                               | here              |                                    |
|------------------------------------|-------------------|------------------------------------|
| lora_A.weight (r, in)              | lora_a (in, r)    | linear layers                      |
| lora_B.weight (out, r)             | lora_b (r, out)   |                                    |
| lora_embedding_A (r, V)            | lora_a (V, r)     | embeddings                         |
| lora_embedding_B (D, r)            | lora_b (r, D)     |                                    |
| lora_magnitude_vector (out,)       | lora_m (out,)     | DoRA                               |
| lm_head.lora_A (r, D), .lora_B (V, r) | lora_b, lora_a | of the embedding, where it is tied |

Names are those of transformers, which mlx-lm keeps for every model that this package has an alias
of; other prefixes are resolved by the rest of a name. `fan_in_fan_out` concerns how the base is
stored, not the adapter. What has no counterpart is refused by name: fully trained modules
(`modules_to_save`), biases, and starts that change the base without having been converted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_companion.errors import AdapterError, ConfigError
from mlx_companion.lora.config import LoraConfig, TiedUse
from mlx_companion.lora.exchange import Part, install, locate, parts_of, plain_config
from mlx_companion.lora.io import CONFIG_FILE, read_json, write_json, write_weights
from mlx_companion.lora.layers import EMBEDDING_TYPES, linear_shape
from mlx_companion.lora.targets import HEAD, base_layers, tied_embedding
from mlx_companion.runtime.files import atomic_dir

PEFT_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_TENSOR = re.compile(
    r"^(?:base_model\.model\.)?(?P<path>.+?)\."
    r"(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)"
    r"(?:\.default)?(?:\.weight)?$"
)
# Starts that leave the base as it is; others ("pissa", "olora", ...) take something off it.
_HARMLESS_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
_REFUSED = {
    "modules_to_save": "it holds whole trained modules, and here only low-rank updates are loaded",
    "lora_bias": "its B has biases",
    "target_parameters": "it adapts bare parameters",
    "trainable_token_indices": "it holds trained rows of the embedding",
    "layer_replication": "it repeats layers of the base",
    "alora_invocation_tokens": "it acts from certain tokens on only",
    "use_qalora": "QA-LoRA pools its inputs",
    "use_bdlora": "its matrices are block-diagonal",
    "arrow_config": "it routes between adapters",
    "kasa_config": "KaSA changes the base",
    "velora_config": "VeLoRA changes the layers' inputs",
    "monteclora_config": "MonteCLoRA samples its weights",
}
_A, _B, _MAGNITUDE = "a", "b", "magnitude"


def import_peft(folder: str | Path, model: nn.Module) -> LoraConfig:
    """Attach an adapter that PEFT saved; adapters on the model are taken off.

    Args:
        folder: with adapter_config.json and adapter_model.safetensors.
        model: the base that it was trained on, plain or quantized.

    Returns:
        The config that it is attached with, for `save_adapter`.

    Raises:
        AdapterError: files missing or unreadable, a kind of adapter that is not supported, or
            another architecture; the model is as before.
    """
    folder = Path(folder)
    head = read_json(folder / CONFIG_FILE)
    _check_head(head, folder)
    try:
        hints = _hints(head)
    except (ConfigError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise AdapterError(f"{folder / CONFIG_FILE} is damaged: {error}") from error
    tensors = _read_tensors(folder / PEFT_WEIGHTS)
    layers = base_layers(model)
    tied = tied_embedding(model)
    grouped = _grouped(tensors, layers, tied, folder)
    parts: dict[str, Part] = {}
    for (path, name), values in grouped.items():
        use: TiedUse = "both" if path != tied else "output" if name == HEAD else "input"
        part = _part(name, values, hints, layers[path], use)
        parts[path] = _tied(path, parts[path], part) if path in parts else part
    return install(model, parts, hints)


def export_peft(model: nn.Module, folder: str | Path, *, base_model: str | None = None) -> Path:
    """Write the model's adapter as PEFT's `PeftModel.from_pretrained` reads it.

    PiSSA becomes a plain adapter of twice the rank, for the base as it was; the multiplier goes
    into alpha.

    Args:
        model: carries the adapter.
        folder: where to; replaced in one step.
        base_model: name or folder of the base, as transformers loads it.

    Returns:
        The folder.

    Raises:
        AdapterError: no adapter, or one that PEFT has no form for.
    """
    parts = parts_of(model)
    tied = tied_embedding(model)
    tensors: dict[str, mx.array] = {}
    for path, part in parts.items():
        tensors |= _written(path, part, path == tied)
    with atomic_dir(folder) as temporary:
        write_weights(temporary / PEFT_WEIGHTS, tensors)
        head = _head(plain_config(model, parts), parts, tied, base_model)
        write_json(temporary / CONFIG_FILE, head)
    return Path(folder)


def _check_head(head: Mapping[str, Any], folder: Path) -> None:
    kind = head.get("peft_type")
    if kind != "LORA":
        raise AdapterError(
            f"{folder} holds an adapter of the kind {kind!r}; only PEFT's LORA is read"
        )
    for key, why in _REFUSED.items():
        if head.get(key):
            raise AdapterError(f"{folder} cannot be imported, because {why} ({key})")
    if head.get("bias", "none") != "none":
        raise AdapterError(f"{folder} cannot be imported, because it trained biases (bias)")
    start = head.get("init_lora_weights", True)
    if start not in _HARMLESS_STARTS:
        raise AdapterError(
            f"{folder} was started with {start!r}, which changes the base; save it in PEFT with "
            "save_pretrained(..., path_initial_model_for_weight_conversion=...) first"
        )


def _hints(head: Mapping[str, Any]) -> LoraConfig:
    return LoraConfig(
        rank=head["r"],
        alpha=head["lora_alpha"],
        dropout=float(head.get("lora_dropout") or 0.0),
        scaling="rslora" if head.get("use_rslora") else "standard",
        dora=bool(head.get("use_dora")),
        rank_pattern=head.get("rank_pattern") or {},
        alpha_pattern=head.get("alpha_pattern") or {},
    )


def _read_tensors(path: Path) -> dict[str, mx.array]:
    if not path.exists():
        pickled = path.with_suffix(".bin")
        hint = "; save it again with safe_serialization=True" if pickled.exists() else ""
        raise AdapterError(f"{path} is missing{hint}")
    try:
        # MLX reads bfloat16, which numpy has not.
        loaded: Any = mx.load(str(path), format="safetensors")
        mx.eval(loaded)
    except (RuntimeError, ValueError, OSError) as error:
        raise AdapterError(f"{path} is not a readable safetensors file: {error}") from error
    return {name: value.astype(mx.float32) for name, value in loaded.items()}


def _grouped(
    tensors: Mapping[str, mx.array],
    layers: Mapping[str, nn.Module],
    tied: str | None,
    folder: Path,
) -> dict[tuple[str, str], dict[str, mx.array]]:
    """The tensors of each layer, by (its path here, its name there)."""
    grouped: dict[tuple[str, str], dict[str, mx.array]] = {}
    for name, value in tensors.items():
        match = _TENSOR.match(name)
        if match is None:
            _check_base_copy(name, value, layers, folder)
            continue
        there = match["path"]
        head = tied is not None and there == HEAD
        here = tied if head and tied else locate(there, layers)
        kind = _kind(match["part"], head)
        whole = head or kind == _MAGNITUDE
        grouped.setdefault((here, there), {})[kind] = value if whole else value.T
    if not grouped:
        raise AdapterError(f"{folder / PEFT_WEIGHTS} holds no LoRA tensors")
    return grouped


def _kind(part: str, tied_head: bool) -> str:
    if part == "lora_magnitude_vector":
        return _MAGNITUDE
    # The head reads the shared matrix the other way round, so its A is the embedding's B.
    return _B if part.endswith("A") == tied_head else _A


def _check_base_copy(
    name: str, value: mx.array, layers: Mapping[str, nn.Module], folder: Path
) -> None:
    """PEFT adds adapted embeddings of the base to the file; they must be those that are here."""
    path = name.removeprefix(_PREFIX).removesuffix(".weight").removesuffix(".base_layer")
    layer = layers.get(path)
    if not isinstance(layer, EMBEDDING_TYPES) and path != HEAD:
        raise AdapterError(f"{folder} holds {name}, which is no tensor of a LoRA adapter")
    if layer is not None and tuple(value.shape) != linear_shape(layer):
        raise AdapterError(
            f"{folder} was trained with a vocabulary of {value.shape[0]}, the model's is "
            f"{linear_shape(layer)[0]}; load the model it was trained on"
        )


def _part(
    name: str, values: Mapping[str, mx.array], hints: LoraConfig, layer: nn.Module, use: TiedUse
) -> Part:
    for kind in (_A, _B, *((_MAGNITUDE,) if hints.dora else ())):
        if kind not in values:
            raise AdapterError(f"the adapter's layer {name} is incomplete: there is no {kind}")
    a, b = values[_A], values[_B]
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
        raise AdapterError(f"the matrices of {name} do not fit each other: {a.shape}, {b.shape}")
    if hints.dora and use == "output":
        raise AdapterError(
            "the adapter has a DoRA magnitude per token for a tied head, which has no form here"
        )
    rank = hints.rank_of(name)
    # A tied head's adapter is its embedding's, whatever the patterns say of its name.
    if rank != a.shape[1] and use != "output":
        raise AdapterError(f"{name} has rank {a.shape[1]}, but adapter_config.json says {rank}")
    embedding = isinstance(layer, EMBEDDING_TYPES)
    return Part(a, b, hints.scale_of(name), values.get(_MAGNITUDE), embedding, use)


def _tied(path: str, one: Part, other: Part) -> Part:
    """Both uses of a tied embedding; they must be one adapter."""
    same = one.scale == other.scale and one.a.shape == other.a.shape
    if not same or not (mx.array_equal(one.a, other.a) and mx.array_equal(one.b, other.b)):
        raise AdapterError(
            f"the adapter changes {path} and the output head differently, but this model shares "
            "one matrix for both; train it with ensure_weight_tying=True"
        )
    return Part(one.a, one.b, one.scale, embedding=True)


def _written(path: str, part: Part, tied: bool) -> dict[str, mx.array]:
    """PEFT's tensors of one layer."""
    tensors = {}
    if not part.embedding:
        tensors = {"lora_A.weight": part.a.T, "lora_B.weight": part.b.T}
    elif part.use != "output":
        tensors = {"lora_embedding_A": part.a.T, "lora_embedding_B": part.b.T}
    if part.magnitude is not None:
        tensors["lora_magnitude_vector"] = part.magnitude
    named = {f"{_PREFIX}{path}.{name}": value for name, value in tensors.items()}
    if not tied or part.use == "input":
        return named
    if part.magnitude is not None:
        raise AdapterError(
            f"PEFT has no DoRA for a head that is tied to {path}; adapt the linear layers alone, "
            "or the input alone (tied='input')"
        )
    head = f"{_PREFIX}{HEAD}"
    return named | {f"{head}.lora_A.weight": part.b, f"{head}.lora_B.weight": part.a}


def _head(
    config: LoraConfig, parts: Mapping[str, Part], tied: str | None, base_model: str | None
) -> dict[str, Any]:
    use = parts[tied].use if tied is not None and tied in parts else None
    paths = [HEAD if path == tied and use == "output" else path for path in parts]
    head = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": config.rank,
        "lora_alpha": _number(config.alpha),
        "lora_dropout": config.dropout,
        "target_modules": paths,
        "rank_pattern": config.rank_pattern,
        "alpha_pattern": {name: _number(value) for name, value in config.alpha_pattern.items()},
        "use_rslora": config.scaling == "rslora",
        "use_dora": config.dora,
        "init_lora_weights": True,
        "bias": "none",
        "fan_in_fan_out": False,
        "modules_to_save": None,
        "inference_mode": True,
    }
    # Older versions of PEFT do not know the key, so it is written only where it is needed.
    return head | ({"ensure_weight_tying": True} if use == "both" else {})


def _number(value: float) -> int | float:
    return int(value) if value == int(value) else value
