"""Opening a large file reads its table; a tensor costs its own bytes and no second copy stays."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from sou_bytes import build, one, tensor_entry
from tiny import tiny_llama

import mlx_companion  # noqa: F401
from mlx_companion.errors import SouError
from mlx_companion.quant.sou import SouFile, describe, pack

GIB = 1 << 30
COUNT = 300


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 1 GiB, nearly all of it a hole; sums of the weights are not right."""
    import struct

    rows = GIB // COUNT // 4096
    entries, at = [], 0
    for number in range(COUNT):
        size = rows * 4096
        entries.append(tensor_entry(f"layer.{number}.weight", 11, [rows, 1024], at, b"", size=size))
        at += size
    index = struct.pack("<IB3x", COUNT, 6) + b"".join(entries)
    sections = [one(1, "config.json", b"{}"), one(2, "model", index)]
    # The hole is added after: only its size is written.
    head = build([*sections, one(3, "model", b"", log2=14, size=at, raw_size=at)], file_size=0)
    start = -(-len(head) // 16384) * 16384
    data = build(
        [*sections, one(3, "model", b"", log2=14, size=at, raw_size=at)], file_size=start + at
    )
    path = tmp_path_factory.mktemp("large") / "large.sou"
    path.write_bytes(data)
    os.truncate(path, start + at)
    with open(path, "r+b") as file:
        file.seek(start + rows * 4096)
        file.write(np.arange(1024, dtype=np.float32).tobytes())
    return path


def test_opening_reads_only_the_table(large: Path) -> None:
    assert large.stat().st_size > 1e9
    with SouFile(large) as sou:
        assert sou.bytes_read == 64 + sou.header.table_size < 1000
        assert len(sou.index()) == COUNT
        assert sou.bytes_read < 64_000


def test_a_tensor_costs_its_own_bytes(large: Path) -> None:
    with SouFile(large) as sou:
        sou.index()
        before = sou.bytes_read, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        array = sou.tensor("layer.1.weight")
        assert array[0].tolist() == list(range(1024))
        assert not mx.any(array[1:]).item()
        after = sou.bytes_read, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert after[0] == before[0] + 1
        assert after[1] - before[1] < 40_000
        with pytest.raises(SouError, match=r"layer.1.weight' is damaged"):
            sou.tensor("layer.1.weight", check=True)


def test_looking_does_not_touch_the_weights(large: Path) -> None:
    with SouFile(large) as sou:
        shown = describe(sou, tensors=True)
        assert len(shown["tensors"]["model"]) == COUNT
        assert "_mapped" not in vars(sou)


def test_arrays_outlive_the_file(tmp_path: Path) -> None:
    pack(tiny_llama(tmp_path / "model"), tmp_path / "a.sou")
    with SouFile(tmp_path / "a.sou") as sou:
        array = sou.tensor("model.norm.weight")
        expected = np.frombuffer(b"".join(sou.tensor_bytes("model.norm.weight")), np.float32)
    os.remove(tmp_path / "a.sou")
    assert np.array_equal(np.array(array), expected)
    with pytest.raises(SouError, match="was closed"):
        sou.tensor("lm_head.weight")


MEMORY = """
import mlx_companion, mlx.core as mx, resource, sys, time
from mlx_companion.quant.sou_reader import SouFile
def status(key):
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(key)) * 1024
mx.eval(mx.zeros(8))
before = status("VmRSS:")
with SouFile(sys.argv[1]) as sou:
    weights = {name: sou.tensor(name) for name in list(sou.index())[:COUNT]}
    mx.eval(weights)
held = sum(array.nbytes for array in weights.values())
print((status("VmHWM:") - before) / held)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells peak memory there")
def test_loading_does_not_hold_the_weights_twice(large: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEMORY.replace("COUNT", "60"), str(large)],
        capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    # 60 tensors of 3.6 MB: once in MLX's memory, and pages of one tensor at a time.
    assert float(done.stdout) < 1.3


def test_writing_takes_constant_memory(tmp_path: Path) -> None:
    code = """
import mlx_companion, resource, sys
from pathlib import Path
from mlx_companion.quant.sou_layout import Kind
from mlx_companion.quant.sou_tensors import DTYPES, TensorEntry
from mlx_companion.quant.sou_writer import TensorSet, TensorSource, write_sou
chunk = bytes(1 << 20)
def source(number):
    entry = TensorEntry(f"t{number}", DTYPES[1], (64 << 20,))
    return TensorSource(entry, lambda: (chunk for _ in range(64)))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
write_sou(Path(sys.argv[1]), [], [TensorSet("model", [source(n) for n in range(4)])])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.sou")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert (tmp_path / "a.sou").stat().st_size > 256 << 20
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(done.stdout) * unit < 20e6
