"""The bytes of a `.sou` file are those of docs/SOU.md: a second writer, the worked example."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import numpy as np
import pytest
from sou_bytes import CODES, build, one, small, tensors

from mlx_companion.errors import SouError
from mlx_companion.quant.sou_layout import Kind
from mlx_companion.quant.sou_reader import SouFile
from mlx_companion.quant.sou_tensors import DTYPES, TensorEntry, place
from mlx_companion.quant.sou_verify import verify
from mlx_companion.quant.sou_writer import (
    Part,
    TensorSet,
    TensorSource,
    file_part,
    text_part,
    write_sou,
)

DTYPE = {dtype.name: dtype for dtype in DTYPES}


@pytest.fixture(scope="module")
def specification(repository: Path) -> str:
    return (repository / "docs" / "SOU.md").read_text(encoding="utf-8")


def hex_blocks(text: str) -> list[bytes]:
    """The bytes of every block of code marked `hex`; what follows `|` is a comment."""
    blocks = re.findall(r"```hex\n(.*?)```", text, re.DOTALL)
    lines = [[line.split("|")[0] for line in block.splitlines()] for block in blocks]
    return [bytes.fromhex("".join(one)) for one in lines]


def written(path: Path) -> bytes:
    """What our writer makes of `sou_bytes.small`."""
    import zlib

    parts, arrays = [], {}
    for section in small():
        data = section["data"]
        if section["kind"] not in (2, 3):
            raw = zlib.decompress(data) if section.get("compression") else data
            parts.append(text_part(Kind(section["kind"]), section["name"], raw))
    arrays = {
        "a.weight": ("U32", (2, 3), bytes(range(24))),
        "a.scales": ("F16", (2, 1), b"\0\x3c\0\x40"),
        "empty": ("F32", (0, 4), b""),
        "z": ("BF16", (5,), bytes(range(10))),
    }
    sources = [
        TensorSource(TensorEntry(name, DTYPE[dtype], shape), lambda data=data: [data])
        for name, (dtype, shape, data) in arrays.items()
    ]
    write_sou(path, reversed(parts), [TensorSet("model", sources)])
    return path.read_bytes()


def test_both_writers_write_the_same_bytes(tmp_path: Path) -> None:
    assert written(tmp_path / "a.sou") == build(small())


def test_the_worked_example_is_a_file(specification: str, tmp_path: Path) -> None:
    whole, *_ = hex_blocks(specification)
    assert whole == build([one(1, "config.json", b"{}", flags=1)])
    (tmp_path / "a.sou").write_bytes(whole)
    assert verify(tmp_path / "a.sou").sections == 1
    with SouFile(tmp_path / "a.sou") as sou:
        assert sou.json(Kind.CONFIG) == {}


def test_the_example_of_an_index_is_one(specification: str, tmp_path: Path) -> None:
    _, index = hex_blocks(specification)
    values = np.array([1, -2, 0.5], np.float32).tobytes()
    sections = tensors({"norm.weight": ("F32", [3], values)})
    assert index == sections[0]["data"]
    (tmp_path / "a.sou").write_bytes(build(sections))
    with SouFile(tmp_path / "a.sou") as sou:
        assert np.array(sou.tensor("norm.weight", check=True)).tolist() == [1, -2, 0.5]


def test_the_tables_of_the_specification_are_those_of_the_program(specification: str) -> None:
    kinds = dict(re.findall(r"^\| (\d+) \| `(\w+)` \|", specification, re.MULTILINE))
    assert {int(n): name for n, name in kinds.items()} == {k: k.name.lower() for k in Kind}
    types = re.findall(r"^\| (\d+) \| (\w+) \| (\d+) \|", specification, re.MULTILINE)
    assert [(int(a), b, int(c)) for a, b, c in types] == [(d.code, d.name, d.size) for d in DTYPES]
    assert {d.name: d.code for d in DTYPES} == CODES


def test_sections_are_where_the_rule_puts_them(tmp_path: Path) -> None:
    data = written(tmp_path / "a.sou")
    with SouFile(tmp_path / "a.sou") as sou:
        end = 64 + struct.unpack_from("<I", data, 28)[0]
        for section in sou.sections:
            step = 16384 if section.kind == Kind.DATA else 8
            assert section.offset == -(-end // step) * step
            end = section.end
        assert end == len(data) == sou.header.file_size
        for entry in sou.index().values():
            assert entry.offset % 64 == 0


def test_the_order_of_parts_does_not_matter(tmp_path: Path) -> None:
    parts = [Part(Kind.RULES, f"{n}.txt", 1, 1, lambda: [b"x"]) for n in range(5)]
    digests = {write_sou(tmp_path / "a.sou", order) for order in (parts, parts[::-1])}
    assert len(digests) == 1


def test_an_empty_file_is_a_file(tmp_path: Path) -> None:
    write_sou(tmp_path / "a.sou", [])
    assert (tmp_path / "a.sou").read_bytes() == build([])
    assert verify(tmp_path / "a.sou").sections == 0
    write_sou(tmp_path / "a.sou", [], [TensorSet("model", [])])
    assert verify(tmp_path / "a.sou").tensors == 0


def test_texts_are_compressed_where_it_helps(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(33, 126, 4000, dtype=np.uint8).tobytes()
    assert text_part(Kind.FILE, "a.txt", b"again " * 500).compression == 1
    assert text_part(Kind.FILE, "a.txt", b"short").compression == 0
    assert text_part(Kind.FILE, "a.png", b"again " * 500).compression == 0
    # 1000 times smaller: a reader would take it for a bomb.
    assert text_part(Kind.FILE, "a.txt", b" " * 10**6).compression == 0
    (tmp_path / "n.txt").write_bytes(noise)
    part = file_part(Kind.FILE, "n.txt", tmp_path / "n.txt")
    write_sou(tmp_path / "a.sou", [part])
    with SouFile(tmp_path / "a.sou") as sou:
        assert sou.read(sou.sections[0]) == noise


def test_a_larger_alignment_of_tensors(tmp_path: Path) -> None:
    sources = [
        TensorSource(TensorEntry(name, DTYPE["U8"], (3,)), lambda: [b"abc"]) for name in "xy"
    ]
    write_sou(tmp_path / "a.sou", [], [TensorSet("model", sources, 16384)])
    with SouFile(tmp_path / "a.sou") as sou:
        assert [entry.offset for entry in sou.index().values()] == [0, 16384]
    verify(tmp_path / "a.sou")
    assert [entry.offset for entry in place([s.entry for s in sources], 4096)] == [0, 4096]


@pytest.mark.parametrize(
    ("sections", "reason"),
    [
        ([text_part(Kind.CONFIG, "other.json", b"{}")], "must be named"),
        ([text_part(Kind.RULES, "../x.txt", b"")], "could leave its folder"),
        ([text_part(Kind.RULES, "x.py", b"")], "must not hold"),
        ([text_part(Kind.RULES, "a.md", b""), text_part(Kind.RULES, "A.md", b"")], "the same on"),
    ],
)
def test_the_writer_refuses_what_the_reader_would(
    sections: list[Part], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(SouError, match=reason):
        write_sou(tmp_path / "a.sou", sections)
    assert list(tmp_path.iterdir()) == []


def test_newer_minor_versions_may_add_kinds(tmp_path: Path) -> None:
    path = tmp_path / "a.sou"
    path.write_bytes(build([*small(), one(99, "new.thing", b"?", flags=0xF0)], minor=7, flags=0x10))
    assert verify(path).sections == 8
    with SouFile(path) as sou:
        assert sou.sections[-1].kind_name == "kind 99"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (build([one(99, "new.thing", b"?", flags=1)]), "must be understood"),
        (build([one(99, "new.thing", b"?", flags=0x200)]), "must be understood"),
        (build([one(1, "config.json", b"{}", flags=0x100)]), "newer version"),
        (build([], flags=0x10000), "newer version"),
        (build([], major=2), r"version 2\.0"),
        (build([], major=0), r"version 0\.0"),
    ],
)
def test_what_must_be_understood_is_an_error(data: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "a.sou").write_bytes(data)
    with pytest.raises(SouError, match=reason):
        SouFile(tmp_path / "a.sou")
