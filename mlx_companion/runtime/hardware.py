"""What machine this is, and the settings that it implies.

On a Mac the chip and its cores come from `sysctl` and `system_profiler`; on Linux from `/proc`.
`recommend` turns that into batch sizes and number formats. The figures for Apple chips are
Apple's published memory bandwidths; generation is limited by them, one read of the weights per
token::

    settings = recommend(detect())
    model = load("smollm2-135m", dtype=settings.dtype, dequantize=settings.dequantize)
"""

from __future__ import annotations

import functools
import json
import os
import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mlx_companion.runtime.cores import available_cores
from mlx_companion.runtime.device import device_facts
from mlx_companion.runtime.monitor import Battery, read_battery

_SYSCTL_KEYS = (
    "machdep.cpu.brand_string",
    "hw.memsize",
    "hw.physicalcpu",
    "hw.perflevel0.physicalcpu",
    "hw.perflevel1.physicalcpu",
)
_CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)

# GB/s by (generation, tier). Source: Apple's technical specifications of each chip; of two
# variants the slower.
_BANDWIDTH_GBS: dict[tuple[int, str], float] = {
    (1, ""): 68, (1, "Pro"): 200, (1, "Max"): 400, (1, "Ultra"): 800,
    (2, ""): 100, (2, "Pro"): 200, (2, "Max"): 400, (2, "Ultra"): 800,
    (3, ""): 100, (3, "Pro"): 150, (3, "Max"): 300, (3, "Ultra"): 819,
    (4, ""): 120, (4, "Pro"): 273, (4, "Max"): 410,
    (5, ""): 153,
}  # fmt: skip
_NEWEST = {tier: max(g for g, t in _BANDWIDTH_GBS if t == tier) for _, tier in _BANDWIDTH_GBS}


@dataclass(frozen=True)
class Hardware:
    """A machine.

    Attributes:
        chip: e.g. "Apple M4 Pro", "AMD EPYC".
        cores: physical CPU cores that this process may use.
        memory_mb: memory that this process may use (MB), a container's limit included.
        os: e.g. "macOS 26.1", "Linux 6.18".
        performance_cores: of an Apple chip, None where unknown.
        efficiency_cores: of an Apple chip, None where unknown.
        gpu: the GPU that MLX can use, None without one.
        gpu_kind: the backend behind it.
        gpu_cores: cores of an Apple GPU, None where unknown.
        battery: charge and plug, None on a machine without a battery.
    """

    chip: str
    cores: int
    memory_mb: float
    os: str
    performance_cores: int | None = None
    efficiency_cores: int | None = None
    gpu: str | None = None
    gpu_kind: Literal["metal", "cuda"] | None = None
    gpu_cores: int | None = None
    battery: Battery | None = None


@dataclass(frozen=True)
class Recommended:
    """Settings that a machine implies.

    Attributes:
        dtype: of weights and activations.
        dequantize: expand 4-bit weights when loading them.
        batch_tokens: padded tokens per training micro-batch.
        generation_rows: prompts that are answered together.
        gradient_checkpointing: recompute activations in the backward pass to save memory.
        memory_limit_mb: what long work should stay under (MB).
        bandwidth_gbs: memory bandwidth (GB/s, 10^9 bytes), None where unknown.
        why: one line for people.
    """

    dtype: Literal["float32", "bfloat16"]
    dequantize: bool
    batch_tokens: int
    generation_rows: int
    gradient_checkpointing: bool
    memory_limit_mb: float
    bandwidth_gbs: float | None
    why: str


def detect() -> Hardware:
    """Look at this machine."""
    return _detect_mac() if sys.platform == "darwin" else _detect_linux()


def recommend(hardware: Hardware, model_mb: float = 270.0) -> Recommended:
    """Settings for a machine and the size of the model to be trained.

    Args:
        hardware: from `detect()`.
        model_mb: the model's weights in 16 bits (MB); the default model's by default.

    Returns:
        The settings; on a CPU always float32, because other formats are slower there.
    """
    limit = hardware.memory_mb * 0.7
    if hardware.gpu_kind is None:
        return _recommend_cpu(hardware, limit, model_mb)
    bandwidth = apple_bandwidth_gbs(hardware.chip) if hardware.gpu_kind == "metal" else None
    tight = model_mb > limit / 4
    return Recommended(
        dtype="bfloat16",
        dequantize=False,
        batch_tokens=_batch_tokens(limit - model_mb),
        generation_rows=_generation_rows(hardware, bandwidth),
        gradient_checkpointing=tight,
        memory_limit_mb=limit,
        bandwidth_gbs=bandwidth,
        why=f"{hardware.gpu}, {hardware.memory_mb * 1e6 / 2**30:.0f} GiB: bfloat16 as stored",
    )


def apple_bandwidth_gbs(chip: str) -> float | None:
    """Published memory bandwidth of an Apple chip (GB/s).

    A chip newer than the table counts as the newest known one of its tier; None for a chip that
    is not Apple's.
    """
    parsed = parse_apple_chip(chip)
    if parsed is None:
        return None
    generation, tier = parsed
    known = _BANDWIDTH_GBS.get((generation, tier))
    return known if known is not None else _BANDWIDTH_GBS[_NEWEST[tier], tier]


