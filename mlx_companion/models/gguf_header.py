"""The header of a GGUF file: its metadata as plain Python values and what each tensor is.

MLX reads GGUF tensors itself, but it turns kinds of tensor that it cannot keep (Q6_K, bfloat16
and others) into float16 without a word and its metadata arrive as MLX arrays. Reading the header
here, before any weight is touched, gives the tensor kinds, plain values for the tokenizer, and a
clear error for a file that is cut short.

    header = read_header("model.gguf")
    header.metadata["general.architecture"], header.tensors["output.weight"].kind

Source: the GGUF specification, versions 2 and 3 (docs/gguf.md of ggml).
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlx_companion.errors import ModelNotFoundError, WeightsError

MAGIC = b"GGUF"

# Tensor kinds by their number in the file: name, values per block, bytes per block.
KINDS: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    30: ("BF16", 1, 2),
}

_SCALARS: dict[int, np.dtype[Any]] = {
    0: np.dtype("<u1"),
    1: np.dtype("<i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    7: np.dtype("?"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class TensorInfo:
    """One tensor.

    Attributes:
        name: as in the file, e.g. `blk.0.attn_q.weight`.
        kind: e.g. `Q4_1`; a number in words where it is not known here.
        shape: outermost dimension first, as NumPy and MLX have it.
        offset: bytes from the start of the data section.
        size: bytes; None when the kind is not known here.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    offset: int
    size: int | None


@dataclass(frozen=True)
class GGUFHeader:
    """Everything before the data section.

    Attributes:
        metadata: key to int, float, bool, str, a list of str, or a NumPy array of numbers.
        tensors: name to what it is, in the order of the file.
    """

    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]


def is_gguf(path: Path) -> bool:
    """True when the file starts as a GGUF file does."""
    with open(path, "rb") as file:
        return file.read(4) == MAGIC


def read_header(path: str | Path) -> GGUFHeader:
    """Read and check the header of a GGUF file.

    Raises:
        ModelNotFoundError: there is no such file.
        WeightsError: not a GGUF file, a version other than 2 or 3, or cut short.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelNotFoundError(f"no GGUF file at '{path}'; check the path")
    size = path.stat().st_size
    if size < 24:
        raise WeightsError(f"{path} has {size} bytes and is not a GGUF file; fetch it again")
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return _Reader(data, path).header()
        except (struct.error, IndexError) as error:
            raise WeightsError(
                f"{path} is cut short inside its header ({size} bytes); fetch it again"
            ) from error
        except (ValueError, ArithmeticError, RecursionError) as error:
            raise WeightsError(f"{path} has a damaged header ({error}); fetch it again") from error


class _Reader:
    """A position in the mapped file, and the few things that can be read there."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data = data
        self.path = path
        self.at = 0

    def header(self) -> GGUFHeader:
        magic, version, tensor_count, key_count = self.unpack("<4sIQQ")
        if magic != MAGIC:
            raise WeightsError(f"{self.path} is not a GGUF file (it starts with {magic!r})")
        if version not in (2, 3):
            raise WeightsError(
                f"{self.path} is GGUF version {version}; versions 2 and 3 in little-endian order "
                "can be read; convert it anew"
            )
        metadata = {}
        for _ in range(key_count):
            key = self.string()
            metadata[key] = self.value(*self.unpack("<I"))
        tensors = [self.tensor() for _ in range(tensor_count)]
        self.check_extent(tensors, int(metadata.get("general.alignment", 32)))
        return GGUFHeader(metadata, {t.name: t for t in tensors})

    def unpack(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return values

    def take(self, count: int) -> bytes:
        piece = self.data[self.at : self.at + count]
        if len(piece) != count:
            raise IndexError(count)
        self.at += count
        return piece

    def string(self) -> str:
        (length,) = self.unpack("<Q")
        # Some vocabularies hold pieces that are not valid UTF-8; they must not stop the load.
        return self.take(length).decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            item, length = self.unpack("<IQ")
            return self.array(item, length)
        return self.numbers(kind, 1)[0].item()

    def array(self, kind: int, length: int) -> Any:
        if kind in (_STRING, _ARRAY):
            return [self.value(kind) for _ in range(length)]
        return self.numbers(kind, length)

    def numbers(self, kind: int, length: int) -> np.ndarray:
        if kind not in _SCALARS:
            raise ValueError(f"value type {kind} is not known")
        dtype = _SCALARS[kind]
        return np.frombuffer(self.take(dtype.itemsize * length), dtype)

    def tensor(self) -> TensorInfo:
        name = self.string()
        (rank,) = self.unpack("<I")
        shape = tuple(reversed(self.unpack(f"<{rank}Q")))
        number, offset = self.unpack("<IQ")
        if number not in KINDS:
            return TensorInfo(name, f"kind number {number}", shape, offset, None)
        kind, values, size = KINDS[number]
        return TensorInfo(name, kind, shape, offset, math.prod(shape) // values * size)

    def check_extent(self, tensors: list[TensorInfo], alignment: int) -> None:
        start = -(-self.at // alignment) * alignment
        for tensor in tensors:
            end = start + tensor.offset + (tensor.size or 0)
            if end > len(self.data):
                raise WeightsError(
                    f"{self.path} is cut short: tensor '{tensor.name}' ends at byte {end} and the "
                    f"file has {len(self.data)}; fetch it again"
                )
