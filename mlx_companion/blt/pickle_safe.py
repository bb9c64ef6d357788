"""PyTorch `.pth` files without PyTorch, and without running anything that is in them.

Such a file is a zip archive: a pickle (`data.pkl`) that describes tensors, and their numbers, one
file per storage. A pickle is a program for a small stack machine that may call any function of the
system. This module has a stack machine of its own that knows the instructions PyTorch writes and
can make four things only: plain values, dictionaries, storages and tensors; whatever else a pickle
names is refused by name and never looked up.

    weights = load_pth("consolidated.pth")            # {"layers.0.attention.wq.weight": ...}

Files from before PyTorch 1.6 are bare pickles and are refused.
"""

from __future__ import annotations

import math
import pickletools
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_companion.errors import ModelNotFoundError, WeightsError

# Descriptions of models of a thousand layers stay under a megabyte.
_PICKLE_LIMIT = 64_000_000
_MAX_DIMENSIONS = 8
_MAX_SIZE = 2**31 - 1
# Tied weights share a storage; many tensors on one storage would need more memory than there is.
_MAX_SHARING = 4
_REBUILD = "torch._utils _rebuild_tensor_v2"
_ORDERED = "collections OrderedDict"
# The storages that hold what models are made of: how NumPy reads them, and MLX's type where
# NumPy has none.
_STORAGES: dict[str, tuple[str, mx.Dtype | None]] = {
    "torch FloatStorage": ("<f4", None),
    "torch HalfStorage": ("<f2", None),
    "torch BFloat16Storage": ("<u2", mx.bfloat16),
    "torch LongStorage": ("<i8", None),
}
_ALLOWED = {_REBUILD, _ORDERED, *_STORAGES}


def load_pth(path: str | Path) -> dict[str, mx.array]:
    """The tensors of a PyTorch checkpoint.

    Args:
        path: a file that `torch.save` wrote: a state dict, or a dict with one under "model" or
            "state_dict".

    Returns:
        Name -> array in the file's number type (float32, float16, bfloat16 or int64).

    Raises:
        ModelNotFoundError: there is no such file.
        WeightsError: it is damaged, of the old format, holds no state dict, or names anything but
            tensors; nothing of it was run.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            return _Reader(path, archive).state_dict()
    except FileNotFoundError as error:
        raise ModelNotFoundError(f"there is no file {path}") from error
    except zipfile.BadZipFile as error:
        raise _not_a_zip(path, error) from error
    except (OSError, EOFError, zlib.error, NotImplementedError, RuntimeError) as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error


@dataclass(frozen=True)
class _Global:
    """Something that a pickle names; only compared by name."""

    name: str


@dataclass(frozen=True)
class _Storage:
    """The numbers of one or several tensors: a file of the archive."""

    key: str
    kind: str
    count: int

    @property
    def itemsize(self) -> int:
        """Bytes of a number."""
        return np.dtype(_STORAGES[self.kind][0]).itemsize


@dataclass(frozen=True)
class _Tensor:
    """A view of a storage, checked to lie inside it."""

    storage: _Storage
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
        """The object that the pickle describes.

        Raises:
            WeightsError: an instruction or a global that is not known, or nonsense.
        """
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
            case ("storage", _Global(name=kind), str(key), str(), int(count)) if kind in _STORAGES:
                self.push(_Storage(key, kind, count))
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


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> _Tensor:
    """A tensor whose every element lies inside its storage, and has a place of its own."""
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, _Storage) or not all(type(n) is int and n >= 0 for n in numbers):
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
    return _Tensor(storage, offset, tuple(shape), strides)


class _Reader:
    """Reads the parts of an open archive."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self.path, self.archive = path, archive
        described = [n for n in archive.namelist() if n.endswith("/data.pkl") or n == "data.pkl"]
        if len(described) != 1:
            raise WeightsError(
                f"{path} is a zip archive without a data.pkl; expected a file of torch.save"
            )
        self.root = described[0].removesuffix("data.pkl")

    def state_dict(self) -> dict[str, mx.array]:
        self._check_byte_order()
        tree = _Machine(self.path).run(self._bytes("data.pkl", _PICKLE_LIMIT))
        for key in ("model", "state_dict"):
            if isinstance(tree, dict) and isinstance(tree.get(key), dict):
                tree = tree[key]
                break
        if not isinstance(tree, dict) or not any(isinstance(v, _Tensor) for v in tree.values()):
            raise WeightsError(f"{self.path} holds no dictionary of tensors; expected a state dict")
        tensors = {str(k): v for k, v in tree.items() if isinstance(v, _Tensor)}
        self._check_sharing(tensors.values())
        return {name: self._array(tensor) for name, tensor in tensors.items()}

    def _check_sharing(self, tensors: Iterable[_Tensor]) -> None:
        total = sum(math.prod(tensor.shape) * tensor.storage.itemsize for tensor in tensors)
        size = self.path.stat().st_size
        if total > _MAX_SHARING * size:
            raise WeightsError(
                f"{self.path} has {size} bytes and describes tensors of {total}; nothing was read"
            )

    def _array(self, tensor: _Tensor) -> mx.array:
        kind, view = _STORAGES[tensor.storage.kind]
        name = f"data/{tensor.storage.key}"
        size = tensor.storage.count * tensor.storage.itemsize
        raw = self._bytes(name, size)
        if len(raw) != size:
            raise WeightsError(
                f"{self.path}: the storage '{name}' has {len(raw)} bytes, expected {size}; "
                "fetch the file again"
            )
        array = mx.array(_strided(np.frombuffer(raw, kind), tensor))
        return array if view is None else array.view(view)

    def _bytes(self, name: str, limit: int) -> bytes:
        """A file of the archive, its checksum compared, if it is no larger than `limit`."""
        try:
            entry = self.archive.getinfo(self.root + name)
        except KeyError:
            raise WeightsError(f"{self.path} lacks '{name}'; fetch the file again") from None
        # Stored as it is: a small archive cannot unpack into a huge one.
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > limit:
            raise WeightsError(
                f"{self.path}: '{name}' is compressed or has {entry.file_size} bytes, more than "
                f"the {limit} expected"
            )
        return self.archive.read(entry)

    def _check_byte_order(self) -> None:
        if self.root + "byteorder" in self.archive.namelist():
            order = self._bytes("byteorder", 16)
            if order != b"little":
                raise WeightsError(f"{self.path} has byte order {order!r}; expected b'little'")


def _strided(values: np.ndarray, tensor: _Tensor) -> np.ndarray:
    if not math.prod(tensor.shape):
        return np.zeros(tensor.shape, values.dtype)
    view = np.lib.stride_tricks.as_strided(
        values[tensor.offset :],
        tensor.shape,
        [step * values.itemsize for step in tensor.strides],
        writeable=False,
    )
    # NumPy gives a scalar's copy one dimension.
    return np.ascontiguousarray(view).reshape(tensor.shape)


def _not_a_zip(path: Path, error: Exception) -> WeightsError:
    with path.open("rb") as file:
        start = file.read(2)
    if start[:1] == b"\x80":
        return WeightsError(
            f"{path} is a bare pickle, the format of PyTorch before 1.6, which is not read here; "
            "save it again with a newer PyTorch, or as safetensors"
        )
    problem = "is cut short or damaged" if start == b"PK" else "is no file of torch.save"
    return WeightsError(f"{path} {problem} ({error}); fetch it again")