def parse_apple_chip(chip: str) -> tuple[int, str] | None:
    """`"Apple M4 Pro"` as `(4, "Pro")`; the tier is empty for a base chip; None for others."""
    match = re.fullmatch(r"Apple M(\d+)(?: (Pro|Max|Ultra))?(?: \(Virtual\))?", chip.strip())
    return None if match is None else (int(match[1]), match[2] or "")


def parse_sysctl(text: str) -> dict[str, str]:
    """The `name: value` lines that `sysctl` prints, as a dict."""
    pairs = (line.partition(":") for line in text.splitlines())
    return {name.strip(): value.strip() for name, colon, value in pairs if colon}


def parse_gpu_cores(text: str) -> int | None:
    """GPU cores from `system_profiler SPDisplaysDataType -json`; None when it does not say."""
    try:
        displays = json.loads(text).get("SPDisplaysDataType", [])
    except (json.JSONDecodeError, AttributeError):
        return None
    for display in displays:
        cores = str(display.get("sppci_cores", ""))
        if cores.isdigit():
            return int(cores)
    return None


def mac_hardware(
    sysctl: str, displays: str, battery: Battery | None, *, version: str, metal: bool = True
) -> Hardware:
    """A Mac from what its tools print.

    Args:
        sysctl: output of `sysctl` with names.
        displays: output of `system_profiler SPDisplaysDataType -json`.
        battery: as read.
        version: of macOS.
        metal: MLX has its Metal backend.
    """
    values = parse_sysctl(sysctl)
    chip = values.get("machdep.cpu.brand_string", "unknown")

    def count(key: str) -> int | None:
        return int(values[key]) if values.get(key, "").isdigit() else None

    return Hardware(
        chip=chip,
        cores=count("hw.physicalcpu") or os.cpu_count() or 1,
        memory_mb=(count("hw.memsize") or 0) / 1e6,
        os=f"macOS {version}",
        performance_cores=count("hw.perflevel0.physicalcpu"),
        efficiency_cores=count("hw.perflevel1.physicalcpu"),
        gpu=chip if metal else None,
        gpu_kind="metal" if metal else None,
        gpu_cores=parse_gpu_cores(displays),
        battery=battery,
    )


def parse_cpuinfo(text: str) -> str | None:
    """The processor's name from `/proc/cpuinfo`."""
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in {"model name", "Model"} and value.strip():
            return value.strip()
    return None


def _recommend_cpu(hardware: Hardware, limit: float, model_mb: float) -> Recommended:
    weights = 2 * model_mb
    return Recommended(
        dtype="float32",
        dequantize=True,
        batch_tokens=min(2048, _batch_tokens(limit - weights)),
        generation_rows=64 if limit > 3000 else 16,
        gradient_checkpointing=weights > limit / 3,
        memory_limit_mb=limit,
        bandwidth_gbs=None,
        why=f"{hardware.cores} CPU cores: float32, because 16-bit and 4-bit matmul are slower here",
    )


def _batch_tokens(free_mb: float) -> int:
    """A power of two; about 2 MB of activations per token is safe for models up to 3B."""
    tokens = 512
    while tokens < 16384 and tokens * 2 * 2 <= free_mb:
        tokens *= 2
    return tokens


def _generation_rows(hardware: Hardware, bandwidth: float | None) -> int:
    """Rows share each read of the weights, so a wider memory bus feeds more of them."""
    if bandwidth is None:
        return 128
    rows = 16 if bandwidth < 150 else 32 if bandwidth < 300 else 64
    return min(rows, 8) if hardware.memory_mb < 12_000 else rows


def _detect_mac() -> Hardware:
    return mac_hardware(
        _output(("sysctl", *_SYSCTL_KEYS)),
        _displays(),
        read_battery(),
        version=platform.mac_ver()[0],
        metal=device_facts().metal,
    )


@functools.cache
def _displays() -> str:
    return _output(("system_profiler", "SPDisplaysDataType", "-json"))


def _detect_linux() -> Hardware:
    facts = device_facts()
    cpuinfo = Path("/proc/cpuinfo")
    chip = parse_cpuinfo(cpuinfo.read_text()) if cpuinfo.exists() else None
    return Hardware(
        chip=chip or platform.processor() or platform.machine(),
        cores=available_cores(),
        memory_mb=_linux_memory_mb(),
        os=f"{platform.system()} {platform.release().split('-')[0]}",
        gpu=facts.name if facts.cuda else None,
        gpu_kind="cuda" if facts.cuda else None,
        battery=read_battery(),
    )


def _linux_memory_mb() -> float:
    import psutil

    sizes = [float(psutil.virtual_memory().total)]
    for path in _CGROUP_LIMITS:
        try:
            sizes.append(float(path.read_text()))
        except (OSError, ValueError):
            continue
    return min(sizes) / 1e6


def _output(command: tuple[str, ...]) -> str:
    """What a system tool prints; empty when it is missing or slow."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout
