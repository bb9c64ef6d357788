"""Reading a `.sou` file: the table at once, everything else when it is asked for.

Opening reads the header and the section table and checks both; a section is checked against its
SHA-256 when it is read, a tensor when `check=True`. Weights are mapped, not read.

    with SouFile("mine.sou") as sou:
        config = sou.json(Kind.CONFIG)
        sou.index()["model.norm.weight"].shape
        array = sou.tensor("model.norm.weight")
"""

from __future__ import annotations

import hashlib
import hmac
import mmap
import os
import stat
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from mlx_companion.errors import ModelNotFoundError, SouError
from mlx_companion.quant.sou_layout import (
    HEADER_SIZE,
    MAX_RATIO,
    MAX_TEXT,
    NONE,
    SIGNATURE_SIZE,
    ZLIB,
    Header,
    Kind,
    Section,
    Signature,
    check_digest,
    check_places,
    decode_header,
    decode_signature,
    decode_table,
)
from mlx_companion.quant.sou_names import parse_json
from mlx_companion.quant.sou_rules import check_sections
from mlx_companion.quant.sou_tensors import MAX_INDEX, TensorEntry, decode_index

if TYPE_CHECKING:
    import mlx.core as mx

CHUNK = 1 << 20
MODEL = "model"


class SouFile:
    """An open `.sou` file; close it, or use it in a `with` block.

    Args:
        path: the file.

    Attributes:
        header: its first 64 bytes.
        sections: the table.
        signature: the block after the table, unchecked; None when there is none.
        bytes_read: by calls of this object so far; mapped weights do not count.

    Raises:
        ModelNotFoundError: there is no such file.
        SouError: damaged, hostile, or of a newer version.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.bytes_read = 0
        self._indices: dict[str, dict[str, TensorEntry]] = {}
        self._fd = _open(self.path)
        try:
            with self.named():
                self._read_start()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> SouFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; arrays that were made from it stay."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        mapped = self.__dict__.pop("_mapped", None)
        if mapped is not None:
            mapped.close()

    def _read_start(self) -> None:
        size = os.fstat(self._fd).st_size
        start = self.pread(0, min(HEADER_SIZE, size))
        header: Header = decode_header(start, size)
        table = self.pread(HEADER_SIZE, header.table_size)
        check_digest(header, start, table)
        self.header = header
        self.sections = decode_table(table, header.count)
        check_places(self.sections, header.first, size)
        check_sections(self.sections)
        self.signature: Signature | None = None
        if header.signed:
            block = self.pread(HEADER_SIZE + header.table_size, SIGNATURE_SIZE)
            self.signature = decode_signature(block)

    @property
    def tensor_sets(self) -> tuple[str, ...]:
        """Names of the sets of tensors; `model` is the language model."""
        return tuple(section.name for section in self.sections if section.kind == Kind.INDEX)

    def all(self, kind: Kind) -> tuple[Section, ...]:
        """The sections of a kind, in the order of the table."""
        return tuple(section for section in self.sections if section.kind == kind)

    def find(self, kind: Kind, name: str | None = None) -> Section | None:
        """The section of a kind, the one with a name where there may be several; None if none."""
        for section in self.sections:
            if section.kind == kind and name in (None, section.name):
                return section
        return None

    def read(self, section: Section) -> bytes:
        """The content of a section other than weights, decompressed and checked.

        Raises:
            SouError: its SHA-256 differs, it is larger than 64 MiB, or cannot be decompressed.
        """
        with self.named():
            if max(section.size, section.raw_size) > MAX_TEXT:
                raise SouError(f"{section} has {section.size} bytes; take it with `copy`")
            data = self.pread(section.offset, section.size)
            _same_digest(section, hashlib.sha256(data).digest())
            return decompress(section, data)

    def json(self, kind: Kind) -> Any:
        """The parsed content of a JSON section; None where there is none.

        Raises:
            SouError: see `read`; or it is not a JSON object.
        """
        section = self.find(kind)
        if section is None:
            return None
        with self.named():
            value = parse_json(self.read(section), str(section))
            if not isinstance(value, dict):
                raise SouError(f"{section} is not a JSON object")
        return value

    def copy(self, section: Section, target: Path) -> None:
        """Write the content of a section into a new file, of any size in constant memory.

        Raises:
            SouError: its SHA-256 differs.
        """
        if section.compression != NONE:
            target.write_bytes(self.read(section))
            return
        with open(target, "xb") as file:
            for piece in self.checked_chunks(section):
                file.write(piece)

    def checked_chunks(self, section: Section) -> Iterator[bytes]:
        """The bytes of a section as they are in the file; an error at the end if they are wrong.

        Raises:
            SouError: its SHA-256 differs.
        """
        found = hashlib.sha256()
        for piece in self.chunks(section.offset, section.size):
            found.update(piece)
            yield piece
        with self.named():
            _same_digest(section, found.digest())

    def chunks(self, offset: int, size: int) -> Iterator[bytes]:
        """A range of the file in pieces of at most 1 MiB."""
        for at in range(offset, offset + size, CHUNK):
            with self.named():
                piece = self.pread(at, min(CHUNK, offset + size - at))
            yield piece

    def index(self, name: str = MODEL) -> Mapping[str, TensorEntry]:
        """The tensors of a set, by name, in the order of the data.

        Raises:
            SouError: no such set, or its index is damaged.
        """
        if name not in self._indices:
            with self.named():
                self._indices[name] = self._read_index(name)
        return self._indices[name]

    def _read_index(self, name: str) -> dict[str, TensorEntry]:
        section = self.find(Kind.INDEX, name)
        if section is None:
            known = ", ".join(self.tensor_sets) or "none"
            raise SouError(f"it holds no tensors '{name}'; there are: {known}")
        if section.size > MAX_INDEX:
            raise SouError(f"{section} has {section.size} bytes; at most {MAX_INDEX} are allowed")
        data = self.pread(section.offset, section.size)
        _same_digest(section, hashlib.sha256(data).digest())
        return decode_index(data, self._data(name).size)

    def _data(self, name: str) -> Section:
        section = self.find(Kind.DATA, name)
        assert section is not None, "check_sections pairs them"
        return section

    def tensor_bytes(self, name: str, of: str = MODEL) -> Iterator[bytes]:
        """The bytes of one tensor in pieces; an error at the end if its SHA-256 differs.

        Raises:
            SouError: no such tensor, or damaged.
        """
        entry = self._entry(name, of)
        found = hashlib.sha256()
        for piece in self.chunks(self._data(of).offset + entry.offset, entry.size):
            found.update(piece)
            yield piece
        self._check_tensor(entry, found.digest())

    def tensor(self, name: str, of: str = MODEL, *, check: bool = False) -> mx.array:
        """One tensor as an MLX array; only its own bytes are read.

        MLX copies them once out of the mapped file, whose pages are then given back. (Its Python
        interface cannot adopt memory of the CPU without a copy.)

        Args:
            name: of the tensor.
            of: its set.
            check: compare with the SHA-256 in the index first.

        Raises:
            SouError: no such tensor, or damaged.
        """
        import mlx.core as mx

        entry = self._entry(name, of)
        if not entry.size:
            return mx.zeros(entry.shape, getattr(mx, entry.dtype.mlx))
        start = self._data(of).offset + entry.offset
        with self.named():
            # A page of a mapped file that is gone would kill the process.
            self.pread(start + entry.size - 1, 1)
        count = entry.size // entry.dtype.size
        flat = np.frombuffer(self._mapped, entry.dtype.view, count, start)
        if check:
            self._check_tensor(entry, hashlib.sha256(flat.data).digest())
        array = _to_mlx(flat, entry)
        del flat
        self._give_back(start, entry.size)
        return array

    def _give_back(self, start: int, size: int) -> None:
        """Drop the pages of a range from this process; they are clean, the system has the file."""
        page = mmap.PAGESIZE
        first = start // page * page
        if hasattr(mmap, "MADV_DONTNEED") and size >= page:
            self._mapped.madvise(mmap.MADV_DONTNEED, first, start + size - first)

    def _entry(self, name: str, of: str) -> TensorEntry:
        entry = self.index(of).get(name)
        if entry is None:
            raise SouError(f"{self.path}: there is no tensor '{name}' in '{of}'")
        return entry

    def _check_tensor(self, entry: TensorEntry, digest: bytes) -> None:
        if not hmac.compare_digest(entry.sha256, digest):
            raise SouError(
                f"{self.path}: tensor '{entry.name}' is damaged (SHA-256 differs); copy it again"
            )

    @cached_property
    def _mapped(self) -> mmap.mmap:
        return mmap.mmap(self._fd, 0, access=mmap.ACCESS_READ)

    def pread(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes of the file.

        Raises:
            SouError: there are fewer.
        """
        if self._fd < 0:
            raise SouError("it was closed; open it again")
        data = os.pread(self._fd, size, offset)
        while len(data) < size:
            more = os.pread(self._fd, size - len(data), offset + len(data))
            if not more:
                raise SouError(f"cut short: byte {offset + len(data)} is missing; copy it again")
            data += more
        self.bytes_read += size
        return data

    @contextmanager
    def named(self) -> Iterator[None]:
        """Put the file's name in front of an error's message, once."""
        try:
            yield
        except SouError as error:
            if str(error).startswith(str(self.path)):
                raise
            raise SouError(f"{self.path}: {error}") from None


