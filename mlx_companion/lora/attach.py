"""Put adapters on a model, take them off, and set how strongly they act.

attach(model, LoraConfig(rank=8), seed=0)
...train...
set_multiplier(model, 0.5)      # half the change, at once
detach(model)                   # the very modules that were there before
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from mlx_companion.errors import AdapterError
from mlx_companion.lora.config import LoraConfig
from mlx_companion.lora.layers import (
    EMBEDDING_TYPES,
    TRAINED,
    Adapter,
    LoRAEmbedding,
    LoRALinear,
    dense_weight,
    linear_shape,
)
from mlx_companion.lora.principal import principal_factors
from mlx_companion.lora.targets import match_targets, tied_embedding, wrapped_layers
from mlx_companion.runtime.seeds import derive_seed


@dataclass(frozen=True)
class Attachment:
    """What `attach` did to a model, so that `detach` can undo it."""

    config: LoraConfig
    trainable: tuple[str, ...]


def attach(model: nn.Module, config: LoraConfig, seed: int = 0) -> list[str]:
    """Freeze a model and put a trainable adapter on every layer that the config names.

    Args:
        model: any MLX model; changed in place.
        config: rank, strength and targets.
        seed: decides the initial A, together with the path of each layer; the global random
            state is neither read nor changed.

    Returns:
        Paths of the adapted layers, in the model's order.

    Raises:
        AdapterError: adapters are on the model already, or no layer matches.
    """
    return attach_layers(model, config, seed)


def attach_layers(
    model: nn.Module, config: LoraConfig, seed: int = 0, *, decompose: bool = True
) -> list[str]:
    """As `attach`; without `decompose`, PiSSA's start is left at zero, for values that follow."""
    present = wrapped_layers(model)
    if present:
        raise AdapterError(
            f"the model carries adapters already ({len(present)}, first: {next(iter(present))}); "
            "detach(model) first"
        )
    targets = match_targets(model, config)
    trainable = tuple(dict(tree_flatten(model.trainable_parameters())))
    shared = tied_embedding(model)
    layers = {}
    for path, base in targets.items():
        layers[path] = _adapted(path, base, config, seed, decompose)
        if path == shared and isinstance(layers[path], LoRAEmbedding):
            layers[path].use = config.tied
    replace_modules(model, layers)
    model.freeze()
    for layer in layers.values():
        layer.unfreeze(recurse=False, keys=[name for name in TRAINED if name in layer])
    model._lora_attachment = Attachment(config, trainable)
    return list(targets)


def detach(model: nn.Module) -> list[str]:
    """Take all adapters off, mlx-lm's own (LoRA and DoRA) included, and unfreeze what was unfrozen.

    The very modules that were there before come back. (mlx-lm's `remove_lora_layers` looks for
    its LoRA layers only and leaves its DoRA layers in place.)

    Returns:
        Paths of the layers restored; empty when there was no adapter.
    """
    bases = wrapped_layers(model)
    replace_modules(model, bases)
    restore_trainable(model)
    return list(bases)


def is_attached(model: nn.Module) -> bool:
    """Whether the model carries adapters of this package."""
    return bool(adapter_layers(model))


def attached_config(model: nn.Module) -> LoraConfig | None:
    """The config that the model's adapters were attached with, if any."""
    attachment = getattr(model, "_lora_attachment", None)
    return None if attachment is None else attachment.config


def adapter_layers(model: nn.Module) -> dict[str, Adapter]:
    """The adapted layers by path, sorted by path."""
    found = {path: m for path, m in model.named_modules() if isinstance(m, Adapter)}
    return dict(sorted(found.items()))


def require_adapters(model: nn.Module) -> dict[str, Adapter]:
    """As `adapter_layers`. Raises AdapterError when there are none."""
    layers = adapter_layers(model)
    if not layers:
        raise AdapterError("the model carries no adapter; attach(model, config) first")
    return layers


def adapter_parameters(model: nn.Module) -> dict[str, mx.array]:
    """Every trained A, B and magnitude by its path in the model ("...q_proj.lora_a"), sorted.

    Raises:
        AdapterError: no adapter is attached.
    """
    layers = require_adapters(model)
    return {
        f"{path}.{name}": layer[name]
        for path, layer in layers.items()
        for name in TRAINED
        if name in layer
    }


def load_parameters(model: nn.Module, weights: Mapping[str, mx.array]) -> None:
    """Set all of `adapter_parameters`; nothing changes unless all names and shapes fit.

    Raises:
        AdapterError: no adapter, a missing or unknown tensor, or one of another shape.
    """
    current = adapter_parameters(model)
    check_shapes({name: tuple(old.shape) for name, old in current.items()}, weights)
    model.load_weights([(n, w.astype(current[n].dtype)) for n, w in weights.items()], strict=False)


