"""A second writer of `.sou` files, made from docs/SOU.md alone, that can also write wrong ones.

data = build([one(1, "config.json", b"{}")])
data = build([one(1, "config.json", b"{}", offset=3)])     # a lie, with right checksums
data = build([*tensors({"w": ("F32", [2], bytes(8))})])
"""

from __future__ import annotations

import hashlib
import struct
from typing import Any

MAGIC = b"\x89SOU\r\n\x1a\n"
_TYPES = "BOOL U8 U16 U32 U64 I8 I16 I32 I64 F16 BF16 F32 F64 C64 F8_E4M3 F8_E8M0"
CODES = {name: code for code, name in enumerate(_TYPES.split())}


def one(kind: int, name: str | bytes, data: bytes = b"", **fields: Any) -> dict[str, Any]:
    """A section; fields are those of the table's entry, and `log2` that of its alignment."""
    return {"kind": kind, "name": name, "data": data, **fields}


def tensors(
    arrays: dict[str, tuple[str, list[int], bytes]], name: str = "model", **fields: Any
) -> list[dict[str, Any]]:
    """Index and data sections; `fields` are for every entry of the index."""
    entries, data = [], b""
    for tensor, (dtype, shape, content) in arrays.items():
        data += bytes(-len(data) % 64)
        entries.append(tensor_entry(tensor, CODES[dtype], shape, len(data), content, **fields))
        data += content
    index = struct.pack("<IB3x", len(entries), 6) + b"".join(entries)
    return [one(2, name, index, flags=1), one(3, name, data, flags=1, log2=14)]


def tensor_entry(
    name: str | bytes,
    code: int,
    shape: list[int],
    offset: int,
    content: bytes,
    *,
    size: int | None = None,
    sha: bytes | None = None,
    reserved: int = 0,
    pad: bytes = b"\0",
) -> bytes:
    """One entry of a tensor index."""
    text = name if isinstance(name, bytes) else name.encode()
    size = len(content) if size is None else size
    sha = hashlib.sha256(content).digest() if sha is None else sha
    head = struct.pack("<HBBIQQ", len(text), code, len(shape), reserved, offset, size) + sha
    return head + struct.pack(f"<{len(shape)}Q", *shape) + text + pad * (-len(text) % 8)


def build(
    sections: list[dict[str, Any]],
    *,
    major: int = 1,
    minor: int = 0,
    flags: int = 0,
    count: int | None = None,
    table_size: int | None = None,
    file_size: int | None = None,
    digest: bytes | None = None,
    block: bytes = b"",
    gap: bytes = b"\0",
    tail: bytes = b"",
    table_tail: bytes = b"",
) -> bytes:
    """A whole file; everything that is not given is right."""
    names = [s["name"] if isinstance(s["name"], bytes) else s["name"].encode() for s in sections]
    length = sum(64 + len(name) + -len(name) % 8 for name in names) + len(table_tail)
    at = 64 + length + len(block)
    body, table = b"", b""
    for section, name in zip(sections, names, strict=True):
        data, step = section["data"], 1 << section.get("log2", 3)
        pad = -at % step
        at += pad
        table += struct.pack(
            "<HHBBHQQQ",
            section["kind"],
            section.get("flags", 0),
            section.get("compression", 0),
            section.get("log2", 3) if "said_log2" not in section else section["said_log2"],
            section.get("name_size", len(name)),
            section.get("offset", at),
            section.get("size", len(data)),
            section.get("raw_size", len(data)),
        )
        table += section.get("sha", hashlib.sha256(data).digest())
        table += name + section.get("pad", b"\0") * (-len(name) % 8)
        body += gap * pad + data
        at += len(data)
    table += table_tail
    head = struct.pack(
        "<8sHHIQII",
        MAGIC,
        major,
        minor,
        flags,
        at if file_size is None else file_size,
        len(sections) if count is None else count,
        len(table) if table_size is None else table_size,
    )
    digest = hashlib.sha256(head + table).digest() if digest is None else digest
    return head + digest + table + block + body + tail


def small() -> list[dict[str, Any]]:
    """Sections of a small file with a bit of everything."""
    import zlib

    text = b'{"words": [' + b'"again", ' * 90 + b'"end"]}'
    packed = zlib.compress(text, 9)
    return [
        one(1, "config.json", b'{"model_type": "llama"}', flags=1),
        one(4, "tokenizer.json", packed, compression=1, raw_size=len(text)),
        one(7, "tone/adapters.safetensors", bytes(range(40))),
        one(9, "rules.yaml", b"be: kind\n"),
        one(12, "provenance.json", b"{}"),
        *tensors(
            {
                "a.weight": ("U32", [2, 3], bytes(range(24))),
                "a.scales": ("F16", [2, 1], b"\0\x3c\0\x40"),
                "empty": ("F32", [0, 4], b""),
                "z": ("BF16", [5], bytes(range(10))),
            }
        ),
    ]
