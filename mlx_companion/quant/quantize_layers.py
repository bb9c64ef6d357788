"""The layers of a model that can be packed: found, watched, replaced, and counted.

    layers = packable(model)                  # by path; adapters' bases and hash tables included
    with watched(model) as seen:              # second moments of what goes into each layer
        model(tokens)
    place(model, path, packed_layer(layers[path], grid))
    bits_per_weight(model)

A layer is whatever MLX can pack (`to_quantized`). A twin shares all arrays with its model, so that
a layer of one can be replaced without touching the other, and without copying weights.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from mlx_companion.errors import ModelError
from mlx_companion.quant.levels import Packing
from mlx_companion.quant.quantize_grid import Array, Grid, unpack_codes

_WORD = 32
# What carries an adapter keeps the layer that it adapts under one of these names.
_INNER = (".base", ".linear", ".embedding")
_ADAPTER_NAMES = ("lora_", "start_")
# Read as arrays, not called: packed they would be read wrongly.
_READ_DIRECTLY = ("position_embeddings", "token_type_embeddings")


def packable(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that can be packed, packed ones included, by path in the model's order.

    Models of mlx-lm may say of layers (a router) that they must stay as they are.

    Raises:
        ModelError: there is none.
    """
    wanted = getattr(model, "quant_predicate", None) or (lambda path, layer: True)
    found = {
        path: layer
        for path, layer in model.named_modules()
        if (hasattr(layer, "to_quantized") or is_packed(layer)) and "weight" in layer
        if not path.endswith(_READ_DIRECTLY) and wanted(base_name(path), layer) is not False
    }
    found = dict(sorted(found.items(), key=lambda item: _natural(item[0])))
    if not found:
        raise ModelError("the model has no layer that can be packed")
    return found


def is_packed(layer: nn.Module) -> bool:
    """Whether a layer holds codes and scales instead of numbers."""
    return "scales" in layer and hasattr(layer, "bits") and "weight" in layer


def cast(model: nn.Module, dtype: mx.Dtype) -> None:
    """Give all numbers of a model one type; those of adapters keep theirs."""
    changed = [
        (name, value.astype(dtype))
        for name, value in parameters_of(model).items()
        if mx.issubdtype(value.dtype, mx.floating) and not of_adapter(name)
    ]
    model.update(tree_unflatten(changed))


def parameters_of(model: nn.Module) -> dict[str, mx.array]:
    """All parameters by name."""
    found: Any = tree_flatten(model.parameters())
    return dict(found)


def of_adapter(name: str) -> bool:
    """Whether a parameter belongs to an adapter."""
    return name.rpartition(".")[2].startswith(_ADAPTER_NAMES)


def base_name(path: str) -> str:
    """The path of a layer without what an adapter adds to it, as weight files name it."""
    for inner in _INNER:
        path = path.removesuffix(inner)
    return path


def dense(layer: nn.Module) -> Array:
    """The weights of a layer, packed or not, float32, flattened to two dimensions."""
    if is_packed(layer):
        biases = layer.get("biases")
        found = mx.dequantize(
            layer.weight,
            layer.scales.astype(mx.float32) if layer.mode == "affine" else layer.scales,
            None if biases is None else biases.astype(mx.float32),
            group_size=layer.group_size,
            bits=layer.bits,
            mode=layer.mode,
        )
    else:
        found = layer.weight
    return np.array(found.astype(mx.float32)).reshape(-1, found.shape[-1])


def twin(model: nn.Module) -> nn.Module:
    """A second model on the same arrays."""
    everything: Any = tree_flatten(model)
    arrays = [value for _, value in everything if isinstance(value, mx.array)]
    other: nn.Module = copy.deepcopy(model, {id(array): array for array in arrays})
    return other


def plain_twin(model: nn.Module, dtype: mx.Dtype | None = None) -> nn.Module:
    """A twin whose packed layers are unpacked, for computing where packed products are slow.

    Args:
        model: any model.
        dtype: of the unpacked weights; None for that of the layers' scales.
    """
    other = twin(model)
    for path, layer in packable(other).items():
        if is_packed(layer):
            place(other, path, _unpacked(layer, dtype))
    return other


def _unpacked(layer: Any, dtype: mx.Dtype | None) -> nn.Module:
    from mlx_lm.utils import dequantize_model

    holder = nn.Module()
    holder.layer = layer
    target = dtype or (layer.scales.dtype if layer.mode == "affine" else mx.float16)
    if type(layer).__name__ == "QuantizedHashEmbedding":
        from mlx_companion.blt.hash_table import HashEmbedding

        holder.layer = HashEmbedding(1, 1)
        holder.layer.weight = layer.matrix.dense()
    else:
        holder = dequantize_model(holder)
    found: nn.Module = holder.layer
    found.weight = found.weight.astype(target)
    return found


def place(model: nn.Module, path: str, layer: nn.Module) -> None:
    """Put a layer at its path, frozen as the one before it was."""
    model.update_modules(tree_unflatten([(path, layer)]))
    owner = _owner(model, path)
    if hasattr(owner, "_norms") and hasattr(owner, "_base_squares"):
        # A DoRA layer keeps the norms of its base's rows.
        owner._norms = type(owner._norms)(owner._base_squares())


def packed_layer(layer: nn.Module, grid: Grid, dtype: mx.Dtype) -> nn.Module:
    """A layer with the weights of a grid, packed."""
    if is_packed(layer):
        layer = _unpacked(layer, None)
    size, bits = grid.packing.group_size, grid.packing.bits
    shape = layer.weight.shape[:-1]
    packed: nn.Module = layer.to_quantized(group_size=size, bits=bits)
    for name, value in zip(("weight", "scales", "biases"), grid.pack(dtype), strict=True):
        packed[name] = value.reshape(*shape, -1)
    packed.freeze()
    packed.train(layer.training)
    return packed


