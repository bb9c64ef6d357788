"""Pickles as PyTorch writes them, read without running anything that is in them.

A pickle is a program for a small stack machine that may call any function of the system. This
module has a stack machine of its own that knows the instructions of PyTorch's checkpoints and can
make four things only: plain values, dictionaries, storages and tensors; whatever else a pickle
names is refused by name and never looked up.

    tree = run(path, data)            # dicts and lists with `Tensor`s in them; no numbers yet

`torch_file` reads the numbers.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_companion.errors import WeightsError

# The storages that hold what models are made of: how NumPy reads them, and MLX's type where
# NumPy has none.
STORAGES: dict[str, tuple[str, mx.Dtype | None]] = {
    "torch FloatStorage": ("<f4", None),
    "torch HalfStorage": ("<f2", None),
    "torch BFloat16Storage": ("<u2", mx.bfloat16),
    "torch LongStorage": ("<i8", None),
}

_MAX_DIMENSIONS = 8
_MAX_SIZE = 2**31 - 1
_REBUILD = "torch._utils _rebuild_tensor_v2"
_ORDERED = "collections OrderedDict"
_ALLOWED = {_REBUILD, _ORDERED, *STORAGES}


def run(path: Path, data: bytes) -> Any:
    """The object that a pickle describes.

    Args:
        path: of its file, for messages.
        data: the pickle.

    Returns:
        Plain values, lists, tuples, dicts with plain keys, and `Tensor`s.

    Raises:
        WeightsError: an instruction or a global that is not known, or nonsense.
    """
    return _Machine(path).run(data)


@dataclass(frozen=True)
class _Global:
    """Something that a pickle names; only compared by name."""

    name: str


@dataclass(frozen=True)
class Storage:
    """The numbers of one or several tensors: a file of the archive."""

    key: str
    kind: str
    count: int

    @property
    def itemsize(self) -> int:
        """Bytes of a number."""
        return np.dtype(STORAGES[self.kind][0]).itemsize


@dataclass(frozen=True)
class Tensor:
    """A view of a storage, checked to lie inside it."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Mark:
    """Where the items of a collection begin on the stack."""


