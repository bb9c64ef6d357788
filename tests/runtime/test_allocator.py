"""Freed memory stays in the process, and goes back when asked. In a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mlx_companion.runtime import allocator

SCRIPT = """
import ctypes, os
from mlx_companion.runtime.allocator import keep_freed_memory, return_freed_memory
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = (
    ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p])

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

def use(mb):
    block = libc.malloc(mb * 10**6)
    ctypes.memset(block, 1, mb * 10**6)
    libc.free(block)
    return resident()

start = resident()
before = use(100) - start
assert keep_freed_memory() and keep_freed_memory()
kept = use(100) - start
assert return_freed_memory()
print(before, kept, resident() - start)
"""


@pytest.mark.skipif(allocator._glibc() is None, reason="needs glibc")
def test_freed_memory_is_kept_until_returned() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
    )
    before, kept, after = map(float, done.stdout.split())
    assert before < 20
    assert kept > 90
    assert after < 20


def test_elsewhere_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not allocator.keep_freed_memory()
    assert not allocator.return_freed_memory()