def stored_parameters(model: nn.Module) -> dict[str, mx.array]:
    """What an adapter's file holds: as `adapter_parameters`, and PiSSA's start beside A and B.

    With a start, "lora_a" is [A, A0] of width 2 r and "lora_b" is [B; -B0]: a plain adapter of
    rank 2 r and the same scale, for whoever does not want to train on.

    Raises:
        AdapterError: no adapter is attached.
    """
    weights = adapter_parameters(model)
    for path, layer in require_adapters(model).items():
        if "start_a" in layer:
            a, b = [layer.lora_a, layer.start_a], [layer.lora_b, -layer.start_b]
            weights[f"{path}.lora_a"] = mx.concatenate(a, axis=1)
            weights[f"{path}.lora_b"] = mx.concatenate(b, axis=0)
    return weights


def load_stored(model: nn.Module, weights: Mapping[str, mx.array]) -> None:
    """Set what `stored_parameters` gave, on a model that was attached with the same config.

    Raises:
        AdapterError: as `load_parameters`.
    """
    plain, starts = dict(weights), []
    for path, layer in require_adapters(model).items():
        if "start_a" not in layer:
            continue
        a, b = plain[f"{path}.lora_a"], plain[f"{path}.lora_b"]
        starts.append((layer, a[:, layer.rank :], -b[layer.rank :]))
        plain[f"{path}.lora_a"], plain[f"{path}.lora_b"] = a[:, : layer.rank], b[: layer.rank]
    load_parameters(model, plain)
    for layer, a, b in starts:
        layer.start_a, layer.start_b = a.astype(layer.lora_a.dtype), b.astype(layer.lora_b.dtype)


def expected_shapes(model: nn.Module, config: LoraConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in the file of an adapter with this config.

    Raises:
        AdapterError: no layer of the model matches the config.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path, base in match_targets(model, config).items():
        rows, columns = linear_shape(base)
        inputs, outputs = (rows, columns) if isinstance(base, EMBEDDING_TYPES) else (columns, rows)
        width = config.rank_of(path) * (2 if config.init == "pissa" else 1)
        shapes[f"{path}.lora_a"] = (inputs, width)
        shapes[f"{path}.lora_b"] = (width, outputs)
        if config.dora:
            shapes[f"{path}.lora_m"] = (outputs,)
    return shapes


def check_shapes(needed: Mapping[str, tuple[int, ...]], weights: Mapping[str, mx.array]) -> None:
    """Raises AdapterError unless `weights` has exactly the tensors needed, in their shapes."""
    problems = [f"{name} is missing" for name in sorted(needed.keys() - weights.keys())]
    problems += [f"{name} is not in the model" for name in sorted(weights.keys() - needed.keys())]
    problems += [
        f"{name} has shape {tuple(weights[name].shape)}, the model needs {shape}"
        for name, shape in needed.items()
        if name in weights and tuple(weights[name].shape) != shape
    ]
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise AdapterError(f"these weights do not fit: {'; '.join(problems[:3])}{more}")


def get_multiplier(model: nn.Module) -> float:
    """How strongly the adapters act (see `set_multiplier`).

    Raises:
        AdapterError: no adapter is attached, or its layers differ.
    """
    values = {layer.multiplier for layer in require_adapters(model).values()}
    if len(values) > 1:
        raise AdapterError(f"the layers have different multipliers ({sorted(values)}); set one")
    return values.pop()


def set_multiplier(model: nn.Module, multiplier: float) -> None:
    """Scale what the adapters do: 1 is full strength, 0 is exactly the base model.

    A step that was compiled before keeps the value that it was compiled with.

    Raises:
        AdapterError: no adapter is attached.
    """
    for layer in require_adapters(model).values():
        layer.multiplier = float(multiplier)


def replace_modules(model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    """Put each module at its path."""
    if modules:
        model.update_modules(tree_unflatten(list(modules.items())))


def restore_trainable(model: nn.Module) -> None:
    """Unfreeze what was trainable before `attach` and forget the attachment."""
    attachment = getattr(model, "_lora_attachment", None)
    if attachment is None:
        return
    modules = dict(model.named_modules())
    for name in attachment.trainable:
        path, _, leaf = name.rpartition(".")
        if path in modules:
            modules[path].unfreeze(recurse=False, keys=leaf)
    del model._lora_attachment


def _adapted(
    path: str, base: nn.Module, config: LoraConfig, seed: int, decompose: bool
) -> LoRALinear | LoRAEmbedding:
    key = mx.random.key(derive_seed(seed, "lora", path))
    kind = LoRAEmbedding if isinstance(base, EMBEDDING_TYPES) else LoRALinear
    layer = kind(
        base,
        rank=config.rank_of(path),
        scale=config.scale_of(path),
        dropout=config.dropout,
        key=key,
        dtype=getattr(mx, config.dtype),
        dora=config.dora,
    )
    if config.init == "pissa":
        _start_principal(layer, key, decompose)
    layer.train(base.training)
    return layer


def _start_principal(layer: Adapter, key: mx.array, decompose: bool) -> None:
    a, b = mx.zeros_like(layer.lora_a), mx.zeros_like(layer.lora_b)
    if decompose:
        weight = dense_weight(layer.base)
        matrix = weight if isinstance(layer, LoRAEmbedding) else weight.T
        a, b = principal_factors(matrix, layer.rank, layer.scale, key)
    layer.start_from(a, b)
