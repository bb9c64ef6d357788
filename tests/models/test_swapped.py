"""What a thread puts in place is seen by that thread alone, and all is put back in the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from types import ModuleType

import mlx.nn as nn
import pytest

from mlx_companion.models.swapped import ATTENTION, Place, functions_of, swapped


def original(x: int) -> str:
    return f"original {x}"


def named(name: str) -> Callable[[int], str]:
    return lambda x: f"{name} {x}"


@pytest.fixture
def module() -> Iterator[ModuleType]:
    made = ModuleType("with_a_function")
    made.f = original  # type: ignore[attr-defined]
    yield made
    assert made.f is original


class OtherThread:
    """A thread of its own that enters blocks, leaves them and calls the function when told to."""

    def __init__(self, module: ModuleType, name: str = "f") -> None:
        self._place, self._blocks = Place(module, name), ExitStack()
        self._thread = ThreadPoolExecutor(1)

    def enter(self, name: str) -> None:
        block = swapped({self._place: named(name)})
        self._thread.submit(self._blocks.enter_context, block).result()

    def leave(self) -> None:
        self._thread.submit(self._blocks.close).result()

    def call(self) -> str:
        return self._thread.submit(lambda: self._place.module.f(1)).result()


def test_the_first_to_enter_may_be_the_first_to_leave(module: ModuleType) -> None:
    one, two = OtherThread(module), OtherThread(module)
    one.enter("one")
    two.enter("two")
    one.leave()
    assert two.call() == "two 1"
    two.leave()
    assert module.f is original


def test_other_threads_go_on_as_before(module: ModuleType) -> None:
    one, two = OtherThread(module), OtherThread(module)
    one.enter("one")
    assert (one.call(), two.call(), module.f(1)) == ("one 1", "original 1", "original 1")
    two.enter("two")
    assert (one.call(), two.call(), module.f(1)) == ("one 1", "two 1", "original 1")
    two.leave()
    assert (one.call(), two.call()) == ("one 1", "original 1")
    one.leave()


def test_blocks_of_a_thread_nest(module: ModuleType) -> None:
    place = Place(module, "f")
    with swapped({place: named("outer")}):
        with swapped({place: named("inner")}):
            assert module.f(2) == "inner 2"
        assert module.f(2) == "outer 2"


def test_blocks_of_a_thread_may_overlap(module: ModuleType) -> None:
    # As those of two generators do.
    place = Place(module, "f")
    first, second = swapped({place: named("first")}), swapped({place: named("second")})
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert module.f(3) == "second 3"
    second.__exit__(None, None, None)


def test_a_block_that_cannot_be_entered_leaves_nothing(module: ModuleType) -> None:
    places = {Place(module, "f"): named("one"), Place(module, "missing"): named("two")}
    with pytest.raises(AttributeError), swapped(places):
        pass
    assert module.f is original


def test_attributes_of_what_is_in_place_are_found(module: ModuleType) -> None:
    class Bar:
        @staticmethod
        def write(text: str) -> str:
            return f"wrote {text}"

    with swapped({Place(module, "f"): Bar}):
        assert module.f.write("this") == "wrote this"
        assert isinstance(module.f(), Bar)


class Layer(nn.Module):
    """Written in this module, where it finds the function below."""


def scaled_dot_product_attention() -> str:
    return "attention"


def test_what_a_thread_finds_in_place_is_its_own() -> None:
    place = next(iter(functions_of(Layer())))
    assert place.name == ATTENTION
    other, ours = OtherThread(*place), named("ours")
    other.enter("another's")
    assert functions_of(Layer())[place] is as_written
    with swapped({place: ours}):
        assert functions_of(Layer())[place] is ours
    other.leave()
    assert functions_of(Layer())[place] is as_written


as_written = scaled_dot_product_attention
