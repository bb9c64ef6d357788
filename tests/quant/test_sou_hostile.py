"""Files made to harm, with right checksums: each gives one clear error, quickly."""

from __future__ import annotations

import os
import re
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import pytest
from patience import cpu_seconds_below
from sou_bytes import build, one, small, tensor_entry, tensors

from mlx_companion.errors import SouError
from mlx_companion.quant.sou_model import load_companion
from mlx_companion.quant.sou_names import check_section_name, parse_json
from mlx_companion.quant.sou_reader import SouFile
from mlx_companion.quant.sou_unpack import unpack
from mlx_companion.quant.sou_verify import verify

U8 = ("U8", [4], b"abcd")


def refused(tmp_path: Path, data: bytes) -> str:
    """The error of `verify`, which comes fast (in time of the processor) and in little memory."""
    path = tmp_path / "a.sou"
    path.write_bytes(data)
    tracemalloc.start()
    with cpu_seconds_below(2), pytest.raises(SouError) as caught:
        verify(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6 + 4 * len(data)
    return str(caught.value)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"offset": 0}, "must be at"),
        ({"offset": 2**64 - 8}, "must be at"),
        ({"size": 2**64 - 1, "raw_size": 2**64 - 1}, "ends at byte"),
        ({"size": 2**63, "raw_size": 2**63}, "ends at byte"),
        ({"size": 1, "raw_size": 1}, "sections end at"),
        ({"size": 3}, "two sizes|ends at"),
        ({"raw_size": 3}, "two sizes"),
        ({"said_log2": 17}, "alignment of 2"),
        ({"said_log2": 255}, "alignment of 2"),
        ({"compression": 2}, "unknown way"),
        ({"compression": 1}, "cannot be decompressed"),
        ({"compression": 1, "raw_size": 2**40}, "claims to grow"),
        ({"name_size": 0}, "table|expected 1 to"),
        ({"name_size": 65535}, "cut short"),
        ({"pad": b"\1"}, "must be zeros"),
    ],
)
def test_lies_in_the_table(fields: dict[str, Any], reason: str, tmp_path: Path) -> None:
    found = refused(tmp_path, build([one(1, "config.json", b"{}", **fields)]))
    assert re.search(reason, found), found


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"count": 2**32 - 1}, "claims 4294967295 sections"),
        ({"count": 4097}, "claims 4097"),
        ({"count": 9}, "cut short|do not fit"),
        ({"count": 0}, "follow the last entry"),
        ({"table_size": 2**32 - 1}, "claims"),
        ({"table_size": 0}, "do not fit"),
        ({"file_size": 2**64 - 1}, "its header says"),
        ({"file_size": 0}, "its header says"),
        ({"table_tail": bytes(8)}, "8 bytes follow"),
        ({"tail": b"x"}, "cut short or added to"),
        ({"flags": 1}, "sections|signature|must be at"),
        ({"digest": bytes(32)}, "is damaged"),
    ],
)
def test_lies_in_the_header(header: dict[str, Any], reason: str, tmp_path: Path) -> None:
    found = refused(tmp_path, build(small(), **header))
    assert re.search(reason, found), found


BAD_NAMES = [
    b"", b"/a.txt", b"a/", b"a//b.txt", b".", b"..", b"../a.txt", b"a/../b.txt", b"a/./b.txt",
    b"a\\b.txt", b"C:a.txt", b"C:/a.txt", b"//host/a.txt", b"\\\\host\\a.txt", b"a\0.txt",
    b"a\n.txt", b"a\x7f.txt", b"con", b"CON.txt", b"a/nul.json", b"com1.txt", b"LPT9", b"aux.md",
    "com\u00b9.txt".encode(), b"a.txt.", b"a.txt ", b" a.txt", b"a?.txt", b"a*.txt", b'a".txt',
    b"a|b.txt", b"<a>.txt", b"a.txt:stream.txt", b"\xff.txt", b"\xc0\xae.txt", b"\xed\xa0\x80.txt",
    "e\u0301.txt".encode(), "\u202egpj.txt".encode(), "a\u200b.txt".encode(),
    "\ufeffa.txt".encode(), "\ue000.txt".encode(), "\u2028.txt".encode(), b"a" * 129 + b".txt",
    b"/".join([b"a"] * 9), b"a/" * 255 + b"aa",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES, ids=ascii)
def test_names_that_mean_something_to_a_system(name: bytes, tmp_path: Path) -> None:
    refused(tmp_path, build([one(9, name, b"x")]))
    # Sections that a reader skips have names, too.
    refused(tmp_path, build([one(77, name, b"x")]))


@pytest.mark.parametrize(
    "name", ["x.py", "x.pkl", "x.so", "x.bin", "x.txt.py", "x", "py", ".json", "x.PY", "lib.dylib"]
)
@pytest.mark.parametrize("kind", [4, 7, 9, 13])
def test_kinds_of_file_that_hold_code(kind: int, name: str, tmp_path: Path) -> None:
    name = f"a/{name}" if kind == 7 else name
    assert "must not hold" in refused(tmp_path, build([one(kind, name, b"x")]))


