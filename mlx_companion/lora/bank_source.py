"""Where a bank's adapters come from: a folder, tensors with their config, or an adapted model.

Folders and tensors are put on a stand-in of the model: the same paths, the same weights, nothing
else. So everything that `attach` and `load_adapter` know and check holds here, and the model that
serves is not touched.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from mlx_companion.errors import AdapterError
from mlx_companion.lora.attach import adapter_layers, attach, load_parameters
from mlx_companion.lora.bank_rows import LayerUpdate
from mlx_companion.lora.config import LoraConfig
from mlx_companion.lora.io import CONFIG_FILE, WEIGHTS_FILE, load_adapter
from mlx_companion.lora.layers import LoRALinear, linear_shape

Source = str | Path | Mapping[str, mx.array] | nn.Module


@dataclass(frozen=True)
class Origin:
    """The folder of an adapter, and what tells its files from those written there later."""

    folder: Path
    stamps: tuple[tuple[int, ...] | None, ...]

    @classmethod
    def of(cls, source: Source) -> Origin | None:
        """As it is now; None for what is no folder."""
        if not isinstance(source, str | Path):
            return None
        folder = Path(source)
        return cls(folder, tuple(_stamp(folder / name) for name in (CONFIG_FILE, WEIGHTS_FILE)))


def _stamp(path: Path) -> tuple[int, ...] | None:
    try:
        state = os.stat(path)
    except OSError:
        return None
    # The time of its last change besides that of its content, which a copy may have set back.
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns


def read_source(
    source: Source,
    bases: Mapping[str, nn.Module],
    config: LoraConfig | None,
    base_sha256: str | None,
) -> dict[str, LayerUpdate]:
    """What an adapter does, layer by layer.

    Args:
        source: a folder of `save_adapter`; tensors as `adapter_parameters` gives them; or a model
            that carries an adapter.
        bases: linear and embedding layers of the served model, by path.
        config: of tensors.
        base_sha256: hash of the served model, which a folder's must equal.

    Raises:
        AdapterError: missing, corrupt, for another base, or of a kind that cannot share a batch.
    """
    carrier = source if isinstance(source, nn.Module) else _stand_in(bases)
    if isinstance(source, Mapping) and not isinstance(source, nn.Module):
        if config is None:
            raise AdapterError("tensors alone do not say their strength; give their LoraConfig")
        attach(carrier, config)
        load_parameters(carrier, source)
    elif not isinstance(source, nn.Module):
        load_adapter(source, carrier, base_sha256=base_sha256)
    layers = adapter_layers(carrier)
    if not layers:
        raise AdapterError("the model given carries no adapter; attach(model, config) first")
    updates = {path: _update(path, layer, bases) for path, layer in layers.items()}
    _evaluate(updates)
    for path, update in updates.items():
        if not (mx.isfinite(update.a).all() & mx.isfinite(update.b).all()).item():
            raise AdapterError(f"{path} holds values that are not finite; the adapter is broken")
    # Strength 0 does nothing.
    return {path: update for path, update in updates.items() if update.strength}


def _evaluate(updates: Mapping[str, LayerUpdate]) -> None:
    """Now, because what is still to be computed belongs to the thread that asked for it."""
    try:
        mx.eval([update[:2] for update in updates.values()])
    except RuntimeError as error:
        raise AdapterError(
            f"the adapter cannot be computed here ({error}); if another thread made it, call "
            "mx.eval(model.parameters()) there first"
        ) from error


def _update(path: str, layer: Any, bases: Mapping[str, nn.Module]) -> LayerUpdate:
    if not isinstance(layer, LoRALinear):
        raise AdapterError(
            f"{path} is a {type(layer).__name__}; a batch of many adapters takes linear layers "
            "only. Load this one alone, with load_adapter"
        )
    if getattr(layer, "dora", False):
        raise AdapterError(
            f"{path} has a DoRA magnitude, which scales the base's own output; it cannot share a "
            "batch. Load this one alone, with load_adapter, or fuse it"
        )
    base = bases.get(path)
    if base is None or linear_shape(base) != linear_shape(layer.base):
        has = "no such layer" if base is None else f"one of shape {linear_shape(base)}"
        raise AdapterError(
            f"the adapter was made for another base: it changes {path} {linear_shape(layer.base)}, "
            f"this model has {has}"
        )
    a, b = layer.factors()
    return LayerUpdate(a, b, float(layer.scale * layer.multiplier))


def _stand_in(bases: Mapping[str, nn.Module]) -> nn.Module:
    tree: Any = _as_module(tree_unflatten([(path, _twin(base)) for path, base in bases.items()]))
    return tree


def _twin(layer: nn.Module) -> nn.Module:
    """The same weights in a layer of its own, which may be frozen without freezing the other."""
    twin = copy(layer)
    twin._no_grad = set(layer._no_grad)
    return twin


def _as_module(tree: Any) -> Any:
    if isinstance(tree, nn.Module):
        return tree
    if isinstance(tree, list):
        return [_as_module(part) for part in tree]
    module = nn.Module()
    for name, part in tree.items():
        module[name] = _as_module(part)
    return module
