"""How many CPU cores this process may really use.

`os.cpu_count()` counts what the machine has. A container's CPU quota, a scheduler's affinity mask
and hyper-threads (which share one multiplier) all make the useful number of BLAS threads smaller,
and a BLAS with too many threads is slower than one with too few. Standard library only, because
`runtime/blas.py` needs it at import time.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

_CPUS = Path("/sys/devices/system/cpu")
_CGROUP = Path("/sys/fs/cgroup")


def available_cores() -> int:
    """Physical cores that this process may run on, within its CPU quota; at least 1."""
    cores = physical_cores(allowed_cpus())
    quota = cpu_quota()
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def allowed_cpus() -> list[int]:
    """Logical CPUs in this process's affinity mask (all of them where the system has no masks)."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def physical_cores(cpus: list[int], root: Path = _CPUS) -> int:
    """Distinct physical cores among logical `cpus`; all are taken as distinct when unknown."""
    siblings = set()
    for cpu in cpus:
        try:
            siblings.add((root / f"cpu{cpu}/topology/thread_siblings_list").read_text().strip())
        except OSError:
            siblings.add(str(cpu))
    return max(1, len(siblings))


def cpu_quota(root: Path = _CGROUP) -> float | None:
    """CPUs that the control group (version 2, then 1) grants, or None without a limit."""
    try:
        quota, period = (root / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (root / "cpu/cpu.cfs_quota_us").read_text().strip()
            period = (root / "cpu/cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    try:
        granted = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):
        return None
    return granted if granted > 0 else None
