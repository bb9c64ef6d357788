"""Gradient checkpointing: layers computed again in the backward pass instead of kept in memory.

    with recompute_layers(model):
        loss, gradients = nn.value_and_grad(model, loss_function)(model, batch)

mlx-lm patches the layer's class, for every model in the process and for good; here each layer of
this one model gets a class of its own and its old one back at the end. Random numbers drawn in a
layer (dropout) are drawn again alike, which plain `mx.checkpoint` does not do: its gradients
belong to another dropout mask than its loss.

Reference: Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost".
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_companion.errors import TrainingError
from mlx_companion.models.swapped import functions_of, swapped
from mlx_companion.training.rng import get_random_state, set_random_state


@contextmanager
def recompute_layers(model: nn.Module, enabled: bool = True) -> Iterator[None]:
    """Checkpoint every transformer layer of a model inside the block.

    Args:
        model: an mlx-lm model, which lists its blocks as `model.layers`.
        enabled: False to do nothing.

    Raises:
        TrainingError: the model has no such list.
    """
    layers = _layers(model) if enabled else []
    classes = [type(layer) for layer in layers]
    try:
        for layer in layers:
            layer.__class__ = _checkpointed(type(layer))
        yield
    finally:
        for layer, original in zip(layers, classes, strict=True):
            layer.__class__ = original


def _layers(model: nn.Module) -> list[nn.Module]:
    layers = getattr(model, "layers", None)
    if not isinstance(layers, list) or not layers:
        raise TrainingError(
            f"{type(model).__name__} has no list of layers to checkpoint; "
            "set gradient_checkpointing to false"
        )
    return layers


def _checkpointed(original: type[nn.Module]) -> type[nn.Module]:
    forward = original.__call__

    def call(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not layer.training:
            return forward(layer, *args, **kwargs)
        start = get_random_state()
        functions = functions_of(layer)
        runs = 0

        def run(parameters: dict[str, Any], *args: Any) -> Any:
            nonlocal runs
            runs += 1
            now = get_random_state()
            set_random_state(start)
            kept = layer.trainable_parameters()
            layer.update(parameters)
            try:
                # The backward pass runs after blocks that put other functions there have ended.
                with swapped(functions):
                    return forward(layer, *args, **kwargs)
            finally:
                layer.update(kept)
                # The first run draws for real; the later ones only repeat it.
                if runs > 1:
                    set_random_state(now)

        # Only arguments get gradients, so the parameters are one.
        return mx.checkpoint(run)(layer.trainable_parameters(), *args)

    return type(f"Checkpointed{original.__name__}", (original,), {"__call__": call})
