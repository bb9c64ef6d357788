"""Machines: Apple's chips as data, and the machine that this runs on, measured.

    machine("m4-pro-48")        # chip and GiB of memory, from machines.json
    this_machine()              # measured in about two seconds; a known Mac from the table

A machine is what the planner divides by: bytes per second that memory gives, operations per second
of the matrix units, and the time that a layer takes however little it computes.
"""

from __future__ import annotations

import difflib
import functools
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_companion.errors import ConfigError
from mlx_companion.runtime.hardware import Hardware, detect, parse_apple_chip

THIS = "this"
_TABLE = Path(__file__).with_name("machines.json")
_GIB = 2**30
# Arrays far larger than any cache, and small enough to be made in no time.
_READ_ROWS, _READ_COLUMNS = 8192, 4096
_PRODUCT = 1024
_CHAIN = 200
# Small operations of one layer that follow each other: norms, rotations, attention, additions.
_OPERATIONS_PER_LAYER = 16


@dataclass(frozen=True)
class Machine:
    """A machine, as the planner needs it.

    Args:
        name: such as "m4-pro-48".
        memory: bytes.
        usable: bytes that a program may use: less the system's reserve, and on a Mac no more than
            Metal's working set.
        bandwidth: bytes per second that a program gets of the memory.
        nominal: the published figure; None where there is none.
        flops16, flops32: operations per second in 16 and 32 bits, at most.
        product_share: part of them that products of matrices reach.
        layer_seconds: what a layer takes beyond reading its weights, for one token.
        gpu_cores: of an Apple chip.
        gpu: whether MLX runs on a GPU, where numbers are 16 bits by default.
        measured: whether its figures were measured here.
    """

    name: str
    memory: int
    usable: int
    bandwidth: float
    nominal: float | None
    flops16: float
    flops32: float
    layer_seconds: float
    product_share: float = 1.0
    gpu_cores: int | None = None
    gpu: bool = True
    measured: bool = False


def machine(name: str = THIS) -> Machine:
    """A machine by its name.

    Args:
        name: a chip, with or without GiB of memory ("m4-pro", "m4-pro-48"; the largest without),
            or "this".

    Raises:
        ConfigError: no such chip, or it never had so much memory.
    """
    wanted = name.strip().lower().replace("_", "-").replace(" ", "-").removeprefix("apple-")
    if wanted == THIS:
        return this_machine()
    chips = table()["chips"]
    if wanted in chips:
        return _apple(wanted, max(chips[wanted]["memory_gib"]))
    chip, _, size = wanted.removesuffix("gb").rpartition("-")
    if chip in chips and size.isdigit():
        # The smaller GPU of a chip may be the only one that comes with so little memory.
        variants = [chip, *(c for c in chips if c.startswith(f"{chip}-") and c.endswith("core"))]
        found = [c for c in variants if int(size) in chips[c]["memory_gib"]]
        if not found:
            known = ", ".join(str(s) for s in sorted({s for c in variants for s in _sizes(c)}))
            raise ConfigError(f"'{name}': an {chip} has {known} GiB of memory, not {size}")
        return _apple(found[0], int(size))
    near = difflib.get_close_matches(wanted, machine_names(), n=1, cutoff=0.4)
    hint = f"did you mean '{near[0]}'? " if near else ""
    raise ConfigError(
        f"no machine is called '{name}'; {hint}expected '{THIS}', or a chip with its memory: "
        f"{', '.join(chips)}"
    )


def machine_names() -> list[str]:
    """Every chip with every size of memory, "m1-8" to "m4-max-128"."""
    chips = table()["chips"]
    return [f"{chip}-{size}" for chip in chips for size in chips[chip]["memory_gib"]]


def _sizes(chip: str) -> list[int]:
    sizes: list[int] = table()["chips"][chip]["memory_gib"]
    return sizes


@functools.cache
def table() -> dict[str, Any]:
    """The table of machines; `about` in it says what its figures are."""
    found: dict[str, Any] = json.loads(_TABLE.read_text(encoding="utf-8"))
    return found


def this_machine(*, measure: bool = False) -> Machine:
    """The machine that this runs on.

    Args:
        measure: also where the table knows it. What it does not know is always measured.
    """
    hardware = detect()
    known = None if measure else _known(hardware)
    return known or _measured(hardware)


def _apple(chip: str, gib: int) -> Machine:
    facts, every = table()["chips"][chip], table()
    nominal = facts["bandwidth_gbs"] * 1e9
    given = facts["measured_gbs"]
    return Machine(
        f"{chip}-{gib}",
        gib * _GIB,
        _usable(gib * _GIB),
        given * 1e9 if given else nominal * every["measured_share"],
        nominal,
        facts["fp16_tflops"] * 1e12,
        facts["fp32_tflops"] * 1e12,
        every["layer_us"] * 1e-6,
        every["matmul_share"],
        facts["gpu_cores"],
    )


def _usable(memory: int) -> int:
    """Of a Mac's memory."""
    shares = table()["working_set"]
    share = next((share for most, share in shares if memory <= most * _GIB), shares[-1][1])
    return int(min(memory * share, memory - table()["reserve_gib"] * _GIB))


def _known(hardware: Hardware) -> Machine | None:
    """The table's entry of a Mac, with the memory that it has."""
    parsed = parse_apple_chip(hardware.chip) if hardware.gpu_kind == "metal" else None
    if parsed is None:
        return None
    base = f"m{parsed[0]}" + (f"-{parsed[1].lower()}" if parsed[1] else "")
    chips = table()["chips"]
    own = [chip for chip in (base, f"{base}-{hardware.gpu_cores}core") if chip in chips]
    if not own:
        return None
    return _apple(own[-1], round(hardware.memory_mb * 1e6 / _GIB))


def _measured(hardware: Hardware) -> Machine:
    memory = int(hardware.memory_mb * 1e6)
    gpu = hardware.gpu_kind is not None
    flops16, flops32 = _product_speed(half=gpu), _product_speed(half=False)
    return Machine(
        THIS,
        memory,
        _usable(memory) if hardware.gpu_kind == "metal" else int(memory * 0.9),
        _read_speed(),
        None,
        flops16,
        flops32,
        _chain_seconds() * _OPERATIONS_PER_LAYER,
        gpu_cores=hardware.gpu_cores,
        gpu=gpu,
        measured=True,
    )


def _read_speed() -> float:
    """Bytes per second of a matrix that is read once, as generation does."""
    import mlx.core as mx

    matrix, vector = mx.ones((_READ_ROWS, _READ_COLUMNS)), mx.ones((_READ_COLUMNS,))
    mx.eval(matrix, vector)
    return matrix.nbytes / _seconds(lambda: mx.eval(matrix @ vector))


def _product_speed(half: bool) -> float:
    """Operations per second of a product of square matrices."""
    import mlx.core as mx

    size = _PRODUCT * (4 if mx.default_device().type == mx.DeviceType.gpu else 1)
    a = mx.ones((size, size), dtype=mx.float16 if half else mx.float32)
    mx.eval(a)
    return 2 * size**3 / _seconds(lambda: mx.eval(a @ a))


def _chain_seconds() -> float:
    """Seconds of one small operation among many that wait for each other."""
    import mlx.core as mx

    start = mx.ones((1, 1024))

    def chain() -> None:
        x = start
        for _ in range(_CHAIN):
            x = x + 1
        mx.eval(x)

    return _seconds(chain) / _CHAIN


def _seconds(work: Callable[[], None]) -> float:
    """Median of a few runs."""
    work()
    taken = []
    for _ in range(5):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)
