"""Functions of mlx-lm put in place of others for the time of a block, and back again.

mlx-lm's models call attention and activations as functions of the module that they are written in,
their home. Whoever needs other ones there says so for a while:

    with swapped(home_of(model), {"swiglu": ours}):
        model(tokens)

Gradient checkpointing runs layers a second time, after such blocks have ended; `functions_of`
notes what was in place the first time.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import mlx.nn as nn

ATTENTION, SWIGLU = "scaled_dot_product_attention", "swiglu"
_NAMES = (ATTENTION, SWIGLU)


def home_of(model: nn.Module | type[nn.Module]) -> ModuleType | None:
    """The module that a model's class is written in."""
    kind = model if isinstance(model, type) else type(model)
    return sys.modules.get(kind.__module__)


def functions_of(home: ModuleType | None) -> dict[str, Callable[..., Any]]:
    """Those functions that others are put in place of, as they are now."""
    return {name: getattr(home, name) for name in _NAMES if hasattr(home, name)}


@contextmanager
def swapped(home: ModuleType | None, functions: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Put functions into a module inside the block.

    Args:
        home: the module; it has functions of these names.
        functions: by name.
    """
    before = {name: getattr(home, name) for name in functions}
    try:
        for name, function in functions.items():
            setattr(home, name, function)
        yield
    finally:
        for name, function in before.items():
            setattr(home, name, function)
