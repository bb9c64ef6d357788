"""safetensors files in and out of a `.sou` file, streamed.

A header is kept as it was, so that an unpacked folder holds the same bytes as the packed one and
its content hash, which adapters know their base by, stays the same.

    header, tensors = read_safetensors("model.safetensors")
    write_safetensors(path, sou, "model")
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from mlx_companion.errors import SouError
from mlx_companion.quant.sou_names import check_tensor_name, parse_json
from mlx_companion.quant.sou_reader import SouFile
from mlx_companion.quant.sou_tensors import BY_NAME, MAX_DIMENSION, MAX_RANK, TensorEntry
from mlx_companion.quant.sou_writer import TensorSource, file_chunks

MAX_HEADER = 32 << 20


def read_safetensors(path: Path) -> tuple[bytes, list[TensorSource]]:
    """The header of a file as it is, and its tensors in the order of their bytes.

    Raises:
        SouError: no safetensors file, cut short, or of a number type that MLX does not have.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_HEADER):
            raise SouError(f"{path} is cut short or no safetensors file ({size} bytes)")
        header = file.read(length)
    stored = parse_header(header, str(path))
    end = max((one.end for one in stored), default=0)
    if size != 8 + length + end:
        raise SouError(f"{path} has {size} bytes, expected {8 + length + end}; fetch it again")
    base = 8 + length
    return header, [
        TensorSource(entry, partial(file_chunks, path, base + entry.offset, entry.size))
        for entry in stored
    ]


def parse_header(header: bytes, what: str) -> list[TensorEntry]:
    """The tensors that a safetensors header describes, in the order of their bytes.

    Raises:
        SouError: malformed, with holes or overlaps, or of a number type that MLX does not have.
    """
    value = parse_json(header, what, MAX_HEADER)
    if not isinstance(value, dict):
        raise SouError(f"{what} is no safetensors header")
    found = [_entry(name, one, what) for name, one in value.items() if name != "__metadata__"]
    # An empty tensor begins where the next one does.
    found.sort(key=lambda entry: (entry.offset, entry.size, entry.name))
    end = 0
    for entry in found:
        if entry.offset != end:
            raise SouError(f"{what}: tensor '{entry.name}' begins at {entry.offset}, not at {end}")
        end = entry.end
    return found


def _entry(name: str, value: Any, what: str) -> TensorEntry:
    check_tensor_name(name.encode("utf-8", "surrogatepass"))
    value = value if isinstance(value, dict) else {}
    dtype, shape, place = (value.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or not _is_sizes(shape) or not _is_sizes(place):
        raise SouError(f"{what}: tensor '{name}' has no proper dtype, shape and data_offsets")
    if dtype not in BY_NAME:
        raise SouError(
            f"{what}: tensor '{name}' is of type {dtype}; supported are {', '.join(BY_NAME)}"
        )
    if len(shape) > MAX_RANK or max(shape, default=0) > MAX_DIMENSION or len(place) != 2:
        raise SouError(f"{what}: tensor '{name}' has a shape that MLX cannot hold")
    entry = TensorEntry(name, BY_NAME[dtype], tuple(shape), place[0])
    if entry.end != place[1]:
        raise SouError(f"{what}: tensor '{name}' cannot have {place[1] - place[0]} bytes")
    return entry


def _is_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)


def make_header(entries: Iterable[TensorEntry]) -> bytes:
    """The header of a file with these tensors, one after the other; padded to 8 bytes."""
    head: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    end = 0
    for entry in entries:
        span = [end, end + entry.size]
        shape = list(entry.shape)
        head[entry.name] = {"dtype": entry.dtype.name, "shape": shape, "data_offsets": span}
        end += entry.size
    text = json.dumps(head, ensure_ascii=False, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8)


def write_safetensors(
    path: Path, sou: SouFile, of: str, header: bytes | None = None
) -> list[TensorEntry]:
    """Write tensors of a set as a safetensors file, in constant memory, each one checked.

    Args:
        path: a file that does not exist yet.
        sou: the open file.
        of: the set.
        header: of the file; None makes one for the whole set.

    Returns:
        What was written.

    Raises:
        SouError: the header does not fit the set, or a tensor is damaged.
    """
    index = sou.index(of)
    header = make_header(index.values()) if header is None else header
    entries = parse_header(header, f"the header of {path.name}")
    for entry in entries:
        _check_same(entry, index)
    with open(path, "xb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for entry in entries:
            for piece in sou.tensor_bytes(entry.name, of):
                file.write(piece)
    return entries


def _check_same(entry: TensorEntry, index: Mapping[str, TensorEntry]) -> None:
    other = index.get(entry.name)
    if other is None or (other.dtype, other.shape) != (entry.dtype, entry.shape):
        raise SouError(f"a source header and the index disagree about tensor '{entry.name}'")
