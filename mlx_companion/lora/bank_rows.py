"""What a batch with an adapter per row runs on: stacked adapters, and the layer that reads them.

`Stacks` holds the adapters of a batch, per layer in one array; it never changes, so that a batch
ends with the adapters it began with. `ActiveRows` says which row of the running batch takes which.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from mlx_companion.errors import AdapterError
from mlx_companion.kernels.lora_bgmv import lora_bgmv
from mlx_companion.kernels.matrix import of_layer


class LayerUpdate(NamedTuple):
    """What an adapter does to one layer: strength * (x A) B, A (in, r), B (r, out)."""

    a: mx.array
    b: mx.array
    strength: float


@dataclass(frozen=True, eq=False)
class LoadedAdapter:
    """An adapter in memory.

    Attributes:
        name: in its bank.
        version: a number that no other adapter of the bank has or had.
        layers: by path in the model.
    """

    name: str
    version: int
    layers: Mapping[str, LayerUpdate]


class LayerStack(NamedTuple):
    """The adapters that change one layer: A (n, in, r), B (n, r, out), scale (n,), and whose."""

    a: mx.array
    b: mx.array
    scale: mx.array
    slots: dict[str, int]


class Stacks:
    """Some adapters, per layer stacked when the layer first runs; ranks are filled with zeros."""

    def __init__(self, adapters: Sequence[LoadedAdapter]) -> None:
        self.adapters = {adapter.name: adapter for adapter in adapters}
        self._layers: dict[str, LayerStack | None] = {}

    def holds(self, adapters: Sequence[LoadedAdapter]) -> bool:
        """Whether all of them are here, in these very versions."""
        return all(self.adapters.get(adapter.name) is adapter for adapter in adapters)

    def layer(self, path: str, dtype: mx.Dtype) -> LayerStack | None:
        """The stack of a layer, None where no adapter changes it."""
        if path not in self._layers:
            self._layers[path] = self._stacked(path, dtype)
        return self._layers[path]

    def _stacked(self, path: str, dtype: mx.Dtype) -> LayerStack | None:
        found = {n: a.layers[path] for n, a in self.adapters.items() if path in a.layers}
        if not found:
            return None
        rank = max(update.a.shape[1] for update in found.values())
        a = [_filled(update.a, 1, rank) for update in found.values()]
        b = [_filled(update.b, 0, rank) for update in found.values()]
        stack = LayerStack(
            mx.stack(a).astype(dtype),
            mx.stack(b).astype(dtype),
            mx.array([update.strength for update in found.values()]),
            {name: slot for slot, name in enumerate(found)},
        )
        # Otherwise every batch that is built before the first evaluation would stack again.
        mx.eval(stack[:3])
        return stack


class ActiveRows:
    """Which adapter each row of the running batch takes.

    Args:
        stacks: hold all of them.
        names: one per row, None for the base; or one name for all rows, however many.
    """

    def __init__(self, stacks: Stacks, names: Sequence[str | None] | str) -> None:
        self.stacks = stacks
        self.names = names
        self._indices: dict[tuple[int, ...], mx.array] = {}

    def index(self, slots: Mapping[str, int], rows: int) -> mx.array:
        """(B,) int: a layer's slot of each row, -1 where none of its adapters is the row's.

        Raises:
            AdapterError: the batch has another number of rows.
        """
        names = [self.names] * rows if isinstance(self.names, str) else self.names
        if len(names) != rows:
            raise AdapterError(
                f"adapters were given for {len(names)} rows, but the batch has {rows}; "
                "give one name (or None) per row of the tokens"
            )
        values = tuple(-1 if name is None else slots.get(name, -1) for name in names)
        # Nearly all layers share one.
        if values not in self._indices:
            self._indices[values] = mx.array(values, mx.int32)
        return self._indices[values]


Current = ContextVar[ActiveRows | None]


class BankLinear(nn.Module):
    """A linear layer of a model that serves many adapters; the plain layer when no rows are set.

    Args:
        base: the layer, plain or quantized; it is kept, not copied.
        path: its path in the model.
        current: the rows of the running batch.

    Shape: x (B, ..., in) gives (B, ..., out).
    """

    def __init__(self, base: nn.Module, path: str, current: Current) -> None:
        super().__init__()
        self.base = base
        self._path = path
        self._current = current

    def __call__(self, x: mx.array) -> mx.array:
        rows = self._current.get()
        stack = None if rows is None else rows.stacks.layer(self._path, x.dtype)
        if rows is None or stack is None:
            return self.base(x)
        return lora_bgmv(
            x,
            of_layer(self.base),
            stack.a,
            stack.b,
            rows.index(stack.slots, x.shape[0]),
            stack.scale,
            bias=self.base.get("bias"),
        )


def _filled(matrix: mx.array, axis: int, size: int) -> mx.array:
    width = [(0, 0), (0, 0)]
    width[axis] = (0, size - matrix.shape[axis])
    return mx.pad(matrix, width)
