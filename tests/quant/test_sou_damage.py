"""Damage of every kind is found: cuts, flipped bits, added bytes."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from sou_bytes import build, one, small, tensors

from mlx_companion.errors import SouError
from mlx_companion.quant.sou_layout import Kind
from mlx_companion.quant.sou_reader import SouFile
from mlx_companion.quant.sou_verify import verify

GOOD = build(small())
TABLE_END = 64 + struct.unpack_from("<I", GOOD, 28)[0]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "a.sou").write_bytes(GOOD)
    assert verify(tmp_path / "a.sou").tensors == 4
    return tmp_path / "a.sou"


def refused(path: Path, data: bytes) -> str:
    """The error that `verify` gives for these bytes."""
    path.write_bytes(data)
    with pytest.raises(SouError) as caught:
        verify(path)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value)


def boundaries() -> list[int]:
    """Every offset at which something begins or ends."""
    found = {0, 8, 32, 64, TABLE_END}
    at = 64
    for section in small():
        for start in (at, at + 64, at + 64 + len(section["name"])):
            found.add(start)
        at += 64 + len(section["name"]) + -len(section["name"]) % 8
        offset, size = struct.unpack_from("<QQ", GOOD, found_entry(section["name"]) + 8)
        found |= {offset, offset + size}
    return sorted(found)


def found_entry(name: str) -> int:
    """Where the entry of the first section with that name begins."""
    return GOOD.index(name.encode()) - 64


@pytest.mark.parametrize("cut", boundaries())
def test_a_cut_at_every_boundary_is_found_when_opening(cut: int, path: Path) -> None:
    for length in {max(cut - 1, 0), cut, cut + 1} - {len(GOOD), len(GOOD) + 1}:
        path.write_bytes(GOOD[:length])
        with pytest.raises(SouError):
            SouFile(path)


def test_a_cut_anywhere_is_found_when_opening(path: Path) -> None:
    rng = random.Random(1)
    for length in sorted({rng.randrange(len(GOOD)) for _ in range(300)}, reverse=True):
        path.write_bytes(GOOD[:length])
        with pytest.raises(SouError):
            SouFile(path)


@pytest.mark.parametrize("tail", [b"\0", b"x", bytes(4096), GOOD])
def test_bytes_after_the_end_are_found(tail: bytes, path: Path) -> None:
    assert "cut short or added to" in refused(path, GOOD + tail)


def test_every_bit_of_header_and_table_counts(path: Path) -> None:
    with open(path, "r+b", buffering=0) as file:
        for at in range(TABLE_END):
            for bit in range(8):
                os.pwrite(file.fileno(), bytes([GOOD[at] ^ 1 << bit]), at)
                with pytest.raises(SouError):
                    SouFile(path)
            os.pwrite(file.fileno(), GOOD[at : at + 1], at)
    assert verify(path).tensors == 4


def test_every_bit_of_sections_and_between_them_counts(path: Path) -> None:
    rng = random.Random(2)
    offsets = [n for n in range(TABLE_END, len(GOOD)) if GOOD[n]]
    offsets += rng.sample(range(TABLE_END, len(GOOD)), 600)
    with open(path, "r+b", buffering=0) as file:
        for at in offsets:
            os.pwrite(file.fileno(), bytes([GOOD[at] ^ 1 << rng.randrange(8)]), at)
            with pytest.raises(SouError):
                verify(path)
            os.pwrite(file.fileno(), GOOD[at : at + 1], at)
    assert verify(path).tensors == 4


def test_bits_of_a_signature_count_without_cryptography(path: Path) -> None:
    import hashlib

    block = struct.pack("<II32s64s", 1, 0, bytes(range(32)), bytes(range(64)))
    block += hashlib.sha256(block).digest()
    good = build(small(), flags=1, block=block)
    for at in range(TABLE_END, TABLE_END + 136):
        data = bytearray(good)
        data[at] ^= 1 << at % 8
        path.write_bytes(data)
        with pytest.raises(SouError, match="signature"):
            SouFile(path)


READS: dict[str, Callable[[SouFile, Path], object]] = {
    "json": lambda sou, _: sou.json(Kind.CONFIG),
    "read": lambda sou, _: sou.read(sou.all(Kind.TOKENIZER)[0]),
    "copy": lambda sou, out: sou.copy(sou.all(Kind.ADAPTER)[0], out),
    "tensor": lambda sou, _: sou.tensor("z", check=True),
    "tensor_bytes": lambda sou, _: list(sou.tensor_bytes("z")),
}


@pytest.mark.parametrize("name", READS)
def test_what_is_read_is_checked_without_verify(name: str, path: Path, tmp_path: Path) -> None:
    with SouFile(path) as sou:
        READS[name](sou, tmp_path / "good")
        starts = [section.offset for section in sou.sections if section.kind != Kind.INDEX]
        starts.append(starts[-1] + sou.index()["z"].offset)
    data = bytearray(GOOD)
    for start in starts:
        data[start] ^= 4
    path.write_bytes(data)
    with SouFile(path) as sou, pytest.raises(SouError, match="is damaged"):
        READS[name](sou, tmp_path / "bad")


def test_a_file_that_shrinks_while_it_is_open(path: Path) -> None:
    with SouFile(path) as sou:
        sou.index()
        path.write_bytes(GOOD[:-4])
        with pytest.raises(SouError, match="is missing"):
            sou.tensor("z")
        with pytest.raises(SouError, match="is missing"):
            list(sou.tensor_bytes("z"))


def test_sums_of_tensors_and_sections_must_agree(path: Path) -> None:
    wrong = tensors({"w": ("U8", [4], b"abcd")}, sha=bytes(32))
    assert "tensor 'w' is damaged" in refused(path, build(wrong))
    hidden = tensors({"a": ("U8", [1], b"a"), "b": ("U8", [1], b"b")})
    hidden[1]["data"] = hidden[1]["data"][:5] + b"!" + hidden[1]["data"][6:]
    assert "something before tensor 'b'" in refused(path, build(hidden))


def test_something_between_sections_is_found(path: Path) -> None:
    sections = [one(1, "config.json", b"{}"), one(12, "provenance.json", b"{}")]
    path.write_bytes(build(sections))
    assert verify(path).sections == 2
    assert "something between sections" in refused(path, build(sections, gap=b"!"))