def decompress(section: Section, data: bytes) -> bytes:
    """The content of a section from its bytes in the file, in bounded memory.

    Raises:
        SouError: not zlib, more or less than the table says.
    """
    if section.compression == NONE:
        return data
    if section.compression != ZLIB or section.raw_size > min(MAX_TEXT, MAX_RATIO * len(data)):
        raise SouError(f"{section} is compressed in a way that is not allowed")
    worker = zlib.decompressobj()
    try:
        raw = worker.decompress(data, section.raw_size + 1)
    except zlib.error as error:
        raise SouError(f"{section} cannot be decompressed: {error}") from None
    if len(raw) != section.raw_size or not worker.eof or worker.unused_data:
        raise SouError(f"{section} does not decompress to the {section.raw_size} bytes it claims")
    return raw


def _same_digest(section: Section, found: bytes) -> None:
    if not hmac.compare_digest(found, section.sha256):
        raise SouError(f"{section} is damaged (SHA-256 differs); copy the file again")


def _to_mlx(flat: np.ndarray, entry: TensorEntry) -> mx.array:
    import mlx.core as mx

    dtype = getattr(mx, entry.dtype.mlx)
    if dtype == mx.bool_:
        array = mx.array(flat).astype(mx.bool_)
    elif dtype == mx.float64:
        array = mx.array(flat, dtype=mx.float64)
    else:
        array = mx.array(flat)
        array = array if array.dtype == dtype else array.view(dtype)
    return array.reshape(entry.shape)


def _open(path: Path) -> int:
    try:
        # A pipe would block until somebody writes into it.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise ModelNotFoundError(f"there is no file '{path}'; check the path") from None
    except OSError as error:
        raise SouError(f"{path}: cannot be opened ({error.strerror})") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise SouError(f"{path}: is no regular file; give a .sou file")
    return fd
