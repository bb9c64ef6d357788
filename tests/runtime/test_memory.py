"""Memory readings: the high-water mark rises and stays, and recorded formats are read right."""

from __future__ import annotations

import struct
import subprocess
import sys
import textwrap

import pytest

from mlx_companion.runtime.memory import (
    memory_mb,
    parse_rusage_info,
    parse_status_kib,
    peak_memory_mb,
)

MEASURE = """
    from mlx_companion.runtime.memory import memory_mb, peak_memory_mb
    before = peak_memory_mb()
    block = bytearray(150_000_000)
    held = memory_mb()
    del block
    print(before, held, memory_mb(), peak_memory_mb())
"""


def test_the_peak_rises_by_what_was_used_and_stays() -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEASURE)], capture_output=True, text=True, check=True
    )
    before, held, after, peak = map(float, done.stdout.split())
    assert held - before > 140
    assert held - after > 140
    assert peak >= held - 1
    assert 145 < peak - before < 170


def test_the_peak_is_this_process_s_own() -> None:
    # The child is forked from a process that is made large first.
    block = bytearray(300_000_000)
    script = "from mlx_companion.runtime.memory import peak_memory_mb; print(peak_memory_mb())"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < len(block) / 1e6


def test_readings_are_in_megabytes_of_a_million_bytes() -> None:
    assert (
        parse_status_kib("Name:\tpython\nVmHWM:\t  250000 kB\nVmRSS:\t 1 kB\n", "VmHWM") == 250000
    )
    assert parse_status_kib("Name:\tpython\n", "VmHWM") is None
    assert 1 < memory_mb() <= peak_memory_mb() * 1.05


def test_the_mac_structure_is_read_at_the_right_places() -> None:
    # <sys/resource.h>: uuid[16], then ri_user_time (0) ... ri_phys_footprint (7) ...
    # ri_logical_writes (27), ri_lifetime_max_phys_footprint (28).
    counters = [0] * 40
    counters[7], counters[28] = 1_500_000, 2_500_000
    buffer = bytes(16) + struct.pack("=40Q", *counters)
    assert parse_rusage_info(buffer) == pytest.approx((1.5, 2.5))
