"""Fully sharded training: each rank keeps a part of every large matrix, MLX gathers it for use.

    with fully_sharded(model, ranks):
        ...                      # parameters, gradients and optimizer state are shards

The children of every transformer block (attention, MLP) are wrapped in `nn.fully_shard`: their
trained arrays in one wrapper, whose gradients MLX sums and scatters, and their frozen ones, packed
or not, as one string of bytes in another, which no gradient passes. Both are gathered when the
child is called. What lies outside of blocks (embeddings, output head, norms) every rank keeps
whole: they are called as often as the loss likes, and a gather that only some ranks run is a wait
without end.

`nn.fully_shard` cuts along the first axis. Where that axis of some trained array of a child cannot
be divided by the number of ranks, as a rank of 8 by 3, all trained arrays of that child stay whole.

Names of shards carry the wrappers' names (`self_attn.module.fully_sharded.q_proj.lora_a`); files
hold whole arrays under plain names (`plain_name`), so that any number of ranks can read them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from mlx_companion.errors import Stopped, TrainingError
from mlx_companion.models.prefix import without_sharing
from mlx_companion.training.distributed import Arrays, Ranks
from mlx_companion.training.gradients import global_norm
from mlx_companion.training.scatter import scattering

_WRAPPED = re.compile(r"\.(module\.)?fully_sharded\.")
_SHARDED = ".module.fully_sharded."
# Of packed arrays in their string of bytes; matrix products like it.
_ALIGNED = 64


def plain_name(name: str) -> str:
    """A parameter's name in the model that was wrapped."""
    return _WRAPPED.sub(".", name)


def is_sharded(name: str) -> bool:
    """Whether this rank holds a part of the parameter (or optimizer state) of that name."""
    return _SHARDED in name


@contextmanager
def fully_sharded(
    model: nn.Module, ranks: Ranks, enabled: bool = True, restore: bool = True
) -> Iterator[None]:
    """Keep a model in shards inside the block; every rank has all of it again afterwards.

    After an error the others cannot be counted on any more, and the model stays as it is.

    Args:
        model: with the same values on all ranks.
        ranks: `in_step` is set inside.
        enabled: False, or a single process, to do nothing.
        restore: False to leave the frozen arrays out of the model afterwards, for one that would
            not fit.

    Raises:
        TrainingError: the model has no blocks with matrices in them.
    """
    if not enabled or ranks.group is None or ranks.alone:
        yield
        return
    wrapped = [_wrap(parent, key, ranks) for parent, key in _places(model)]
    if not wrapped:
        raise TrainingError(
            f"{type(model).__name__} has no list of blocks to shard; set sharding to none"
        )
    ranks.in_step = True
    try:
        # A batch with a shared prefix would run the blocks twice, and another rank's once.
        with without_sharing(model), scattering(ranks.group):
            yield
    except Stopped:
        _unwrap_all(wrapped, ranks, restore)
        raise
    finally:
        ranks.in_step = False
    _unwrap_all(wrapped, ranks, restore)


def whole(arrays: Arrays, ranks: Ranks) -> Arrays:
    """Shards put together, under plain names; every rank has to call it, and gets them all."""
    if ranks.alone:
        return arrays
    found = {}
    for name, value in arrays.items():
        if _divided(name):
            value = mx.distributed.all_gather(value, group=ranks.group)
            mx.eval(value)
        found[plain_name(name)] = value
    return found


def shards(arrays: Arrays, present: Arrays, ranks: Ranks) -> Arrays:
    """The way back: this rank's shards of whole arrays, under the names that they have here.

    Args:
        arrays: under plain names.
        present: what is there now, for its names.
        ranks: which shards.
    """
    names = {plain_name(name): name for name in present}
    found = {}
    for plain, value in arrays.items():
        name = names.get(plain, plain)
        found[name] = _cut(value, ranks) if _divided(name) else value
    return found


def sharded_norm(gradients: Any, ranks: Ranks) -> mx.array:
    """Global norm of gradients of which some are shards; the same on all ranks."""
    flat: Arrays = dict(tree_flatten(gradients))
    apart = {name: value for name, value in flat.items() if is_sharded(name)}
    if not apart:
        return global_norm(gradients)
    # Only its norm is used: scaling comes with the division by the targets.
    norm = nn.utils.clip_grad_norm_sharded(apart, math.inf, ranks.group)[1]
    rest = {name: value for name, value in flat.items() if not is_sharded(name)}
    return mx.sqrt(mx.square(norm) + mx.square(global_norm(rest))) if rest else norm


def trainable_count(model: nn.Module, ranks: Ranks) -> int:
    """Trained numbers of the whole model."""
    flat: Arrays = dict(tree_flatten(model.trainable_parameters()))
    return sum(v.size * (ranks.size if is_sharded(name) else 1) for name, v in flat.items())


@dataclass(frozen=True)
class _Layout:
    """Where arrays lie in their string of bytes, and where they belong in the model."""

    starts: list[int]
    shapes: list[tuple[int, ...]]
    dtypes: list[mx.Dtype]
    owners: list[tuple[nn.Module, str]]


