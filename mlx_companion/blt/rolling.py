"""Keys and values of past positions, and one or a few new positions through a stack of layers.

`RollingKV` keeps what a stack's attention may still look at. With a window it is a ring: position p
lies in slot p mod C, so that its size does not depend on the length of the text; without one it
grows in steps. Every row of a batch has a position of its own. The order of keys does not matter to
attention (their rotary positions are applied before they are stored), so a ring is never turned.

    kv = RollingKV(block, rows=B, margin=64)
    kv.reserve(positions, count=1)
    view = kv.view(positions, count=1)                # slots and visibility of the new positions
    x, kv.layers = forward_new(layers, x, kv.layers, view)

C is larger than the window by `margin`: that many positions can be taken back, and as many new ones
may be computed at once, before something is overwritten that is still to be seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from mlx_companion.blt.attention import Sight
from mlx_companion.blt.config import BlockConfig
from mlx_companion.blt.fused import MASKED, attend
from mlx_companion.blt.layers import Attention, Block
from mlx_companion.kernels.fast_math import wanted

KeysValues = tuple[mx.array, mx.array]

# Slots that a stack begins with; doubled up to `_STEP`, then that many more at a time. Few sizes
# mean few compiled variants, and each step looks at all slots.
_FIRST = 64
_STEP = 512
# Positions that a table of rotations begins with.
_TURNS = 4096


class View(NamedTuple):
    """Where new positions are stored and what they see.

    Attributes:
        slots: (B, L) int32.
        positions: (B, L) int32.
        bias: (L, C) or (B, 1, L, C), 0 or `MASKED`; the first where all rows see the same.
        turns: see `rotations`.
    """

    slots: mx.array
    positions: mx.array
    bias: mx.array
    turns: mx.array | None


class RollingKV:
    """Keys and values of the positions that a stack of layers may still see.

    Args:
        block: shape of the stack; its window is None or positions.
        rows: B.
        margin: positions that may be taken back, or be computed at once.
        dtype: of keys and values.

    Attributes:
        layers: per layer keys and values, each (B, K, C, W).
    """

    def __init__(
        self, block: BlockConfig, rows: int, margin: int, dtype: mx.Dtype = mx.float32
    ) -> None:
        self.block, self.margin = block, margin
        shape = (rows, block.kv_count, min(_FIRST, self.limit or _FIRST), block.head_width)
        self.layers: list[KeysValues] = [
            (mx.zeros(shape, dtype), mx.zeros(shape, dtype)) for _ in range(block.layers)
        ]

    @property
    def limit(self) -> int | None:
        """C of a ring that has grown to its size; None without a window."""
        return None if self.block.window is None else self.block.window + self.margin

    @property
    def slots(self) -> int:
        """C."""
        return self.layers[0][0].shape[2]

    def reserve(self, positions: np.ndarray, count: int = 1) -> None:
        """Make room for `count` positions behind the `positions` (B,) that rows have."""
        needed = int(positions.max(initial=0)) + count
        size = self.size_for(needed)
        if size > self.slots:
            # Nothing has gone around yet, so that more slots at the end change no other slot.
            more = [(0, 0), (0, 0), (0, size - self.slots), (0, 0)]
            self.layers = [(mx.pad(k, more), mx.pad(v, more)) for k, v in self.layers]

    def size_for(self, needed: int) -> int:
        """C for texts of `needed` positions."""
        size = _FIRST
        while size < needed and size < _STEP:
            size *= 2
        if size < needed:
            size = -(-needed // _STEP) * _STEP
        return size if self.limit is None else min(size, self.limit)

    def view(self, positions: np.ndarray, count: int = 1) -> View:
        """Slots and visibility of `count` new positions behind `positions` (B,)."""
        size, window = self.slots, self.block.window
        new = positions[:, None] + np.arange(count)
        # How many positions ago a slot was written; slots of the future count as very old.
        age = (new[:, :, None] - np.arange(size)) % size
        seen = age <= new[:, :, None]
        if window is not None:
            seen &= age < window
        bias = np.where(seen, np.float32(0), np.float32(MASKED))
        shared = bias[0] if len(bias) == 1 else bias[:, None]
        return View(
            mx.array((new % size).astype(np.int32)),
            mx.array(new.astype(np.int32)),
            mx.array(shared),
            rotations(self.block, int(new.max())),
        )

    def fill(self, layers: Sequence[KeysValues], counts: np.ndarray) -> None:
        """Take over whole texts.

        Args:
            layers: per layer keys and values, each (B, K, N, W), row r filled up to `counts[r]`.
            counts: (B,).
        """
        size = self.size_for(int(counts.max(initial=0)) + 1)
        # Slot s holds the largest position p < count with p mod C = s.
        last = counts[:, None] - 1
        place = last - (last - np.arange(size)) % size
        index = mx.array(np.clip(place, 0, None).astype(np.int32))[:, None, :, None]
        self.layers = [
            (mx.take_along_axis(k, index, axis=2), mx.take_along_axis(v, index, axis=2))
            for k, v in layers
        ]

    def copy(self) -> RollingKV:
        """A second one that starts from the same arrays."""
        return self._with(list(self.layers))

    def take(self, rows: mx.array) -> RollingKV:
        """Some of the rows, in the order given: (K,) int."""
        return self._with([(k[rows], v[rows]) for k, v in self.layers])

    def _with(self, layers: list[KeysValues]) -> RollingKV:
        other = RollingKV.__new__(RollingKV)
        other.block, other.margin, other.layers = self.block, self.margin, layers
        return other


def forward_new(
    layers: Sequence[Block], x: mx.array, kept: Sequence[KeysValues], view: View
) -> tuple[mx.array, list[KeysValues]]:
    """New positions through a stack.

    Args:
        layers: of the stack.
        x: (B, L, D).
        kept: keys and values of the layers.
        view: of the new positions.

    Returns:
        (B, L, D), and `kept` with the new positions in their slots.
    """
    # The same for queries and keys of all layers: looked up once.
    turn = None if view.turns is None else view.turns[view.positions][:, :, None]
    new: list[KeysValues] = []
    for layer, (keys, values) in zip(layers, kept, strict=True):
        attention = layer.self_attn
        q, k, v = _project(attention, layer.input_layernorm(x), turn, view.positions)
        new.append((write(keys, k, view.slots), write(values, v, view.slots)))
        x = layer.feed_forward(x + attention.merge(attend(q, *new[-1], view.bias)))
    return x, new


def forward_texts(
    layers: Sequence[Block], x: mx.array, sight: Sight
) -> tuple[mx.array, list[KeysValues]]:
    """Whole texts through a stack, as the layers themselves do it.

    Args:
        layers: of the stack.
        x: (B, N, D).
        sight: what positions see.

    Returns:
        (B, N, D), and keys and values (B, K, N, W) of each layer.
    """
    kept: list[KeysValues] = []
    for layer in layers:
        q, k, v = layer.self_attn.project(layer.input_layernorm(x))
        kept.append((k, v))
        x = layer.feed_forward(x + layer.self_attn.merge(sight.attend(q, k, v)))
    return x, kept


def write(kept: mx.array, new: mx.array, slots: mx.array) -> mx.array:
    """`kept` (B, K, C, W) with `new` (B, K, L, W) in slots (B, L)."""
    # Both write in place when nothing else refers to `kept`; the first needs no indices.
    if slots.size == 1:
        return mx.slice_update(kept, new, slots.reshape(1), [2])
    index = mx.broadcast_to(slots[:, None, :, None], new.shape)
    return mx.put_along_axis(kept, index, new, axis=2)


def rotations(block: BlockConfig, position: int) -> mx.array | None:
    """Rotary positions as complex numbers, for positions up to at least `position`.

    Returns:
        (T, W / 2) complex64, or None where MLX has a fast kernel for them. On a CPU it has none: it
        computes cosines and sines again in each of 20 operations per layer.
    """
    if not wanted():
        return None
    size = _TURNS
    while size <= position:
        size *= 2
    return _rotations(block.head_width, block.rope_theta, size)


@lru_cache(maxsize=8)
def _rotations(width: int, theta: float, size: int) -> mx.array:
    # The numbers 1 + 0i turned by MLX itself, so that they are the same to the last bit.
    ones = mx.broadcast_to(mx.array([1.0, 0.0] * (width // 2)), (1, 1, size, width))
    turned = mx.fast.rope(ones, width, traditional=True, base=theta, scale=1.0, offset=0)
    table = mx.contiguous(turned[0, 0]).view(mx.complex64)
    mx.eval(table)
    return table


def _project(
    attention: Attention, x: mx.array, turn: mx.array | None, positions: mx.array
) -> tuple[mx.array, ...]:
    """Queries, keys and values of new positions, as `Attention.project` gives them."""
    # Only float32 pairs can be read as complex numbers.
    if turn is None or x.dtype != mx.float32:
        return attention.project(x, positions[:, 0])
    q = _turned(attention.q_proj(x), turn, attention.heads)
    k = _turned(attention.k_proj(x), turn, attention.kv_heads)
    B, L, _ = x.shape
    v = attention.v_proj(x).reshape(B, L, attention.kv_heads, -1).swapaxes(1, 2)
    return q, k, v


def _turned(x: mx.array, turn: mx.array, heads: int) -> mx.array:
    """(B, L, heads * W) turned by (B, L, 1, W / 2) complex: (B, heads, L, W)."""
    B, L, _ = x.shape
    pairs: Any = x.reshape(B, L, heads, -1).view(mx.complex64) * turn
    return pairs.view(mx.float32).swapaxes(1, 2)