@pytest.mark.parametrize(
    "name", ["a.txt", "Ärger/über.md", "a b.json", "日本語.txt", "LICENSE", "a-1_2+3.md"]
)
def test_good_names(name: str) -> None:
    assert check_section_name(name.encode()) == name


@pytest.mark.parametrize(
    ("sections", "reason"),
    [
        ([one(1, "config.json"), one(1, "config.json")], "comes twice"),
        ([one(1, "other.json")], "must be named"),
        ([one(9, "a.md"), one(9, "A.md")], "the same on some systems"),
        ([one(9, "stra\u00dfe.md"), one(9, "STRASSE.md")], "the same on some systems"),
        ([one(9, "a.md"), one(9, "a.md/b.md")], "needs a folder there"),
        ([one(13, "config.json"), one(1, "config.json")], "the same on some systems"),
        ([one(13, "companion/access.json")], "belongs to another kind"),
        ([one(13, "Companion/x.md")], "belongs to another kind"),
        ([one(13, "model.safetensors")], "belongs to another kind"),
        ([one(4, "Model-2.SAFETENSORS")], "belongs to another kind"),
        ([one(7, "adapters.safetensors")], "ADAPTER/FILE"),
        ([one(7, "a/b/c.json")], "ADAPTER/FILE"),
        ([one(14, "a/model.safetensors")], "must be named like"),
        ([one(6, "a.yaml"), one(6, "b.yaml")], "2 personality profiles"),
        ([one(2, "model", bytes(8))], "without"),
        ([one(3, "model", b"", log2=14)], "without"),
        ([one(2, "Model", bytes(8)), one(3, "Model", b"", log2=14)], "a-z, 0-9"),
        ([one(2, "model", bytes(8)), one(3, "model", b"", log2=12)], "aligned to 16384"),
    ],
)
def test_rules_about_the_whole_table(
    sections: list[dict[str, Any]], reason: str, tmp_path: Path
) -> None:
    assert reason in refused(tmp_path, build(sections))


def bomb(size: int) -> bytes:
    """Zeros, squeezed as far as zlib can."""
    return zlib.compress(bytes(size), 9)


def test_compression_bombs(tmp_path: Path) -> None:
    packed = bomb(50 << 20)
    fields = {"compression": 1}
    found = refused(tmp_path, build([one(9, "a.md", packed, raw_size=50 << 20, **fields)]))
    assert "claims to grow" in found
    # Claims little and grows much: cut off at what it claimed.
    found = refused(tmp_path, build([one(9, "a.md", packed, raw_size=100 * len(packed), **fields)]))
    assert "does not decompress to" in found
    adapter = one(7, "a/b.safetensors", b"not zlib", raw_size=9, **fields)
    assert "cannot be decompressed" in refused(tmp_path, build([adapter]))
    text = os.urandom(1000)
    for data, size in (
        (zlib.compress(text), 999),
        (zlib.compress(text), 1001),
        (zlib.compress(text) + b"x", 1000),
        (zlib.compress(text)[:-1], 1000),
        (b"", 0),
    ):
        refused(tmp_path, build([one(9, "a.md", data, raw_size=size, **fields)]))


def test_many_sections_that_grow_in_all_too_much(tmp_path: Path) -> None:
    data = os.urandom(1 << 20)
    sections = [
        one(9, f"{n}.md", data, compression=1, raw_size=64 << 20, sha=bytes(32)) for n in range(17)
    ]
    assert "in all" in refused(tmp_path, build(sections))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"[" * 10**6, "deeper than 64"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, "deeper than 64"),
        (b'{"a": 1, "a": 1}', "comes twice"),
        (b"NaN", "NaN"),
        (b'{"a": -Infinity}', "Infinity"),
        (b'{"a": 1e999}', "too large"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "not valid JSON"),
        (b'"\xff"', "not valid JSON"),
        (b"[]", "not a JSON object"),
        (b"{} x", "not valid JSON"),
        (b"", "not valid JSON"),
        (b'"' + b'\\"' * 10**6, "not valid JSON"),
        (b'"\\', "not valid JSON"),
        (b'{"a": "' + b"x" * (4 << 20) + b'"}', "at most"),
    ],
    ids=lambda value: value[:12] if isinstance(value, bytes) else value,
)
def test_bad_json(text: bytes, reason: str, tmp_path: Path) -> None:
    assert reason in refused(tmp_path, build([one(1, "config.json", text)]))


def test_a_key_twice_among_many_is_found_fast() -> None:
    keys = ", ".join(f'"k{n}": 0' for n in range(200_000))
    with cpu_seconds_below(3), pytest.raises(SouError, match="k7"):
        parse_json(f'{{{keys}, "k7": 1}}'.encode(), "x")


def test_deep_json_in_a_tokenizer_is_found(tmp_path: Path) -> None:
    assert "deeper" in refused(tmp_path, build([one(4, "tokenizer.json", b"[" * 5000)]))


