"""What a checkpoint holds of model and optimizer: taken as named arrays, and put back."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
from mlx.optimizers import Optimizer
from mlx.utils import tree_flatten, tree_unflatten

from mlx_companion.errors import CheckpointError
from mlx_companion.training.checkpoint import Arrays, Checkpoint


def parameters(model: nn.Module) -> Arrays:
    """The trainable parameters by name. Arrays never change in place: this is a snapshot."""
    return dict(tree_flatten(model.trainable_parameters()))


def set_parameters(model: nn.Module, values: Arrays) -> None:
    """Set parameters by name."""
    model.load_weights(list(values.items()), strict=False)


def take(model: nn.Module, optimizer: Optimizer) -> dict[str, Arrays]:
    """Trainable parameters and the optimizer's state."""
    return {"parameters": parameters(model), "optimizer": dict(tree_flatten(optimizer.state))}


def put(found: Checkpoint, model: nn.Module, optimizer: Optimizer) -> None:
    """Set what `take` gave.

    Args:
        found: a checkpoint.
        model: with the same trainable parameters.
        optimizer: initialized for them.

    Raises:
        CheckpointError: names or shapes differ; nothing was changed.
    """
    for group, present in take(model, optimizer).items():
        stored = {name: value.shape for name, value in found.arrays.get(group, {}).items()}
        if stored != {name: value.shape for name, value in present.items()}:
            raise CheckpointError(
                f"{found.path} does not fit this model and optimizer ({group} differ); "
                "choose another output folder, or start over in this one with resume=False"
            )
    set_parameters(model, found.arrays["parameters"])
    optimizer.state = tree_unflatten(list(found.arrays["optimizer"].items()))
    mx.eval(model.trainable_parameters(), optimizer.state)
