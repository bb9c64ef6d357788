"""Put adapters on a model, take them off, and set how strongly they act.

attach(model, LoraConfig(rank=8), seed=0)
...train...
set_multiplier(model, 0.5)      # half the change, at once
detach(model)                   # the very modules that were there before
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from mlx_companion.errors import AdapterError
from mlx_companion.lora.config import LoraConfig
from mlx_companion.lora.layers import BASE_TYPES, LoRALinear, linear_shape
from mlx_companion.runtime.seeds import derive_seed

_BLOCK = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
_WEIGHTS = ("lora_a", "lora_b")


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
    present = _wrapped(model)
    if present:
        raise AdapterError(
            f"the model carries adapters already ({len(present)}, first: {next(iter(present))}); "
            "detach(model) first"
        )
    targets = match_targets(model, config)
    trainable = tuple(dict(tree_flatten(model.trainable_parameters())))
    layers = {path: _adapted(path, base, config, seed) for path, base in targets.items()}
    model.freeze()
    replace_modules(model, layers)
    for layer in layers.values():
        layer.unfreeze(recurse=False, keys=list(_WEIGHTS))
    model._lora_attachment = Attachment(config, trainable)
    return list(targets)


def detach(model: nn.Module) -> list[str]:
    """Take all adapters off, mlx-lm's own (LoRA and DoRA) included, and unfreeze what was unfrozen.

    The very modules that were there before come back. (mlx-lm's `remove_lora_layers` looks for
    its LoRA layers only and leaves its DoRA layers in place.)

    Returns:
        Paths of the layers restored; empty when there was no adapter.
    """
    bases = _wrapped(model)
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


def adapter_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """The adapted layers by path, sorted by path."""
    found = {path: m for path, m in model.named_modules() if isinstance(m, LoRALinear)}
    return dict(sorted(found.items()))


def require_adapters(model: nn.Module) -> dict[str, LoRALinear]:
    """As `adapter_layers`. Raises AdapterError when there are none."""
    layers = adapter_layers(model)
    if not layers:
        raise AdapterError("the model carries no adapter; attach(model, config) first")
    return layers


def adapter_parameters(model: nn.Module) -> dict[str, mx.array]:
    """Every A and B by its path in the model ("...q_proj.lora_a"), sorted.

    Raises:
        AdapterError: no adapter is attached.
    """
    layers = require_adapters(model)
    return {f"{path}.{name}": layer[name] for path, layer in layers.items() for name in _WEIGHTS}


def load_parameters(model: nn.Module, weights: Mapping[str, mx.array]) -> None:
    """Set every A and B of the model; nothing changes unless all names and shapes fit.

    Raises:
        AdapterError: no adapter, a missing or unknown tensor, or one of another shape.
    """
    current = adapter_parameters(model)
    check_shapes({name: tuple(old.shape) for name, old in current.items()}, weights)
    model.load_weights([(n, w.astype(current[n].dtype)) for n, w in weights.items()], strict=False)


def expected_shapes(model: nn.Module, config: LoraConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that `attach` with this config would make.

    Raises:
        AdapterError: no layer of the model matches the config.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path, base in match_targets(model, config).items():
        out_dims, in_dims = linear_shape(base)
        shapes[f"{path}.lora_a"] = (in_dims, config.rank)
        shapes[f"{path}.lora_b"] = (config.rank, out_dims)
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


def match_targets(model: nn.Module, config: LoraConfig) -> dict[str, nn.Module]:
    """The linear layers that a config names, by path, in the model's order.

    Adapters that are on the model are looked through. Only plain and quantized linear layers
    count; the stacked experts of a mixture-of-experts model are left alone.

    Raises:
        AdapterError: there is none; names the nearest layers.
    """
    linear = _base_linears(model)
    matched = {path: m for path, m in linear.items() if _matches(path, config.targets)}
    if not matched:
        raise AdapterError(
            f"no linear layer matches the targets {', '.join(config.targets)}; "
            f"{_candidates(linear, config.targets)}"
        )
    chosen = {path: m for path, m in matched.items() if path in _last_blocks(matched, config)}
    return dict(sorted(chosen.items(), key=lambda item: _natural(item[0])))


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


def _adapted(path: str, base: nn.Module, config: LoraConfig, seed: int) -> LoRALinear:
    key = mx.random.key(derive_seed(seed, "lora", path))
    layer = LoRALinear(base, rank=config.rank, scale=config.scale, dropout=config.dropout, key=key)
    layer.train(base.training)
    return layer


def _wrapped(model: nn.Module) -> dict[str, nn.Module]:
    """The base of every layer that is wrapped, by our class or one of mlx-lm's, by path."""
    bases = {path: _base_of(module) for path, module in model.named_modules()}
    return {path: base for path, base in bases.items() if base is not None}


def _base_linears(model: nn.Module) -> dict[str, nn.Module]:
    """Every linear layer by the path that it has without adapters."""
    wrapped = _wrapped(model)
    found = dict(wrapped)
    for path, module in model.named_modules():
        if path.rpartition(".")[0] not in wrapped:
            found.setdefault(path, module)
    return {path: module for path, module in found.items() if isinstance(module, BASE_TYPES)}


def _base_of(module: nn.Module) -> nn.Module | None:
    if isinstance(module, LoRALinear):
        return module.base
    if type(module).__module__ in ("mlx_lm.tuner.lora", "mlx_lm.tuner.dora"):
        return module["linear"] if "linear" in module else module["embedding"]
    return None


def _matches(path: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(path, p) or fnmatchcase(path, f"*.{p}") for p in patterns)


def _last_blocks(paths: Mapping[str, nn.Module], config: LoraConfig) -> set[str]:
    """The paths in the last `config.layers` blocks; all of them without that limit."""
    if config.layers is None:
        return set(paths)
    blocks = {path: int(m[1]) for path in paths if (m := _BLOCK.search(path))}
    if not blocks:
        raise AdapterError(f"layers={config.layers} was given, but no target is in a block list")
    first = max(blocks.values()) + 1 - config.layers
    return {path for path, block in blocks.items() if block >= first}


def _candidates(linear: Mapping[str, nn.Module], patterns: tuple[str, ...]) -> str:
    names = sorted({path.rpartition(".")[2] for path in linear})
    if not names:
        return "the model has no linear layer at all"
    near = [n for p in patterns for n in get_close_matches(p.rpartition(".")[2], names)]
    if near:
        return f"did you mean {', '.join(dict.fromkeys(near))}?"
    return f"its linear layers are called {', '.join(names[:12])}"


def _natural(path: str) -> list[tuple[int, int, str]]:
    parts = path.split(".")
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts]