def mode_layer(layer: nn.Module, packing: Packing) -> nn.Module:
    """A layer packed by MLX itself, for the forms that have no scales to fit."""
    if is_packed(layer):
        layer = _unpacked(layer, None)
    packed: nn.Module = layer.to_quantized(**packing.to_config())
    packed.freeze()
    packed.train(layer.training)
    return packed


def dense_layer(layer: nn.Module, weight: Array) -> nn.Module:
    """A layer with other weights, of the number type that it has."""
    other = copy.copy(layer)
    other.weight = mx.array(weight.reshape(layer.weight.shape)).astype(layer.weight.dtype)
    return other


def packing_of(layer: nn.Module) -> Packing | None:
    """How a layer is packed; None when it is not."""
    if not is_packed(layer):
        return None
    return Packing(layer.bits, layer.group_size, getattr(layer, "mode", "affine"))


def grid_of(layer: Any) -> Grid | None:
    """The grid of a layer that is packed in affine form; None for another."""
    packing = packing_of(layer)
    if packing is None or packing.mode != "affine":
        return None
    words, scales, biases = (
        np.array(value.astype(mx.float32) if number else value).reshape(-1, value.shape[-1])
        for number, value in enumerate((layer.weight, layer.scales, layer.biases))
    )
    return Grid(unpack_codes(words, packing.bits), scales, biases, packing)


def count_bits(model: nn.Module, number_bits: int = 16) -> tuple[int, int]:
    """Bits of all parameters, adapters left out, and how many numbers they stand for.

    Packed layers count codes, scales and biases; everything else counts `number_bits` per number.
    mlx-lm counts the same way once its model is saved in 16 bits.
    """
    bits = numbers = 0
    for path, layer in model.named_modules():
        own = [name for name in layer if isinstance(layer[name], mx.array) and name[0] != "_"]
        if any(of_adapter(name) for name in own):
            continue
        if is_packed(layer):
            columns = layer.weight.shape[-1] * _WORD // layer.bits
            rows = layer.weight.size // layer.weight.shape[-1]
            packing = packing_of(layer)
            assert packing is not None, path
            numbers += rows * columns
            bits += round(rows * columns * packing.bits_per_weight)
            own = [name for name in own if name not in ("weight", "scales", "biases")]
        size = sum(layer[name].size for name in own)
        numbers, bits = numbers + size, bits + number_bits * size
    return bits, numbers


def bits_per_weight(model: nn.Module) -> float:
    """Mean bits per number over all parameters, scales and biases of groups included."""
    bits, numbers = count_bits(model)
    return bits / numbers


@dataclass
class Seen:
    """What went into the layers of a model.

    Attributes:
        moments: sum of x x^T over inputs, (C, C) float32, by the path that got them first.
        key_of: for each path, under which path its moment is; layers that get the same array
            (q, k and v) share one.
        counts: number of inputs by the same keys.
    """

    moments: dict[str, mx.array] = field(default_factory=dict)
    key_of: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    _held: list[tuple[mx.array, str]] = field(default_factory=list)

    def add(self, path: str, x: mx.array) -> None:
        """Note what a layer is given."""
        for array, key in self._held:
            if array is x:
                self.key_of[path] = key
                return
        # A layer may be called several times, as an output head in chunks is.
        key = self.key_of.get(path, path)
        self._held.append((x, key))
        self.key_of[path] = key
        flat = x.reshape(-1, x.shape[-1]).astype(mx.float32)
        before = self.moments.get(key)
        own = flat.T @ flat
        self.moments[key] = own if before is None else before + own
        self.counts[key] = self.counts.get(key, 0) + flat.shape[0]

    def settle(self) -> None:
        """Compute what was noted, and let go of the inputs."""
        mx.eval(self.moments)
        self._held.clear()

    def moment(self, path: str) -> Array | None:
        """Mean of x x^T of a layer, (C, C) float32; None for one that was given no vectors."""
        key = self.key_of.get(path)
        if key is None:
            return None
        return np.array(self.moments[key]) / max(self.counts[key], 1)


@contextmanager
def watched(model: nn.Module) -> Iterator[Seen]:
    """Note what goes into the layers of a model inside the block; embeddings as output heads too.

    Layers of experts are left out: each of their matrices sees other inputs.
    """
    seen, layers = Seen(), {}
    for path, layer in packable(model).items():
        if type(layer) in (nn.Linear, nn.Embedding):
            layers[path] = (layer, type(layer))
    try:
        for path, (layer, kind) in layers.items():
            layer.__class__ = _watching(kind, path, seen)
        yield seen
    finally:
        for layer, kind in layers.values():
            layer.__class__ = kind


def _watching(kind: type, path: str, seen: Seen) -> type:
    if kind is nn.Embedding:

        class WatchedEmbedding(nn.Embedding):
            def as_linear(self, x: mx.array) -> mx.array:
                seen.add(path, x)
                return super().as_linear(x)

        return WatchedEmbedding

    class WatchedLinear(nn.Linear):
        def __call__(self, x: mx.array) -> mx.array:
            seen.add(path, x)
            return super().__call__(x)

    return WatchedLinear


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The layers of a stack, first to last; empty where there is no one stack."""
    found = getattr(model, "layers", None) or getattr(getattr(model, "model", None), "layers", None)
    return list(found) if isinstance(found, list) else []


def _owner(model: nn.Module, path: str) -> Any:
    owner: Any = model
    for name in path.split(".")[:-1]:
        owner = owner[int(name)] if isinstance(owner, list) else owner[name]
    return owner


def _natural(path: str) -> list[tuple[int, int, str]]:
    """Sorts `layers.2` before `layers.10`."""
    return [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in path.split(".")]
