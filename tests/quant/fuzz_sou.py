"""Mutated `.sou` files against the reader: one clear error, or a file that is in order.

    PYTHONPATH=.:tests python tests/quant/fuzz_sou.py --count 100000 --seed 1 --memory-mb 2000

Four kinds of mutation, because a file with a wrong checksum is refused at once and shows little:
`raw` changes bytes and must always be noticed; `sealed` changes bytes of the header or the table
and makes the digest right again; `fields` writes a file with random lies in its table or its
tensor index; `content` changes what is in sections, with right checksums all around. Whatever is
raised other than SouError, takes longer than a second of the processor, or writes outside of its
folder, is a finding; the file is kept.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import resource
import shutil
import struct
import tempfile
import time
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

from sou_bytes import build, one, small, tensor_entry

from mlx_companion.errors import SouError
from mlx_companion.quant.sou_layout import Kind
from mlx_companion.quant.sou_reader import SouFile
from mlx_companion.quant.sou_unpack import unpack
from mlx_companion.quant.sou_verify import verify
from mlx_companion.quant.sou_view import describe

SLOW_SECONDS = 1.0
ODD_NUMBERS = (
    0, 1, 2, 7, 8, 63, 64, 65, 127, 128, 255, 256, 16383, 16384, 65535, 65536, 2**31 - 1, 2**31,
    2**32 - 1, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1,
)  # fmt: skip
ODD_NAMES = (
    b"", b"/etc/x.txt", b"../x.txt", b"a/../../x.txt", b"a//b.txt", b"a\0b.txt", b"C:x.txt",
    b"con.txt", b"a\\b.txt", b"x.py", b"\xff\xfe.txt", b"a.txt.", b" a.txt", b"config.json",
    b"CONFIG.JSON", "e\u0301.txt".encode(), "\u202egpj.txt".encode(), b"a" * 600,
    b"a/b/c/d/e/f/g/h/i.txt", b"model", b"model.safetensors", b"companion/access.json",
)  # fmt: skip
ODD_TEXTS = (
    b"", b"[" * 5000, b'{"a":' * 5000, b'{"a": 1, "a": 2}', b"NaN", b'{"a": 1e999}', b"\xff",
    b'{"a": ' + b"9" * 5000 + b"}", b'"\\', b"[1, 2", b"nul", b'{"model_type": "../x"}',
    b'{"auto_map": {"AutoModel": "x.Y"}}', b'{"num_hidden_layers": 99999999999999999999}',
)  # fmt: skip


def flip(data: bytes, rng: random.Random, start: int = 0, end: int | None = None) -> bytes:
    """Change a few bytes in a range, or cut, double or move a piece of it."""
    end = len(data) if end is None else min(end, len(data))
    out = bytearray(data)
    if start >= end:
        return data
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        at = rng.randrange(start, end)
        match rng.randrange(8):
            case 0 | 1:
                out[at : at + 1] = bytes([data[at] ^ 1 << rng.randrange(8)])
            case 2:
                out[at : at + 1] = rng.randbytes(1)
            case 3:
                width = rng.choice((2, 4, 8))
                value = rng.choice(ODD_NUMBERS) % (1 << 8 * width)
                out[at : at + width] = value.to_bytes(width, "little")
            case 4:
                del out[at : at + rng.randrange(1, 64)]
            case 5:
                out[at:at] = rng.randbytes(rng.randrange(1, 32))
            case 6:
                out[at:at] = out[start : start + rng.randrange(1, 128)]
            case 7:
                other = rng.randrange(start, end)
                out[at : at + 16] = data[other : other + 16]
    return bytes(out)


def seal(data: bytes) -> bytes:
    """Make file size and digest in the header right for whatever the rest is."""
    if len(data) < 64:
        return data
    out = bytearray(data)
    out[16:24] = struct.pack("<Q", len(out))
    table_size = struct.unpack_from("<I", out, 28)[0]
    out[32:64] = hashlib.sha256(out[:32] + out[64 : 64 + min(table_size, 1 << 22)]).digest()
    return bytes(out)


def mutate_fields(rng: random.Random) -> bytes:
    """A file with lies in its table."""
    sections = small()
    for _ in range(rng.choice((1, 1, 2, 3))):
        _lie(rng.choice(sections), rng)
    if rng.random() < 0.2:
        rng.shuffle(sections)
    if rng.random() < 0.2:
        sections.append(dict(rng.choice(sections)))
    header = {
        name: rng.choice(ODD_NUMBERS) % bound
        for name, bound in (("count", 2**32), ("table_size", 2**32), ("file_size", 2**64),
                            ("minor", 2**16), ("flags", 2**32))
        if rng.random() < 0.03
    }  # fmt: skip
    return build(sections, **header)


def _lie(section: dict[str, Any], rng: random.Random) -> None:
    widths = {
        "kind": 2, "flags": 2, "compression": 1, "log2": 1, "name_size": 2, "offset": 8,
        "size": 8, "raw_size": 8,
    }  # fmt: skip
    what = rng.choice([*widths, "name", "near", "pad"])
    if what == "name":
        section["name"] = rng.choice(ODD_NAMES)
    elif what == "pad":
        section["pad"] = b"\1"
    elif what == "near":
        section["size"] = max(0, len(section["data"]) + rng.randrange(-2, 3))
    elif what == "log2":
        section["log2"] = rng.randrange(17)
        section["said_log2"] = rng.choice((section["log2"], rng.randrange(256)))
    elif what == "kind":
        section["kind"] = rng.randrange(20)
    else:
        section[what] = rng.choice(ODD_NUMBERS) % (1 << 8 * widths[what])


def mutate_content(rng: random.Random) -> bytes:
    """A file whose sections hold something else, with right sums."""
    sections = small()
    section = rng.choice(sections)
    if section["kind"] == Kind.INDEX and rng.random() < 0.5:
        section["data"] = _odd_index(rng)
    elif section.get("compression") and rng.random() < 0.5:
        raw = rng.choice((*ODD_TEXTS, bytes(200_000)))
        section["data"] = zlib.compress(raw, rng.randrange(10)) + rng.choice((b"", b"x"))
        section["raw_size"] = rng.choice((len(raw), len(raw) + 1, max(0, len(raw) - 1), 2**26))
    elif rng.random() < 0.4:
        section["data"] = rng.choice(ODD_TEXTS)
    else:
        section["data"] = flip(section["data"], rng)
    if "raw_size" in section and not section.get("compression"):
        section["raw_size"] = len(section["data"])
    if rng.random() < 0.1:
        sections.append(one(14, "model.safetensors", rng.choice(ODD_TEXTS)))
    return build(sections)


def _odd_index(rng: random.Random) -> bytes:
    entries = []
    for number in range(rng.randrange(4)):
        shape = [rng.choice(ODD_NUMBERS) for _ in range(rng.randrange(10))]
        name = rng.choice((f"t{number}".encode(), b"a.weight", *ODD_NAMES))
        size = rng.choice(ODD_NUMBERS)
        offset = rng.choice(ODD_NUMBERS)
        entries.append(tensor_entry(name, rng.randrange(20), shape, offset, b"", size=size))
    count = len(entries) if rng.random() < 0.8 else rng.choice(ODD_NUMBERS) % 2**32
    return struct.pack("<IB3x", count, rng.randrange(20)) + b"".join(entries)


def mutate(kind: str, base: bytes, rng: random.Random) -> bytes:
    """One mutated file."""
    if kind == "raw":
        return flip(base, rng) if rng.random() < 0.9 else base[: rng.randrange(len(base))]
    if kind == "sealed":
        end = 64 + struct.unpack_from("<I", base, 28)[0]
        return seal(flip(base, rng, 0, end if rng.random() < 0.9 else None))
    return mutate_fields(rng) if kind == "fields" else mutate_content(rng)


def use(path: Path, folder: Path) -> str:
    """Do with a file what a program does with one; returns what came of it."""
    try:
        with SouFile(path) as sou:
            for section in sou.sections:
                if section.kind in (Kind.CONFIG, Kind.PROVENANCE, Kind.ACCESS):
                    sou.json(Kind(section.kind))
            describe(sou, tensors=True)
            for name in sou.tensor_sets:
                for tensor in sou.index(name):
                    sou.tensor(tensor, name)
    except SouError as error:
        _check_message(error)
    try:
        verify(path)
    except SouError as error:
        _check_message(error)
        return "refused"
    try:
        unpack(path, folder)
    except SouError as error:
        _check_message(error)
        return "refused by unpack"
    return "in order"


def _check_message(error: SouError) -> None:
    text = str(error)
    assert len(text) < 1500, text
    assert "\n" not in text, text


def run(count: int, seed: int, scratch: Path, keep: Path | None = None) -> Counter[str]:
    """Try `count` mutations.

    Args:
        count: how many.
        seed: the same one gives the same files.
        scratch: a folder to work in, best in memory.
        keep: where a file that shows a fault is kept.

    Returns:
        How many of each kind came out how.

    Raises:
        AssertionError, or whatever came instead of SouError: a finding.
    """
    bases = [build(small()), build([one(1, "config.json", b"{}")])]
    outcomes: Counter[str] = Counter()
    for number in range(count):
        rng = random.Random(seed * 1_000_003 + number)
        kind = ("raw", "sealed", "fields", "content")[number % 4]
        base = rng.choice(bases)
        data = mutate(kind, base, rng)
        path, folder = scratch / "x.sou", scratch / "room" / "out"
        path.write_bytes(data)
        folder.parent.mkdir(exist_ok=True)
        start = time.process_time()
        try:
            result = use(path, folder)
            seconds = time.process_time() - start
            assert seconds < SLOW_SECONDS, f"{seconds:.1f} s"
            assert kind != "raw" or data == base or result == "refused", "damage went unnoticed"
            assert result != "refused by unpack", "verify passed what cannot be unpacked"
            assert sorted(os.listdir(scratch)) == ["room", "x.sou"], os.listdir(scratch)
            assert os.listdir(folder.parent) in ([], ["out"]), os.listdir(folder.parent)
        except BaseException:
            if keep is not None:
                keep.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, keep / f"{kind}-{seed}-{number}.sou")
            raise
        shutil.rmtree(folder.parent)
        outcomes[f"{kind}: {result}"] += 1
    return outcomes


def main() -> None:
    """Run from the command line; prints the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--memory-mb", type=int, default=2000)
    parser.add_argument("--keep", type=Path, default=Path("sou-findings"))
    given = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (given.memory_mb * 10**6,) * 2)
    shared = Path("/dev/shm")
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as scratch:
        outcomes = run(given.count, given.seed, Path(scratch), given.keep)
    for name, times in sorted(outcomes.items()):
        print(f"{name:28} {times:9,}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    print(
        f"{given.count:,} files, {time.perf_counter() - start:.0f} s, peak {peak:.0f} MB, 0 faults"
    )


if __name__ == "__main__":
    main()
