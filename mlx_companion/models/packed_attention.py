"""Causal attention inside of each document of a packed row, and nowhere else.

The row is cut into groups of documents of like length (see `pack_layout`), and each group is one
call of the machine's own attention, or of ours on Linux CPUs. No mask of row by row ever exists.

What is kept for the backward pass is the row's own queries, keys, values and outputs: groups and
weights are made again there. Gradients are written out, because that of a slice is a whole row of
zeros in MLX, one per group.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_companion.models.fast_cpu import attend, attend_gradient, causal_mask
from mlx_companion.models.pack_layout import Group, PackLayout

Mask = str | mx.array


class PackedAttention:
    """Attention over the documents of one layout; made once, used by all layers.

    Args:
        layout: where the documents lie.
    """

    def __init__(self, layout: PackLayout) -> None:
        self.layout = layout
        self._masks: dict[tuple[Any, ...], Mask] = {}
        self._functions: dict[tuple[float, int | None], Callable[..., Any]] = {}
        own = np.arange(layout.shared, layout.tokens)
        self._in_order = np.array_equal(layout.slots, own)
        self._slots = mx.array(layout.slots.astype(np.int32))
        self._places = mx.array(layout.places.astype(np.int32))
        self._real = mx.array(layout.real[:, None, None])

    def __call__(
        self,
        queries: mx.array,
        keys: mx.array,
        values: mx.array,
        scale: float,
        window: int | None = None,
        sinks: mx.array | None = None,
    ) -> mx.array:
        """Attention of every token to those before it in its document, itself included.

        Args:
            queries: (L, H, D), positions encoded.
            keys: (L, K, D), K divides H.
            values: (L, K, E).
            scale: of the scores.
            window: a token sees so many tokens, itself included; None for all.
            sinks: (H,) scores of attending to nothing.

        Returns:
            (L, H, E).
        """
        if sinks is not None:
            return self._forward(queries, keys, values, scale, window, sinks)
        key = (scale, window)
        if key not in self._functions:
            self._functions[key] = self._with_gradient(scale, window)
        result: mx.array = self._functions[key](queries, keys, values)
        return result

    def _with_gradient(self, scale: float, window: int | None) -> Callable[..., Any]:
        @mx.custom_function
        def attention(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
            return self._forward(q, k, v, scale, window)

        @attention.vjp
        def _(primals: Any, cotangent: mx.array, output: mx.array) -> Any:
            return self._backward(primals, cotangent, output, scale, window)

        return attention

    def _forward(
        self,
        q: mx.array,
        k: mx.array,
        v: mx.array,
        scale: float,
        window: int | None,
        sinks: mx.array | None = None,
    ) -> mx.array:
        shared = self.layout.shared
        outputs = []
        slots = self._take(q), self._take(k), self._take(v)
        for group in self.layout.groups:
            own, keys, values = (_cut(x, group) for x in slots)
            keys, values = _behind(k[:shared], keys), _behind(v[:shared], values)
            found = attend(own, keys, values, scale, self._mask(own, keys, window), sinks)
            outputs.append(_joined(found))
        rest = self._put(mx.concatenate(outputs))
        if not shared:
            return rest
        q, k, v = (_alone(x[:shared]) for x in (q, k, v))
        first = attend(q, k, v, scale, self._mask(q, k, window), sinks)
        return mx.concatenate([_joined(first), rest])

    def _backward(
        self,
        primals: tuple[mx.array, mx.array, mx.array],
        cotangent: mx.array,
        output: mx.array,
        scale: float,
        window: int | None,
    ) -> list[mx.array]:
        shared = self.layout.shared
        slots = [*map(self._take, primals), self._take(cotangent, fill=True), self._take(output)]
        before = [x[:shared] for x in primals[1:]]
        gradients: list[list[mx.array]] = [[], [], []]
        seen = [mx.zeros_like(x) for x in before]
        for group in self.layout.groups:
            q, k, v, c, o = (_cut(x, group) for x in slots)
            k, v = (_behind(b, x) for b, x in zip(before, (k, v), strict=True))
            mask = self._mask(q, k, window)
            found = attend_gradient(q, k, v, scale, mask, c, o)
            for whole, x, back in zip(gradients, found, (0, shared, shared), strict=True):
                whole.append(_joined(x[:, :, back:]))
            if shared:
                seen = [s + _onto(x, shared) for s, x in zip(seen, found[1:], strict=True)]
        own = [self._put(mx.concatenate(parts)) for parts in gradients]
        if not shared:
            return own
        q, k, v, c, o = (_alone(x[:shared]) for x in (*primals, cotangent, output))
        found = attend_gradient(q, k, v, scale, self._mask(q, k, window), c, o)
        first = [_joined(x) for x in found]
        first[1:] = [x + s for x, s in zip(first[1:], seen, strict=True)]
        return [mx.concatenate([*pair]) for pair in zip(first, own, strict=True)]

    def _take(self, x: mx.array, fill: bool = False) -> mx.array:
        """(L, H, D) to slots (T, H, D); padding repeats tokens, or is zero."""
        if self._in_order:
            return x[self.layout.shared :]
        taken = x[self._slots]
        return mx.where(self._real, taken, 0) if fill else taken

    def _put(self, x: mx.array) -> mx.array:
        """Slots (T, H, D) back to (L - shared, H, D)."""
        return x if self._in_order else x[self._places]

    def _mask(self, q: mx.array, k: mx.array, window: int | None) -> Mask:
        """For queries (rows, H, L, D) and keys (rows, K, S, D)."""
        key = (q.shape[2], k.shape[2], window, q.dtype)
        if key not in self._masks:
            self._masks[key] = causal_mask(*key)
        return self._masks[key]


def _cut(slots: mx.array, group: Group) -> mx.array:
    """(T, H, D) to the group's (rows, H, width, D)."""
    part = slots[group.start : group.end]
    return part.reshape(group.rows, group.width, *part.shape[1:]).swapaxes(1, 2)


def _alone(x: mx.array) -> mx.array:
    """(P, H, D) to (1, H, P, D)."""
    return x[None].swapaxes(1, 2)


def _joined(x: mx.array) -> mx.array:
    """(rows, H, width, D) to (rows * width, H, D)."""
    rows, heads, width, depth = x.shape
    return x.swapaxes(1, 2).reshape(rows * width, heads, depth)


def _behind(before: mx.array, own: mx.array) -> mx.array:
    """Keys or values of the shared beginning (P, K, D) in front of those of each row."""
    if not before.shape[0]:
        return own
    copies = mx.broadcast_to(_alone(before), (own.shape[0], own.shape[1], *_tail(before)))
    return mx.concatenate([copies, own], axis=2)


def _tail(before: mx.array) -> tuple[int, int]:
    return before.shape[0], before.shape[2]


def _onto(gradient: mx.array, shared: int) -> mx.array:
    """What flows into the shared beginning: (rows, K, P + width, D) to (P, K, D)."""
    return gradient[:, :, :shared].sum(axis=0).swapaxes(0, 1)
