"""Writing a `.sou` file: in one pass, in constant memory, whole or not at all.

Sizes are known before the first byte is written, digests only after; so header, table and tensor
indices are filled in at the end, before the file gets its name. The same parts give the same
bytes (the same zlib supposed, where text is compressed).

    parts = [text_part(Kind.CONFIG, "config.json", config)]
    write_sou("mine.sou", parts, [TensorSet("model", tensors)])
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO

from mlx_companion.errors import SouError
from mlx_companion.quant.sou_layout import (
    CRITICAL,
    HEADER_SIZE,
    MAX_RATIO,
    MAX_TEXT,
    NONE,
    PAGE,
    SIGNATURE_SIZE,
    ZLIB,
    Kind,
    Section,
    align,
    check_places,
    encode_start,
    encode_table,
)
from mlx_companion.quant.sou_names import TEXT_SUFFIXES, check_section_name
from mlx_companion.quant.sou_rules import check_sections
from mlx_companion.quant.sou_sign import SigningKey
from mlx_companion.quant.sou_tensors import (
    TENSOR_ALIGNMENT,
    TensorEntry,
    decode_index,
    encode_index,
    place,
)
from mlx_companion.runtime.files import atomic_path

Chunks = Callable[[], Iterable[bytes]]

_CHUNK = 1 << 20
_LEVEL = 9
# Below this, a compressed text saves less than a block of the disk.
_WORTH_COMPRESSING = 512


@dataclass(frozen=True)
class Part:
    """A section to be written.

    Attributes:
        kind: what it is.
        name: its name in the file.
        size: bytes that `chunks` gives in all.
        raw_size: bytes after decompression.
        chunks: gives its bytes anew at each call.
        compression: how the bytes are compressed already.
    """

    kind: Kind
    name: str
    size: int
    raw_size: int
    chunks: Chunks
    compression: int = NONE


@dataclass(frozen=True)
class TensorSource:
    """A tensor to be written: what it is, and where its bytes come from."""

    entry: TensorEntry
    chunks: Chunks


@dataclass(frozen=True)
class TensorSet:
    """The tensors of a model, or of something beside it, under one name.

    Attributes:
        name: a-z, 0-9 and `_`; `model` is the language model.
        tensors: in the order in which they will lie.
        alignment: of each tensor in the section, bytes; 16384 where each should be mapped alone.
    """

    name: str
    tensors: Sequence[TensorSource]
    alignment: int = TENSOR_ALIGNMENT


def text_part(kind: Kind, name: str, data: bytes) -> Part:
    """A section of bytes in memory, compressed where that helps."""
    text = name.endswith(TEXT_SUFFIXES) or kind == Kind.SOURCE_HEADER
    if text and _WORTH_COMPRESSING <= len(data) <= MAX_TEXT:
        packed = zlib.compress(data, _LEVEL)
        if len(packed) < 0.9 * len(data) <= 0.9 * MAX_RATIO * len(packed):
            return Part(kind, name, len(packed), len(data), lambda: [packed], ZLIB)
    return Part(kind, name, len(data), len(data), lambda: [data])


def file_part(kind: Kind, name: str, path: Path) -> Part:
    """A section with the content of a file."""
    size = path.stat().st_size
    if name.endswith(TEXT_SUFFIXES) and size <= MAX_TEXT:
        return text_part(kind, name, path.read_bytes())
    return Part(kind, name, size, size, partial(file_chunks, path, 0, size))


def file_chunks(path: Path, offset: int, size: int) -> Iterator[bytes]:
    """A range of a file in pieces of at most 1 MiB."""
    with open(path, "rb") as file:
        file.seek(offset)
        while size:
            piece = file.read(min(size, _CHUNK))
            if not piece:
                raise SouError(f"{path} became shorter while it was read; run it again")
            size -= len(piece)
            yield piece


def write_sou(
    path: str | Path,
    parts: Iterable[Part],
    sets: Iterable[TensorSet] = (),
    key: SigningKey | None = None,
) -> str:
    """Write a file; an older one at `path` is replaced when everything is on the disk.

    Args:
        path: where to.
        parts: sections other than tensors, in any order.
        sets: tensors.
        key: signs the table, and with it everything.

    Returns:
        The digest in its header, hex: it stands for the whole content.

    Raises:
        SouError: parts that cannot be in one file, or that changed while they were read.
        DiskFullError: no space; an older file is untouched.
    """
    parts = sorted(parts, key=lambda part: (part.kind, part.name))
    sets = sorted((_placed(one) for one in sets), key=lambda one: one.name)
    sections, size = _plan(parts, sets, signed=key is not None)
    with atomic_path(path) as temporary, open(temporary, "w+b") as file:
        file.truncate(size)
        sections = _write_all(file, sections, parts, sets)
        start = encode_start(sections, size, key is not None)
        file.seek(0)
        file.write(start)
        if key is not None:
            file.write(key.block(start[32:64]))
    return start[32:64].hex()


def _placed(one: TensorSet) -> TensorSet:
    entries = place((tensor.entry for tensor in one.tensors), one.alignment)
    sources = [replace(t, entry=e) for t, e in zip(one.tensors, entries, strict=True)]
    return replace(one, tensors=sources)


def _index(one: TensorSet) -> bytes:
    return encode_index([tensor.entry for tensor in one.tensors], one.alignment)


def _plan(
    parts: Sequence[Part], sets: Sequence[TensorSet], signed: bool
) -> tuple[list[Section], int]:
    """Every section with its place, still without digests, and the file's size; all checked."""
    empty = bytes(32)
    sections = [
        Section(p.kind, p.name, 0, p.size, p.raw_size, empty, 8, p.compression, _flags(p.kind))
        for p in parts
    ]
    for one in sets:
        size = len(_index(one))
        sections.append(Section(Kind.INDEX, one.name, 0, size, size, empty, 8, NONE, CRITICAL))
    for one in sets:
        size = one.tensors[-1].entry.end if one.tensors else 0
        sections.append(Section(Kind.DATA, one.name, 0, size, size, empty, PAGE, NONE, CRITICAL))
        decode_index(_index(one), size)
    end = HEADER_SIZE + len(encode_table(sections)) + (SIGNATURE_SIZE if signed else 0)
    first = end
    for number, section in enumerate(sections):
        check_section_name(section.name.encode("utf-8"))
        sections[number] = replace(section, offset=align(end, section.alignment))
        end = sections[number].end
    check_places(sections, first, end)
    check_sections(sections)
    return sections, end


