"""Logits a chunk of rows at a time: for any output layer, on any device.

Chunks run one after the other because each depends on the results of the one before
(`mx.depends`); left to itself MLX may compute all logits first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from mlx_companion.kernels.linear_cross_entropy.heads import OutputLayer, Replayed, random_state
from mlx_companion.kernels.linear_cross_entropy.logits import LogitsLoss


def losses_by_rows(
    hidden: mx.array,
    labels: mx.array,
    layer: OutputLayer,
    loss: LogitsLoss,
    size: int,
    gradient: bool,
) -> mx.array:
    """Losses of rows: (N, D), (N,) int in [0, V) -> (N,) float32 nats.

    Args:
        layer: gets a gradient if it has trained arrays.
        loss: of a chunk of logits.
        size: rows of a chunk.
        gradient: compute the gradient in `hidden` along with the losses, which for a layer that
            is trained is not done; otherwise the logits are computed again for it.
    """
    if layer.trained and len(hidden) <= size:
        # All logits are one chunk, and may as well stay for the backward pass.
        return loss(layer.call(hidden, layer.trained), labels)
    make = _along if gradient and not layer.trained else _again
    return make(layer, loss, size)(hidden, labels, *layer.trained)


def after(values: Sequence[mx.array], earlier: Sequence[mx.array]) -> list[mx.array]:
    """`values`, computed after `earlier`."""
    return list(mx.depends(list(values), list(earlier))) if earlier else list(values)


def _along(layer: OutputLayer, loss: LogitsLoss, size: int) -> Any:
    """(hidden, labels) to losses; the slopes come along, the backward pass only scales them.

    That is exact row by row, since a row's loss depends on that row of `hidden` alone.
    """
    kept: list[mx.array] = []

    @mx.custom_function
    def losses(hidden: mx.array, labels: mx.array) -> mx.array:
        found: list[mx.array] = []
        slopes: list[mx.array] = []
        for own, y in _chunks(hidden, labels, size):
            last = [found[-1], slopes[-1]] if found else []
            value, slope = _chunk(layer, loss, after([own], last)[0], y, mx.ones(len(y)))
            found.append(value)
            slopes.append(slope[0])
        kept.append(mx.concatenate(slopes))
        return mx.concatenate(found)

    @losses.vjp
    def losses_vjp(primals: Any, cotangent: mx.array, output: mx.array) -> Any:
        hidden, labels = primals
        slope = (cotangent[:, None] * kept[-1]).astype(hidden.dtype)
        return slope, mx.zeros_like(labels)

    return losses


def _again(layer: OutputLayer, loss: LogitsLoss, size: int) -> Any:
    """(hidden, labels, *trained) to losses; the backward pass computes the logits again."""
    states: list[mx.array] = []

    @mx.custom_function
    def losses(hidden: mx.array, labels: mx.array, *trained: mx.array) -> mx.array:
        found: list[mx.array] = []
        for own, y in _chunks(hidden, labels, size):
            states.append(random_state())
            own = after([own], found[-1:])[0]
            found.append(loss(layer.call(own, trained), y))
        return mx.concatenate(found)

    @losses.vjp
    def losses_vjp(primals: Any, cotangent: mx.array, output: mx.array) -> Any:
        hidden, labels, *trained = primals
        slopes: list[mx.array] = []
        sums = [mx.zeros(array.shape) for array in trained]
        for i, (own, y) in enumerate(_chunks(hidden, labels, size)):
            own = after([own], [*slopes[-1:], *sums] if slopes else [])[0]
            with Replayed(states[i]):
                scale = cotangent[i * size : (i + 1) * size]
                _, parts = _chunk(layer, loss, own, y, scale, trained)
            slopes.append(parts[0])
            sums = [total + part for total, part in zip(sums, parts[1:], strict=True)]
        sums = [total.astype(array.dtype) for total, array in zip(sums, trained, strict=True)]
        return mx.concatenate(slopes), mx.zeros_like(labels), *sums

    return losses


def _chunk(
    layer: OutputLayer,
    loss: LogitsLoss,
    hidden: mx.array,
    labels: mx.array,
    cotangent: mx.array,
    trained: Sequence[mx.array] = (),
) -> tuple[mx.array, list[mx.array]]:
    """Losses (n,) and their slopes in `hidden` and the trained arrays, from one forward pass."""

    def losses(hidden: mx.array, *trained: mx.array) -> mx.array:
        return loss(layer.call(hidden, trained), labels)

    (value,), slopes = mx.vjp(losses, [hidden, *trained], [cotangent])
    return value, slopes


def _chunks(hidden: mx.array, labels: mx.array, size: int) -> list[tuple[mx.array, mx.array]]:
    starts = range(0, len(hidden), size)
    return [(hidden[i : i + size], labels[i : i + size]) for i in starts]