class _Machine:
    """Runs a pickle's instructions.

    Args:
        path: of the file, for messages.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        try:
            for code, argument, _ in pickletools.genops(data):
                action = _ACTIONS.get(code.name)
                if action is None:
                    raise self.refused(f"the pickle instruction {code.name}")
                action(self, argument)
            return self.pop()
        except (ValueError, TypeError, LookupError, OverflowError) as error:
            raise WeightsError(f"{self.path} has a damaged data.pkl ({error})") from error

    def refused(self, what: str) -> WeightsError:
        return WeightsError(
            f"{self.path} asks for {what[:200]}, which no checkpoint of weights needs; nothing was "
            "run. If you trust the file, convert it to safetensors where PyTorch is installed"
        )

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        value = self.stack.pop()
        if isinstance(value, _Mark):
            raise ValueError("a mark where a value should be")
        return value

    def pop_to_mark(self) -> list[Any]:
        items = []
        while not isinstance(item := self.stack.pop(), _Mark):
            items.append(item)
        return items[::-1]

    def name(self, name: str) -> None:
        if name not in _ALLOWED:
            raise self.refused(f"'{name.replace(' ', '.')}'")
        self.push(_Global(name))

    def stack_global(self) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise TypeError("a name that is no text")
        self.name(f"{module} {name}")

    def memoize(self, index: int | None) -> None:
        if not self.stack:
            raise IndexError("nothing to remember")
        self.memo[len(self.memo) if index is None else index] = self.stack[-1]

    def call(self) -> None:
        arguments, function = self.pop(), self.pop()
        if function == _Global(_ORDERED) and arguments == ():
            self.push({})
        elif function == _Global(_REBUILD) and isinstance(arguments, tuple):
            self.push(_tensor(*arguments[:4]))
        else:
            raise self.refused("a call of something that is no function")

    def storage(self) -> None:
        match self.pop():
            case ("storage", _Global(name=kind), str(key), str(), int(count)) if kind in STORAGES:
                self.push(Storage(key, kind, count))
            case _:
                raise ValueError("a storage that is described in an unknown way")

    def set_items(self, items: list[Any]) -> None:
        target = self._last(dict)
        if len(items) % 2 or not all(isinstance(key, str | int) for key in items[::2]):
            # Hashing a tuple of tuples of tuples takes forever, so only plain keys.
            raise TypeError("a dictionary with keys that are no names")
        target.update(zip(items[::2], items[1::2], strict=True))

    def append_items(self, items: list[Any]) -> None:
        self._last(list).extend(items)

    def build(self) -> None:
        # A state dict carries version numbers of its modules as an attribute: left out.
        self.pop()
        self._last(dict)

    def _last(self, kind: type) -> Any:
        if not self.stack or not isinstance(self.stack[-1], kind):
            raise TypeError(f"expected a {kind.__name__}")
        return self.stack[-1]


def _tuple_of(count: int) -> Callable[[_Machine, Any], None]:
    def action(machine: _Machine, _: Any) -> None:
        machine.push(tuple([machine.pop() for _ in range(count)][::-1]))

    return action


def _constant(make: Callable[[], Any]) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.push(make())


_ACTIONS: dict[str, Callable[[_Machine, Any], Any]] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda machine, argument: None),
    **dict.fromkeys(
        ("BINUNICODE", "SHORT_BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
        lambda machine, argument: machine.push(argument),
    ),
    **dict.fromkeys(
        ("BINPUT", "LONG_BINPUT", "MEMOIZE"), lambda machine, index: machine.memoize(index)
    ),
    **dict.fromkeys(
        ("BINGET", "LONG_BINGET"), lambda machine, index: machine.push(machine.memo[index])
    ),
    "NONE": _constant(lambda: None),
    "NEWTRUE": _constant(lambda: True),
    "NEWFALSE": _constant(lambda: False),
    "EMPTY_DICT": _constant(dict),
    "EMPTY_LIST": _constant(list),
    "EMPTY_TUPLE": _constant(tuple),
    "MARK": _constant(_Mark),
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_to_mark())),
    "SETITEM": lambda machine, _: machine.set_items([machine.pop(), machine.pop()][::-1]),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_to_mark()),
    "APPEND": lambda machine, _: machine.append_items([machine.pop()]),
    "APPENDS": lambda machine, _: machine.append_items(machine.pop_to_mark()),
    "GLOBAL": lambda machine, name: machine.name(name),
    "STACK_GLOBAL": lambda machine, _: machine.stack_global(),
    "REDUCE": lambda machine, _: machine.call(),
    "BINPERSID": lambda machine, _: machine.storage(),
    "BUILD": lambda machine, _: machine.build(),
}


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> Tensor:
    """A tensor whose every element lies inside its storage, and has a place of its own."""
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, Storage) or not all(type(n) is int and n >= 0 for n in numbers):
        raise ValueError("a tensor that is described in an unknown way")
    if len(shape) != len(strides) or len(shape) > _MAX_DIMENSIONS:
        raise ValueError(f"a tensor of {len(shape)} sizes and {len(strides)} strides")
    if any(n > _MAX_SIZE for n in shape):
        raise ValueError(f"a tensor of shape {shape}")
    count = math.prod(shape)
    # The step of a size of one is never taken.
    strides = tuple(step if n > 1 else 0 for n, step in zip(shape, strides, strict=True))
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    # Strides of zero would make a huge tensor of a small file.
    if count and (last >= storage.count or count > storage.count - offset):
        raise ValueError(f"a tensor of shape {shape} that reaches beyond its storage")
    return Tensor(storage, offset, tuple(shape), strides)