def _flags(kind: Kind) -> int:
    return CRITICAL if kind == Kind.CONFIG else 0


def _write_all(
    file: BinaryIO, sections: Sequence[Section], parts: Sequence[Part], sets: Sequence[TensorSet]
) -> list[Section]:
    """Write the content of all sections; returns them with their digests."""
    done = [
        _write_part(file, section, part)
        for section, part in zip(sections[: len(parts)], parts, strict=True)
    ]
    count = len(sets)
    indices, datas = sections[len(parts) : len(parts) + count], sections[len(parts) + count :]
    filled = []
    written = []
    for one, data in zip(sets, datas, strict=True):
        full, digest = _write_tensors(file, data, one)
        filled.append(full)
        written.append(replace(data, sha256=digest))
    for one, section in zip(filled, indices, strict=True):
        content = _index(one)
        file.seek(section.offset)
        file.write(content)
        done.append(replace(section, sha256=hashlib.sha256(content).digest()))
    return done + written


def _write_part(file: BinaryIO, section: Section, part: Part) -> Section:
    found = hashlib.sha256()
    _copy(file, section.offset, part.size, part.chunks(), str(section), found)
    return replace(section, sha256=found.digest())


def _write_tensors(file: BinaryIO, section: Section, one: TensorSet) -> tuple[TensorSet, bytes]:
    whole = hashlib.sha256()
    done, end = [], 0
    for tensor in one.tensors:
        entry = tensor.entry
        own = hashlib.sha256()
        whole.update(bytes(entry.offset - end))
        what = f"tensor '{entry.name}'"
        _copy(file, section.offset + entry.offset, entry.size, tensor.chunks(), what, own, whole)
        done.append(replace(tensor, entry=replace(entry, sha256=own.digest())))
        end = entry.end
    return replace(one, tensors=done), whole.digest()


def _copy(
    file: BinaryIO,
    offset: int,
    size: int,
    chunks: Iterable[bytes],
    what: str,
    *hashes: hashlib._Hash,
) -> None:
    """Write chunks at an offset; what lies before it and was not written is zeros."""
    file.seek(offset)
    written = 0
    for piece in chunks:
        written += len(piece)
        file.write(piece)
        for found in hashes:
            found.update(piece)
    if written != size:
        raise SouError(
            f"{what} has {written} bytes, expected {size}: its source changed; try again"
        )
