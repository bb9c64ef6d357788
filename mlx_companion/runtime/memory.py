"""How much memory this process uses now, and how much it used at most. MB means 10^6 bytes.

On macOS the figure is the "physical footprint" that Activity Monitor shows, because buffers shared
with the GPU are in it and are not in the resident set. On Linux it is the resident set.
"""

from __future__ import annotations

import ctypes
import os
import resource
import struct
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")
# struct rusage_info_v4 of <sys/resource.h>: a 16-byte uuid, then 64-bit counters.
_RUSAGE_INFO_V4 = 4
_USAGE_BYTES = 512
_UUID_BYTES = 16
_FOOTPRINT, _PEAK_FOOTPRINT = 7, 28


def memory_mb() -> float:
    """Memory that this process uses now, in MB."""
    if sys.platform == "darwin":
        footprint = _mac_footprints()
        if footprint is not None:
            return footprint[0]
    import psutil

    return float(psutil.Process().memory_info().rss) / 1e6


def peak_memory_mb() -> float:
    """The most memory that this process has used since it started, in MB."""
    if sys.platform == "darwin":
        footprint = _mac_footprints()
        if footprint is not None:
            return footprint[1]
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    # getrusage would count the program that this process was forked from before its exec.
    peak = parse_status_kib(_STATUS.read_text(), "VmHWM") if _STATUS.exists() else None
    if peak is None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * 1024 / 1e6


def parse_status_kib(text: str, field: str) -> int | None:
    """One size field of /proc/<pid>/status, in KiB; None when the field is not there."""
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        if name == field:
            return int(rest.split()[0])
    return None


def parse_rusage_info(buffer: bytes) -> tuple[float, float]:
    """Present and peak footprint, in MB, from a `rusage_info_v4` structure."""
    present, peak = (
        struct.unpack_from("=Q", buffer, _UUID_BYTES + 8 * index)[0]
        for index in (_FOOTPRINT, _PEAK_FOOTPRINT)
    )
    return present / 1e6, peak / 1e6


def _mac_footprints() -> tuple[float, float] | None:
    buffer = ctypes.create_string_buffer(_USAGE_BYTES)
    usage = getattr(ctypes.CDLL(None), "proc_pid_rusage", None)
    if usage is None or usage(os.getpid(), ctypes.c_int(_RUSAGE_INFO_V4), buffer) != 0:
        return None
    return parse_rusage_info(buffer.raw)
