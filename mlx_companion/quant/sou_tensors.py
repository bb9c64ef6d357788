"""The tensor index of a `.sou` file: what lies where in a data section.

A binary table, because it is read before anything can be trusted: one pass, no recursion, one
entry at a time. Tensors lie in the order of the index, each at the first aligned offset after the
one before, like sections in the file. The fields are in `docs/SOU.md`.

    entries = decode_index(index_section, data_size)
    entries["model.norm.weight"].shape
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from mlx_companion.errors import SouError
from mlx_companion.quant.sou_layout import align
from mlx_companion.quant.sou_names import check_tensor_name

HEAD = struct.Struct("<IB3s")
ENTRY = struct.Struct("<HBBIQQ32s")
MAX_INDEX = 64 << 20
MAX_TENSORS = 1 << 18
MAX_RANK = 8
MAX_DIMENSION = (1 << 31) - 1
MAX_ALIGNMENT_LOG2 = 16
TENSOR_ALIGNMENT = 64


@dataclass(frozen=True)
class DType:
    """A number type: its code in the file, safetensors' and MLX's names, bytes, NumPy's view.

    NumPy lacks some of them, so `view` has the same width, and MLX reinterprets it.
    """

    code: int
    name: str
    mlx: str
    size: int
    view: str


DTYPES = (
    DType(0, "BOOL", "bool_", 1, "u1"),
    DType(1, "U8", "uint8", 1, "u1"),
    DType(2, "U16", "uint16", 2, "<u2"),
    DType(3, "U32", "uint32", 4, "<u4"),
    DType(4, "U64", "uint64", 8, "<u8"),
    DType(5, "I8", "int8", 1, "i1"),
    DType(6, "I16", "int16", 2, "<i2"),
    DType(7, "I32", "int32", 4, "<i4"),
    DType(8, "I64", "int64", 8, "<i8"),
    DType(9, "F16", "float16", 2, "<f2"),
    DType(10, "BF16", "bfloat16", 2, "<u2"),
    DType(11, "F32", "float32", 4, "<f4"),
    DType(12, "F64", "float64", 8, "<f8"),
    DType(13, "C64", "complex64", 8, "<c8"),
    # MLX has no 8-bit floats of its own; its loaders give their bytes.
    DType(14, "F8_E4M3", "uint8", 1, "u1"),
    DType(15, "F8_E8M0", "uint8", 1, "u1"),
)
BY_NAME = {dtype.name: dtype for dtype in DTYPES}


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a set.

    Attributes:
        name: as the model names it.
        dtype: number type; packed weights are U32 with their scales and biases beside them.
        shape: outermost dimension first.
        offset: bytes from the start of the data section.
        sha256: of its bytes.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    offset: int = 0
    sha256: bytes = bytes(32)

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.size

    @property
    def end(self) -> int:
        """Offset of the first byte after it."""
        return self.offset + self.size


def place(tensors: Iterable[TensorEntry], alignment: int = TENSOR_ALIGNMENT) -> list[TensorEntry]:
    """The tensors with the offsets that they get in this order."""
    placed, end = [], 0
    for tensor in tensors:
        placed.append(replace(tensor, offset=align(end, alignment)))
        end = placed[-1].end
    return placed


def encode_index(tensors: Sequence[TensorEntry], alignment: int = TENSOR_ALIGNMENT) -> bytes:
    """The index section; its length does not depend on offsets or digests."""
    head = HEAD.pack(len(tensors), alignment.bit_length() - 1, bytes(3))
    return head + b"".join(_encode_entry(tensor) for tensor in tensors)


def _encode_entry(t: TensorEntry) -> bytes:
    name, rank = t.name.encode("utf-8"), len(t.shape)
    fixed = ENTRY.pack(len(name), t.dtype.code, rank, 0, t.offset, t.size, t.sha256)
    return fixed + struct.pack(f"<{rank}Q", *t.shape) + name + bytes(-len(name) % 8)


def decode_index(data: bytes, data_size: int) -> dict[str, TensorEntry]:
    """Parse and check an index section.

    Args:
        data: the section.
        data_size: bytes of the data section that it describes.

    Returns:
        Name to tensor, in the order of the data.

    Raises:
        SouError: cut short, a bad name, type, shape or offset, or a name twice.
    """
    if len(data) < HEAD.size:
        raise SouError("a tensor index is cut short; copy the file again")
    count, log2, reserved = HEAD.unpack_from(data)
    if count > MAX_TENSORS or count * ENTRY.size > len(data):
        raise SouError(f"a tensor index of {len(data)} bytes claims {count} tensors")
    if log2 > MAX_ALIGNMENT_LOG2 or any(reserved):
        raise SouError("a tensor index has an alignment above 2^16 or bytes that must be zero")
    entries: dict[str, TensorEntry] = {}
    at, end = HEAD.size, 0
    for _ in range(count):
        entry, at = _decode_entry(data, at)
        _check_entry(entry, entries, align(end, 1 << log2), data_size)
        entries[entry.name], end = entry, entry.end
    if at != len(data) or end != data_size:
        raise SouError(
            f"a tensor index ends {len(data) - at} bytes early, its data {data_size - end}"
        )
    return entries


def _decode_entry(data: bytes, at: int) -> tuple[TensorEntry, int]:
    if at + ENTRY.size > len(data):
        raise SouError("an entry of a tensor index is cut short")
    length, code, rank, reserved, offset, size, digest = ENTRY.unpack_from(data, at)
    at += ENTRY.size
    start = at + 8 * rank
    end = align(start + length, 8)
    if rank > MAX_RANK or end > len(data):
        raise SouError(f"an entry of a tensor index is cut short or has {rank} dimensions")
    name = check_tensor_name(data[start : start + length])
    if reserved or any(data[start + length : end]):
        raise SouError(f"the index entry of tensor {name!r} has bytes that must be zero")
    if code >= len(DTYPES):
        raise SouError(f"tensor {name!r} is of number type {code}, which is not known")
    shape = struct.unpack_from(f"<{rank}Q", data, at)
    entry = TensorEntry(name, DTYPES[code], shape, offset, digest)
    if max(shape, default=0) > MAX_DIMENSION or entry.size != size:
        raise SouError(f"tensor {name!r} of shape {list(shape)} cannot have {size} bytes")
    return entry, end


def _check_entry(
    entry: TensorEntry, before: dict[str, TensorEntry], expected: int, data_size: int
) -> None:
    if entry.name in before:
        raise SouError(f"the tensor {entry.name!r} comes twice")
    if entry.offset != expected:
        raise SouError(f"tensor {entry.name!r} is at byte {entry.offset}, must be at {expected}")
    if entry.end > data_size:
        raise SouError(f"tensor {entry.name!r} ends at byte {entry.end} of {data_size}")
