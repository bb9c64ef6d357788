"""Gradients of a step: summed over micro-batches, weighed by tokens, clipped.

The loss of a step is the mean over all of its target tokens. So gradients of SUMS are added up and
divided once by the number of targets; the mean of micro-batch means, which mlx-lm takes, lets a
token in a short micro-batch count more than one in a long one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map

from mlx_companion.training.losses import Loss


@dataclass
class Accumulated:
    """Sums over micro-batches: loss (nats), target tokens, and gradients of the loss sum."""

    loss: float
    targets: float
    gradients: Any


class GradientEngine:
    """Computes losses and gradients of batches, in parts where that is faster or smaller.

    Args:
        model: its trainable parameters get gradients.
        loss: see `losses.Loss`.
        streams: parts of a batch run side by side on these.
        compiled: fuse with `mx.compile`; every new shape is traced again.
    """

    def __init__(
        self, model: nn.Module, loss: Loss, streams: Sequence[mx.Stream], compiled: bool = False
    ) -> None:
        self.model = model
        self.loss = loss
        self.streams = list(streams)
        self._prepare = getattr(loss, "prepare", lambda batch: batch)
        self._gradient = nn.value_and_grad(model, loss)
        if compiled:
            self._compile()

    def add(
        self,
        batch: Any,
        onto: Accumulated | None = None,
        *,
        pieces: int = 1,
        weight: float | None = None,
    ) -> Accumulated:
        """Add the gradient of a batch to what was accumulated so far.

        Args:
            batch: the micro-batch.
            onto: what it is added to.
            pieces: run it in so many parts one after the other, for less memory; the result is
                the same up to rounding.
            weight: what the batch counts; None for 1, without a multiplication.
        """
        parts = split_rows(batch, pieces * len(self.streams))
        total = onto
        for start in range(0, len(parts), len(self.streams)):
            side_by_side = parts[start : start + len(self.streams)]
            total = self._add_side_by_side(side_by_side, total, weight)
        assert total is not None
        return total

    def evaluate(self, batch: Any) -> tuple[float, float]:
        """(loss sum in nats, target tokens) of a batch, without gradients."""
        results = []
        for stream, part in zip(self.streams, split_rows(batch, len(self.streams)), strict=False):
            with mx.stream(stream):
                results.append(self.loss(self.model, self._prepare(part)))
        mx.eval(results)
        return _sum(loss for loss, _ in results), _sum(count for _, count in results)

    def _add_side_by_side(
        self, parts: Sequence[Any], onto: Accumulated | None, weight: float | None
    ) -> Accumulated:
        gradient = self._gradient if weight is None else self._weighed(weight)
        results = []
        for stream, part in zip(self.streams, parts, strict=False):
            with mx.stream(stream):
                results.append(gradient(self.model, self._prepare(part)))
        gradients = results[0][1] if onto is None else _plus(onto.gradients, results[0][1])
        for _, more in results[1:]:
            gradients = _plus(gradients, more)
        mx.eval([values for values, _ in results], gradients)
        return Accumulated(
            _sum(loss for (loss, _), _ in results) + (onto.loss if onto else 0.0),
            _sum(count for (_, count), _ in results) + (onto.targets if onto else 0.0),
            gradients,
        )

    def _weighed(self, weight: float) -> Any:
        def loss(model: nn.Module, batch: Any) -> tuple[mx.array, ...]:
            # An array, so that the graph is the same whatever the weight is.
            return tuple(mx.array(weight) * value for value in self.loss(model, batch))

        return nn.value_and_grad(self.model, loss)

    def _compile(self) -> None:
        plain = self._gradient
        state = [self.model.state, mx.random.state]
        traced: dict[int, Any] = {}

        def gradient(model: nn.Module, inputs: Any) -> Any:
            # The prefix length shapes the graph, so it may not be an argument of it.
            prefix = inputs.prefix
            if prefix not in traced:
                traced[prefix] = mx.compile(
                    lambda *arrays: plain(model, inputs.__class__(*arrays, prefix)),
                    inputs=state,
                    outputs=state,
                )
            return traced[prefix](*inputs[:-1])

        self._gradient = gradient


def split_rows(batch: Any, parts: int) -> list[Any]:
    """A batch as at most `parts` batches; one that has no method `split_rows` is left whole."""
    cut = getattr(batch, "split_rows", None)
    return [batch] if cut is None or parts <= 1 or len(batch.indices) < 2 else cut(parts)


def global_norm(gradients: Any) -> mx.array:
    """Square root of the sum of all squares, float32."""
    arrays: dict[str, mx.array] = dict(tree_flatten(gradients))
    squares = [mx.square(g.astype(mx.float32)).sum() for g in arrays.values()]
    return mx.sqrt(mx.stack(squares).sum())


def clipped_mean(
    total: Accumulated,
    clip_norm: float | None,
    norm_of: Callable[[Any], mx.array] = global_norm,
) -> tuple[Any, float]:
    """Gradients of the mean loss, scaled down to a norm of at most `clip_norm`.

    Args:
        total: sums.
        clip_norm: None never to scale down.
        norm_of: gives the gradients' global norm.

    Returns:
        The gradients, and their norm before clipping.
    """
    norm = _sum([norm_of(total.gradients)]) / total.targets
    scale = 1 / total.targets
    if clip_norm is not None and norm > clip_norm:
        scale *= clip_norm / norm
    return tree_map(lambda g: g * scale, total.gradients), norm


def _sum(values: Iterable[mx.array]) -> float:
    return sum(float(value) for value in values)


def _plus(left: Any, right: Any) -> Any:
    return tree_map(lambda a, b: a + b, left, right)