def indexed(
    *entries: bytes, count: int | None = None, log2: int = 6, data: bytes = b"abcd"
) -> bytes:
    """A file with these entries in its tensor index."""
    head = struct.pack("<IB3x", len(entries) if count is None else count, log2)
    return build([one(2, "model", head + b"".join(entries)), one(3, "model", data, log2=14)])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (indexed(tensor_entry("a", 16, [4], 0, b"abcd")), "number type 16"),
        (indexed(tensor_entry("a", 1, [5], 0, b"abcd")), "cannot have 4 bytes"),
        (indexed(tensor_entry("a", 1, [2**32, 2**32], 0, b"", size=0)), "cannot have 0 bytes"),
        (indexed(tensor_entry("a", 1, [2**31, 0], 0, b"", size=0), data=b""), "cannot have"),
        (indexed(tensor_entry("a", 1, [4], 1, b"abcd")), "must be at 0"),
        (indexed(tensor_entry("a", 1, [4], 2**64 - 4, b"abcd")), "must be at 0"),
        (indexed(tensor_entry("a", 1, [5], 0, b"abcde")), "ends at byte 5 of 4"),
        (indexed(tensor_entry("a", 1, [3], 0, b"abc")), "its data 1"),
        (indexed(tensor_entry("a", 1, [1] * 9, 0, b"a")), "9 dimensions"),
        (indexed(tensor_entry("a", 1, [4], 0, b"abcd", reserved=1)), "must be zero"),
        (indexed(tensor_entry("a", 1, [4], 0, b"abcd", pad=b"\1")), "must be zero"),
        (indexed(tensor_entry("", 1, [4], 0, b"abcd")), "0 bytes; expected 1"),
        (indexed(tensor_entry("a" * 513, 1, [4], 0, b"abcd")), "513 bytes"),
        (indexed(tensor_entry(b"\xff", 1, [4], 0, b"abcd")), "not UTF-8"),
        (indexed(tensor_entry("a\x1b[2J", 1, [4], 0, b"abcd")), "control characters"),
        (indexed(count=2**32 - 1, data=b""), "claims 4294967295 tensors"),
        (indexed(tensor_entry("a", 1, [4], 0, b"abcd"), count=2), "claims|cut short"),
        (indexed(tensor_entry("a", 1, [4], 0, b"abcd"), count=0), "bytes early"),
        (indexed(tensor_entry("a", 1, [4], 0, b"abcd"), log2=17), "alignment"),
        (
            indexed(*(tensor_entry("a", 1, [4], n, b"abcd") for n in (0, 64)), data=bytes(68)),
            "comes twice",
        ),
        (build([one(2, "model", b"123"), one(3, "model", log2=14)]), "cut short"),
    ],
)
def test_lies_in_the_tensor_index(data: bytes, reason: str, tmp_path: Path) -> None:
    found = refused(tmp_path, data)
    assert re.search(reason, found), found


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b'{"a": 1}',
        b'{"b": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "U8", "shape": [4], "data_offsets": [4, 8]}}',
        b'{"a": {"dtype": "U8", "shape": [2, 2], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "I8", "shape": [4], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "U8", "shape": [true, 4], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "U8", "shape": [-4], "data_offsets": [0, -4]}}',
        b"{}",
        b"[" * 999,
    ],
)
def test_a_source_header_that_lies(header: bytes, tmp_path: Path) -> None:
    sections = [*tensors({"a": U8}), one(14, "model.safetensors", header)]
    path = tmp_path / "a.sou"
    path.write_bytes(build(sections))
    with pytest.raises(SouError):
        unpack(path, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.sou")
    (tmp_path / "folder.sou").mkdir()
    (tmp_path / "empty.sou").touch()
    for name in ("pipe.sou", "folder.sou", "empty.sou", "/dev/zero"):
        with pytest.raises(SouError):
            SouFile(tmp_path / name)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ('{"model_type": "llama", "trust_remote_code": true}', "asks for code"),
        ('{"model_type": "llama", "model_file": "x.py"}', "asks for code"),
        ('{"model_type": "../../evil"}', "model_type"),
        ('{"model_type": "os.path"}', "model_type"),
        ('{"model_type": ["llama"]}', "model_type"),
        ("{}", "model_type"),
        ('{"model_type": "llama", "num_hidden_layers": 1000000000}', "num_hidden_layers"),
        ('{"model_type": "x", "text_config": {"num_layers": 1000000000}}', "num_layers"),
        ('{"model_type": "no_such_model"}', "cannot be built|tokenizer"),
    ],
)
def test_configurations_that_would_run_code_or_never_end(
    config: str, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.sou"
    path.write_bytes(build([one(1, "config.json", config.encode()), *tensors({"a": U8})]))
    with cpu_seconds_below(5), pytest.raises(Exception, match=reason) as caught:
        load_companion(path)
    assert type(caught.value).__name__ in ("SouError", "WeightsError")


def test_a_file_without_a_model(tmp_path: Path) -> None:
    path = tmp_path / "a.sou"
    for sections in ([], tensors({"a": U8}), [one(1, "config.json", b'{"model_type": "llama"}')]):
        path.write_bytes(build(sections))
        with pytest.raises(SouError, match="no language model"):
            load_companion(path)
