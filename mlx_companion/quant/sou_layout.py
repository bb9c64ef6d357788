"""The bytes of a `.sou` file before its sections: header, section table, signature block.

`docs/SOU.md` is the specification; the names of the fields are the same there. Everything is
little-endian. Sections lie in the order of the table, each at the first aligned offset after the
one before, and the file ends where the last one ends: overlaps, holes and appended bytes cannot
be expressed. These functions work on bytes alone; `sou_reader` and `sou_writer` own the files.

    header = decode_header(data[:64], file_size)
    sections = decode_table(table, header.count)
    check_places(sections, header.first, file_size)
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from mlx_companion.errors import SouError
from mlx_companion.quant.sou_names import check_section_name

MAGIC = b"\x89SOU\r\n\x1a\n"
MAJOR, MINOR = 1, 0

HEADER = struct.Struct("<8sHHIQII")
DIGEST_SIZE = 32
HEADER_SIZE = HEADER.size + DIGEST_SIZE
ENTRY = struct.Struct("<HHBBHQQQ32s")
SIGNATURE = struct.Struct("<II32s64s")
SIGNATURE_SIZE = SIGNATURE.size + DIGEST_SIZE

SIGNED = 1
_MUST_UNDERSTAND = 0xFFFF0000
CRITICAL = 1
ENTRY_MUST_UNDERSTAND = 0xFF00
ED25519 = 1

NONE, ZLIB = 0, 1

MAX_SECTIONS = 4096
MAX_TABLE = 1 << 21
MAX_ALIGNMENT_LOG2 = 16
PAGE = 1 << 14
MAX_TEXT = 64 << 20
MAX_TEXTS = 1 << 30
MAX_RATIO = 100


class Kind(IntEnum):
    """What a section holds."""

    CONFIG = 1
    INDEX = 2
    DATA = 3
    TOKENIZER = 4
    GENERATION = 5
    PROFILE = 6
    ADAPTER = 7
    MODULES = 8
    RULES = 9
    RETRIEVAL = 10
    ACCESS = 11
    PROVENANCE = 12
    FILE = 13
    SOURCE_HEADER = 14


# Kinds of which there is at most one, by the only name that it may have.
SINGLE = {
    Kind.CONFIG: "config.json",
    Kind.GENERATION: "generation_config.json",
    Kind.MODULES: "modules.json",
    Kind.RETRIEVAL: "retrieval.json",
    Kind.ACCESS: "access.json",
    Kind.PROVENANCE: "provenance.json",
}
TENSOR_KINDS = (Kind.INDEX, Kind.DATA)


@dataclass(frozen=True)
class Section:
    """One entry of the section table.

    Attributes:
        kind: a `Kind`, or the number of one that this version does not know.
        name: file or tensor set; see `sou_names`.
        offset: bytes from the start of the file.
        size: bytes in the file.
        raw_size: bytes after decompression.
        sha256: of the bytes in the file.
        alignment: of the offset, bytes, a power of two.
        compression: `NONE` or `ZLIB`.
        flags: bit 0 `CRITICAL`.
    """

    kind: int
    name: str
    offset: int
    size: int
    raw_size: int
    sha256: bytes
    alignment: int = 8
    compression: int = NONE
    flags: int = 0

    @property
    def end(self) -> int:
        """The offset of the first byte after it."""
        return self.offset + self.size

    @property
    def kind_name(self) -> str:
        """The kind in words; a number where it is not known."""
        return Kind(self.kind).name.lower() if self.known else f"kind {self.kind}"

    @property
    def known(self) -> bool:
        """True when this version knows the kind."""
        return self.kind in _KNOWN

    def __str__(self) -> str:
        return f"section '{self.name}' ({self.kind_name})"


_KNOWN = {int(kind) for kind in Kind}


@dataclass(frozen=True)
class Header:
    """The first 64 bytes of the file.

    Attributes:
        major, minor: version of the format.
        flags: bit 0 `SIGNED`.
        file_size: bytes of the whole file.
        count: entries of the table.
        table_size: bytes of the table.
        digest: SHA-256 of the 32 bytes before it and the table.
    """

    major: int
    minor: int
    flags: int
    file_size: int
    count: int
    table_size: int
    digest: bytes

    @property
    def signed(self) -> bool:
        """True when a signature block follows the table."""
        return bool(self.flags & SIGNED)

    @property
    def first(self) -> int:
        """Offset at which sections may begin."""
        return HEADER_SIZE + self.table_size + (SIGNATURE_SIZE if self.signed else 0)


@dataclass(frozen=True)
class Signature:
    """An ed25519 signature over the digest in the header, and the key that it claims."""

    public_key: bytes
    signature: bytes


def align(offset: int, alignment: int) -> int:
    """The first multiple of `alignment` that is not below `offset`."""
    return -(-offset // alignment) * alignment


def encode_start(sections: Sequence[Section], file_size: int, signed: bool) -> bytes:
    """Header and table of a file."""
    table = encode_table(sections)
    flags = SIGNED if signed else 0
    start = HEADER.pack(MAGIC, MAJOR, MINOR, flags, file_size, len(sections), len(table))
    return start + hashlib.sha256(start + table).digest() + table


def encode_table(sections: Sequence[Section]) -> bytes:
    """The table alone; its length does not depend on sizes, offsets or digests."""
    return b"".join(_encode_entry(section) for section in sections)


def _encode_entry(s: Section) -> bytes:
    name = s.name.encode("utf-8")
    fixed = ENTRY.pack(
        s.kind,
        s.flags,
        s.compression,
        s.alignment.bit_length() - 1,
        len(name),
        s.offset,
        s.size,
        s.raw_size,
        s.sha256,
    )
    return fixed + name + bytes(-len(name) % 8)


def encode_signature(public_key: bytes, signature: bytes) -> bytes:
    """The signature block; its own checksum finds damage where no signature can be checked."""
    block = SIGNATURE.pack(ED25519, 0, public_key, signature)
    return block + hashlib.sha256(block).digest()


def decode_header(data: bytes, file_size: int) -> Header:
    """Parse the first 64 bytes.

    Args:
        data: those bytes, fewer when the file is shorter.
        file_size: bytes that the file has.

    Raises:
        SouError: no `.sou` file, a newer one, or cut short.
    """
    if data[: len(MAGIC)] != MAGIC:
        raise SouError(
            f"not a .sou file (it starts with {data[:8]!r}); make one with `mlx-companion sou pack`"
        )
    if len(data) < HEADER_SIZE:
        raise SouError(f"cut short inside its header ({file_size} bytes); copy it again")
    _, major, minor, flags, size, count, table_size = HEADER.unpack_from(data)
    if major != MAJOR:
        raise SouError(
            f"written in version {major}.{minor} of the format, this program reads {MAJOR}.x; "
            "update mlx-companion"
        )
    if size != file_size:
        raise SouError(
            f"the file has {file_size} bytes, its header says {size}: cut short or added to; "
            "copy it again"
        )
    if flags & _MUST_UNDERSTAND:
        raise SouError(f"it uses features ({flags:#x}) of a newer version; update mlx-companion")
    header = Header(major, minor, flags, size, count, table_size, data[HEADER.size : HEADER_SIZE])
    _check_extent(header)
    return header


def _check_extent(header: Header) -> None:
    if header.count > MAX_SECTIONS or header.table_size > MAX_TABLE:
        raise SouError(
            f"its table claims {header.count} sections in {header.table_size} bytes; at most "
            f"{MAX_SECTIONS} in {MAX_TABLE} are allowed"
        )
    if header.count * ENTRY.size > header.table_size or header.first > header.file_size:
        raise SouError(
            f"its table claims {header.count} sections in {header.table_size} bytes, which do not "
            "fit; copy it again"
        )


def check_digest(header: Header, start: bytes, table: bytes) -> None:
    """Compare header and table with the digest between them.

    Raises:
        SouError: they differ.
    """
    found = hashlib.sha256(start[: HEADER.size] + table).digest()
    if not hmac.compare_digest(found, header.digest):
        raise SouError("header or section table is damaged (SHA-256 differs); copy it again")


def decode_signature(block: bytes) -> Signature:
    """Parse the signature block; whether the signature is right is not looked at here.

    Raises:
        SouError: damaged, or of an unknown algorithm.
    """
    head, checksum = block[: SIGNATURE.size], block[SIGNATURE.size :]
    if not hmac.compare_digest(hashlib.sha256(head).digest(), checksum):
        raise SouError("the signature block is damaged (SHA-256 differs); copy it again")
    algorithm, reserved, public_key, signature = SIGNATURE.unpack(head)
    if algorithm != ED25519 or reserved:
        raise SouError(f"signature algorithm {algorithm} is not known; update mlx-companion")
    return Signature(public_key, signature)


def decode_table(table: bytes, count: int) -> tuple[Section, ...]:
    """Parse the section table.

    Raises:
        SouError: an entry is cut short, has a bad name or value, or there is one too many.
    """
    sections, at = [], 0
    for number in range(count):
        section, at = _decode_entry(table, at, number)
        sections.append(section)
    if at != len(table):
        raise SouError(f"{len(table) - at} bytes follow the last entry of its section table")
    return tuple(sections)


def _decode_entry(table: bytes, at: int, number: int) -> tuple[Section, int]:
    if at + ENTRY.size > len(table):
        raise SouError(f"entry {number} of its section table is cut short")
    kind, flags, compression, log2, length, offset, size, raw, digest = ENTRY.unpack_from(table, at)
    at += ENTRY.size
    end = align(at + length, 8)
    if end > len(table):
        raise SouError(f"the name of entry {number} of its section table is cut short")
    if any(table[at + length : end]):
        raise SouError(f"entry {number} of its section table has bytes where there must be zeros")
    name = check_section_name(table[at : at + length])
    if log2 > MAX_ALIGNMENT_LOG2:
        raise SouError(f"section '{name}' asks for an alignment of 2^{log2} bytes; 2^16 at most")
    return Section(kind, name, offset, size, raw, digest, 1 << log2, compression, flags), end


def check_places(sections: Sequence[Section], first: int, file_size: int) -> None:
    """Check that every section lies where the rule puts it, and the file ends with the last.

    Args:
        sections: of the table.
        first: offset at which they may begin.
        file_size: bytes of the file.

    Raises:
        SouError: an overlap, a hole, a section outside of the file, or bytes after the last.
    """
    end = first
    for section in sections:
        expected = align(end, section.alignment)
        if section.offset != expected:
            raise SouError(f"{section} is at byte {section.offset}, must be at {expected}")
        end = section.end
        if end > file_size:
            raise SouError(f"{section} ends at byte {end}, the file at {file_size}")
    if end != file_size:
        raise SouError(f"its sections end at byte {end}, the file at {file_size}")
