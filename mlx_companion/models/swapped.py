"""Functions of mlx-lm put in place of others for the time of a block, and back again.

mlx-lm's models call attention and activations as functions of the modules that their layers are
written in. Whoever needs other ones there says so for a while:

    now = functions_of(model)
    with swapped({place: ours for place in now if place.name == SWIGLU}):
        model(tokens)

The thread that entered the block finds them there, and no other: models of one family run on
several threads at once, and what one of them needs would break the other. So while any thread has
something in a place, there stands a `_Switch` that calls what the calling thread has put there.

Gradient checkpointing runs layers a second time, after such blocks have ended; `functions_of`
notes what was in place the first time.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any, NamedTuple

import mlx.nn as nn

ATTENTION, SWIGLU = "scaled_dot_product_attention", "swiglu"

# Held while a switch is put into a place or taken out of it.
_changing = threading.Lock()


class Place(NamedTuple):
    """A module, and the name of a function in it."""

    module: ModuleType
    name: str


Functions = Mapping[Place, Callable[..., Any]]


def functions_of(model: nn.Module) -> dict[Place, Callable[..., Any]]:
    """Attention and activation as a model's layers find them now, on this thread.

    Args:
        model: a model or a part of one.
    """
    homes = {type(layer).__module__: None for layer in model.modules()}
    modules = [sys.modules[name] for name in homes if name in sys.modules]
    places = [Place(module, name) for module in modules for name in (ATTENTION, SWIGLU)]
    found = {p: getattr(p.module, p.name) for p in places if hasattr(p.module, p.name)}
    return {p: f.here if isinstance(f, _Switch) else f for p, f in found.items()}


@contextmanager
def swapped(functions: Functions) -> Iterator[None]:
    """Put functions into their places inside the block, for this thread.

    Raises:
        AttributeError: there is nothing in such a place.
    """
    with ExitStack() as stack:
        for place, function in functions.items():
            stack.enter_context(_put(place, function))
        yield


class _Switch:
    """Stands in a place while any thread has put something there.

    Args:
        original: what was there before, and is for all other threads.
    """

    def __init__(self, original: Callable[..., Any]) -> None:
        self.original = original
        self.users = 0
        self._own = threading.local()

    @property
    def stack(self) -> list[Callable[..., Any]]:
        """What this thread has put there, the latest last."""
        found: list[Callable[..., Any]] = self._own.__dict__.setdefault("stack", [])
        return found

    @property
    def here(self) -> Callable[..., Any]:
        """What this thread finds there."""
        stack = self.stack
        return stack[-1] if stack else self.original

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.here(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.here, name)


@contextmanager
def _put(place: Place, function: Callable[..., Any]) -> Iterator[None]:
    with _changing:
        switch = getattr(*place)
        if not isinstance(switch, _Switch):
            switch = _Switch(switch)
            setattr(*place, switch)
        switch.users += 1
    stack = switch.stack
    stack.append(function)
    try:
        yield
    finally:
        # Not simply the last one: blocks of two generators may overlap.
        del stack[max(at for at, one in enumerate(stack) if one is function)]
        with _changing:
            switch.users -= 1
            if not switch.users and getattr(*place) is switch:
                setattr(*place, switch.original)