class _Packed(nn.Module):
    """Frozen arrays of any types as one string of bytes."""

    def __init__(self, owners: Sequence[tuple[nn.Module, str]], multiple: int) -> None:
        super().__init__()
        arrays: list[mx.array] = [module[key] for module, key in owners]
        starts, pieces, at = [], [], 0
        for value in arrays:
            starts.append(at)
            room = -(-value.nbytes // _ALIGNED) * _ALIGNED
            pieces.append(mx.pad(_bytes(value), (0, room - value.nbytes)))
            at += room
        pieces.append(mx.zeros((-at % multiple,), dtype=mx.uint8))
        self.flat = mx.concatenate(pieces)
        self.layout = _Layout(
            starts, [v.shape for v in arrays], [v.dtype for v in arrays], list(owners)
        )
        self.freeze()

    def __call__(self) -> list[mx.array]:
        layout = self.layout
        return [
            self.flat[start : start + math.prod(shape) * dtype.size].view(dtype).reshape(shape)
            for start, shape, dtype in zip(layout.starts, layout.shapes, layout.dtypes, strict=True)
        ]


class _Child(nn.Module):
    """A block's child whose frozen arrays come and go with each call."""

    def __init__(self, child: nn.Module, frozen: list[tuple[nn.Module, str]], ranks: Ranks) -> None:
        super().__init__()
        self.fully_sharded = child
        self.frozen = nn.fully_shard(_Packed(frozen, ranks.size), group=ranks.group)
        self.owners = _Layout([], [], [], frozen)
        self.take_out()

    def __call__(self, x: mx.array, *args: Any, **kwargs: Any) -> Any:
        packed = self.frozen.module
        shard = packed.flat
        # One gather after the other, in the order of the layers, and not all of them at once.
        packed.flat = mx.depends(shard, mx.stop_gradient(x))
        try:
            self.put_back()
            return self.fully_sharded(x, *args, **kwargs)
        finally:
            packed.flat = shard
            self.take_out()

    def put_back(self) -> None:
        for (module, key), value in zip(self.owners.owners, self.frozen(), strict=True):
            module[key] = value

    def take_out(self) -> None:
        for module, key in self.owners.owners:
            module.pop(key, None)


@dataclass(frozen=True)
class _Wrapped:
    parent: nn.Module
    key: str
    child: nn.Module


def _places(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """Children of blocks that hold matrices, as (block, attribute)."""
    return [
        (block, key)
        for block in _blocks(model)
        for key, child in block.items()
        if isinstance(child, nn.Module) and _has_matrix(child)
    ]


def _has_matrix(module: nn.Module) -> bool:
    flat: Arrays = dict(tree_flatten(module.parameters()))
    return any(value.ndim > 1 for value in flat.values())


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The members of every outermost list of modules."""
    for value in module.values():
        if isinstance(value, list) and value and all(isinstance(v, nn.Module) for v in value):
            yield from value
        elif isinstance(value, nn.Module):
            yield from _blocks(value)


def _wrap(parent: nn.Module, key: str, ranks: Ranks) -> _Wrapped:
    child: nn.Module = parent[key]
    trained: Arrays = dict(tree_flatten(child.trainable_parameters()))
    frozen = [
        (module, name)
        for path, module in child.named_modules()
        for name, value in module.items()
        if isinstance(value, mx.array)
        and not name.startswith("_")
        and (f"{path}.{name}" if path else name) not in trained
    ]
    wrapped: nn.Module = _Child(child, frozen, ranks) if frozen else _Bare(child)
    wrapped.train(child.training)
    if trained and all(v.ndim and v.shape[0] % ranks.size == 0 for v in trained.values()):
        wrapped = nn.fully_shard(wrapped, group=ranks.group)
    parent[key] = wrapped
    # At once, so that only one child exists twice at a time.
    mx.eval(wrapped.parameters())
    return _Wrapped(parent, key, child)


class _Bare(nn.Module):
    """A child without frozen arrays, under the same name."""

    def __init__(self, child: nn.Module) -> None:
        super().__init__()
        self.fully_sharded = child

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.fully_sharded(*args, **kwargs)


def _unwrap_all(wrapped: Sequence[_Wrapped], ranks: Ranks, restore: bool) -> None:
    for one in wrapped:
        outer = one.parent[one.key]
        inner = outer
        if isinstance(outer, nn.FullyShardedModule):
            inner = outer.module
            flat: Arrays = dict(tree_flatten(one.child.trainable_parameters()))
            full = [(n, mx.distributed.all_gather(v, group=ranks.group)) for n, v in flat.items()]
            one.child.update(tree_unflatten(full))
        if isinstance(inner, _Child) and restore:
            inner.put_back()
        one.parent[one.key] = one.child
        one.child.train(outer.training)
        mx.eval(one.child.parameters())


def _divided(name: str) -> bool:
    """Whether an array of that name is a shard; the random keys of optimizers are not."""
    return is_sharded(name) and not name.endswith(".key")


def _cut(value: mx.array, ranks: Ranks) -> mx.array:
    rows = value.shape[0] // ranks.size
    return mx.contiguous(value[ranks.rank * rows : (ranks.rank + 1) * rows])


def _bytes(value: mx.array) -> mx.array:
    return mx.contiguous(value).reshape(-1).view(mx.uint8)
