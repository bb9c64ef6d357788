"""Functions of mlx-lm put in place of others for the time of a block, and back again.

mlx-lm's models call attention and activations as functions of the modules that their layers are
written in. Whoever needs other ones there says so for a while:

    now = functions_of(model)
    with swapped({place: ours for place in now if place.name == SWIGLU}):
        model(tokens)

Gradient checkpointing runs layers a second time, after such blocks have ended; `functions_of`
notes what was in place the first time.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple

import mlx.nn as nn

ATTENTION, SWIGLU = "scaled_dot_product_attention", "swiglu"


class Place(NamedTuple):
    """A module, and the name of a function in it."""

    module: ModuleType
    name: str


Functions = Mapping[Place, Callable[..., Any]]


def functions_of(model: nn.Module) -> dict[Place, Callable[..., Any]]:
    """Attention and activation as a model's layers find them now.

    Args:
        model: a model or a part of one.
    """
    homes = {type(layer).__module__: None for layer in model.modules()}
    modules = [sys.modules[name] for name in homes if name in sys.modules]
    places = [Place(module, name) for module in modules for name in (ATTENTION, SWIGLU)]
    return {p: getattr(p.module, p.name) for p in places if hasattr(p.module, p.name)}


@contextmanager
def swapped(functions: Functions) -> Iterator[None]:
    """Put functions into their places inside the block."""
    before = {place: getattr(place.module, place.name) for place in functions}
    try:
        _put(functions)
        yield
    finally:
        _put(before)


def _put(functions: Functions) -> None:
    for place, function in functions.items():
        setattr(place.module, place.name, function)
