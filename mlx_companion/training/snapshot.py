"""What a checkpoint holds of model and optimizer: taken as named arrays, and put back.

Arrays are whole and have plain names, however many ranks hold parts of them. Moments in 8 bits are
the exception: their blocks are those of each shard, one shard behind the other. As many ranks read
them as they are; for another number they are decoded and encoded again.
"""

from __future__ import annotations

import re
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.optimizers import Optimizer
from mlx.utils import tree_flatten, tree_unflatten

from mlx_companion.errors import CheckpointError
from mlx_companion.training.checkpoint import Arrays, Checkpoint
from mlx_companion.training.distributed import ALONE, Ranks
from mlx_companion.training.low_bit import packed, unpacked
from mlx_companion.training.sharding import is_sharded, plain_name, shards, whole

SHARDS = "shards"
_OF_GROUP = re.compile(r"^states\.\d+\.")
_LEAVES = ("m", "m_scales", "m_biases", "r", "r_max", "v", "key")


def parameters(model: nn.Module) -> Arrays:
    """The trainable parameters by name. Arrays never change in place: this is a snapshot."""
    return dict(tree_flatten(model.trainable_parameters()))


def set_parameters(model: nn.Module, values: Arrays) -> None:
    """Set parameters by name."""
    model.load_weights(list(values.items()), strict=False)


def take(model: nn.Module, optimizer: Optimizer, ranks: Ranks = ALONE) -> dict[str, Arrays]:
    """Trainable parameters and the optimizer's state, shards put together; all ranks call it."""
    return {name: whole(arrays, ranks) for name, arrays in _held(model, optimizer).items()}


def put(found: Checkpoint, model: nn.Module, optimizer: Optimizer, ranks: Ranks = ALONE) -> None:
    """Set what `take` gave, of any number of ranks.

    Args:
        found: a checkpoint.
        model: with the same trainable parameters.
        optimizer: initialized for them.
        ranks: where the model is sharded, which shards are set.

    Raises:
        CheckpointError: names or shapes differ; nothing was changed.
    """
    values = {}
    for group, present in _held(model, optimizer).items():
        arrays = found.arrays.get(group, {})
        if group == "optimizer":
            arrays = _refitted(arrays, present, found.state.get(SHARDS), model, ranks)
        values[group] = shards(arrays, present, ranks)
        stored = {name: value.shape for name, value in values[group].items()}
        if stored != {name: value.shape for name, value in present.items()}:
            raise CheckpointError(
                f"{found.path} does not fit this model and optimizer ({group} differ); "
                "choose another output folder, or start over in this one with resume=False"
            )
    set_parameters(model, values["parameters"])
    optimizer.state = tree_unflatten(list(values["optimizer"].items()))
    mx.eval(model.trainable_parameters(), optimizer.state)


def _held(model: nn.Module, optimizer: Optimizer) -> dict[str, Arrays]:
    return {"parameters": parameters(model), "optimizer": dict(tree_flatten(optimizer.state))}


def shards_of(model: nn.Module, ranks: Ranks) -> dict[str, Any]:
    """What a checkpoint notes of how the model was sharded, as JSON values."""
    names = [plain_name(name) for name in parameters(model) if is_sharded(name)]
    return {SHARDS: {"ranks": ranks.size, "names": names}} if names else {}


def _refitted(
    arrays: Arrays, present: Arrays, noted: Any, model: nn.Module, ranks: Ranks
) -> Arrays:
    """The optimizer's arrays, with 8-bit moments as this number of ranks cuts them."""
    here = {plain_name(name): value for name, value in present.items()}
    bases = {name[:-2] for name in (*arrays, *here) if name.endswith(".r")}
    own = parameters(model)
    now = {plain_name(n): ranks.size if is_sharded(n) else 1 for n in own}
    sizes = {plain_name(n): value.size * now[plain_name(n)] for n, value in own.items()}
    before = dict.fromkeys((noted or {}).get("names", ()), (noted or {}).get("ranks", 1))
    found = dict(arrays)
    for base in bases:
        parameter = _OF_GROUP.sub("", base)
        stored = _state(arrays, base)
        parts = before.get(parameter, 1), now.get(parameter, 1)
        known = parameter in sizes and ("r" in stored or "v" in stored)
        if not known or (parts[0] == parts[1] and stored.keys() == _state(here, base).keys()):
            continue
        for leaf in stored:
            del found[f"{base}.{leaf}"]
        m, v = unpacked(stored, sizes[parameter], parts[0])
        if f"{base}.r" in here:
            values = {"key": here[f"{base}.key"]} | packed(m, v, parts[1])
        else:
            shape = here[f"{base}.m"].shape
            shape = (shape[0] * parts[1], *shape[1:])
            values = {"m": m.reshape(shape), "v": v.reshape(shape)}
        found |= {f"{base}.{leaf}": value for leaf, value in values.items()}
    return found


def _state(arrays: Arrays, base: str) -> Arrays:
    """The state of one parameter."""
    names = {leaf: f"{base}.{leaf}" for leaf in _LEAVES}
    return {leaf: arrays[name] for leaf, name in names.items() if name in arrays}
