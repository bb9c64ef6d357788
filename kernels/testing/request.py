"""One launch: the runtime's structures, and its verdict as an exception."""

from __future__ import annotations

import contextlib
import ctypes
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_companion.errors import (
    ConfigError,
    KernelBoundsError,
    KernelDivergenceError,
    KernelError,
    KernelRaceError,
    KernelUninitializedError,
)
from mlx_companion.kernels.testing import build

# By the runtime's codes.
_ERRORS: tuple[type[KernelError], ...] = (
    KernelError,
    KernelBoundsError,
    KernelRaceError,
    KernelUninitializedError,
    KernelDivergenceError,
    KernelError,
    KernelError,
    KernelError,
    KernelError,
)
# Stacks that no launch uses now, and how many threads each is for.
_stacks: list[tuple[int, int]] = []
_KINDS = {"forward": 0, "reverse": 1, "lockstep": 2, "random": 3}


@dataclass(frozen=True)
class Options:
    """How the bench runs a kernel.

    Attributes:
        schedule: "forward", "reverse", "lockstep" or "random:SEED".
        strict_fences: take the flags of barriers literally (`mem_none` orders nothing, `mem_device`
            only device memory), and let SIMD collectives order no memory.
        unwritten: "poison" leaves NaN where a kernel did not write its output, "error" raises.
        max_steps: basic blocks that a thread may run before it counts as endless.
        allow_exited: threads that returned early need not reach barriers and collectives.
        races: "error", or "allow" for kernels whose threads race with equal values.
    """

    schedule: str = "forward"
    strict_fences: bool = False
    unwritten: str = "poison"
    max_steps: int = 20_000_000
    allow_exited: bool = False
    races: str = "error"

    def __post_init__(self) -> None:
        parse_schedule(self.schedule)
        if self.unwritten not in ("poison", "error"):
            raise ConfigError(f"unwritten is 'poison' or 'error', not '{self.unwritten}'")
        if self.races not in ("error", "allow"):
            raise ConfigError(f"races is 'error' or 'allow', not '{self.races}'")


@dataclass
class Launched:
    """What a launch took: for figures."""

    seconds: float
    threads: int
    switches: int
    accesses: int
    threadgroup_bytes: int
    unwritten: int


class _Buffer(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("bytes", ctypes.c_uint64),
        ("lead", ctypes.c_uint64),
        ("item", ctypes.c_uint32),
        ("kind", ctypes.c_uint32),
        ("name", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("grain", ctypes.c_uint32),
        ("filled", ctypes.c_uint32),
        ("cells", ctypes.c_void_p),
        ("id", ctypes.c_uint32),
    )


class _Request(ctypes.Structure):
    _fields_ = (
        ("buffers", ctypes.POINTER(_Buffer)),
        ("count", ctypes.c_uint32),
        ("schedule", ctypes.c_uint32),
        ("grid", ctypes.c_uint32 * 3),
        ("group", ctypes.c_uint32 * 3),
        ("seed", ctypes.c_uint64),
        ("max_steps", ctypes.c_uint64),
        ("strict", ctypes.c_uint32),
        ("allow_exited", ctypes.c_uint32),
        ("allow_races", ctypes.c_uint32),
        ("code", ctypes.c_uint32),
        ("where", ctypes.c_uint32 * 2),
        ("message", ctypes.c_char * 1000),
        ("threads_run", ctypes.c_uint64),
        ("switches", ctypes.c_uint64),
        ("accesses", ctypes.c_uint64),
        ("threadgroup_bytes", ctypes.c_uint64),
        ("unwritten", ctypes.c_uint64),
        ("stacks", ctypes.c_void_p),
        ("stack_count", ctypes.c_uint64),
    )


def parse_schedule(schedule: str) -> tuple[int, int]:
    """A schedule's number in the runtime, and its seed.

    Raises:
        ConfigError: there is no such schedule.
    """
    name, _, seed = schedule.partition(":")
    if name not in _KINDS or (seed and (name != "random" or not seed.isdigit())):
        raise ConfigError(
            f"no schedule '{schedule}'; choose forward, reverse, lockstep or random:SEED"
        )
    return _KINDS[name], int(seed or 0)


def run(
    name: str,
    path: Path,
    memory: Sequence[tuple[str, Any, int, int, int]],
    grid: Sequence[int],
    threadgroup: Sequence[int],
    options: Options,
) -> Launched:
    """Launch a compiled kernel.

    Args:
        name: of the kernel, for messages.
        path: of its shared object.
        memory: per buffer its name, a numpy array, bytes before element 0, bytes per element and
            what it is (0 input, 1 output, 2 output with values).
        grid, threadgroup: threads in x, y and z.
        options: how to run it.

    Raises:
        KernelError: a sub-class of it, for what the kernel did wrong.
    """
    buffers = (_Buffer * len(memory))()
    for b, (label, array, lead, item, kind) in zip(buffers, memory, strict=True):
        b.data, b.bytes, b.lead = array.ctypes.data, array.nbytes, lead
        b.item, b.kind, b.name = item, kind, label.encode()
    kind, seed = parse_schedule(options.schedule)
    group = [min(t, g) for t, g in zip(threadgroup, grid, strict=True)]
    request = _Request(
        buffers=buffers,
        count=len(memory),
        schedule=kind,
        grid=tuple(grid),
        group=tuple(group),
        seed=seed + 1,
        max_steps=options.max_steps,
        strict=options.strict_fences,
        allow_exited=options.allow_exited,
        allow_races=options.races == "allow",
    )
    start = time.perf_counter()
    _with_stacks(request, build.load(path).mb_run)
    seconds = time.perf_counter() - start
    if request.code:
        raise _ERRORS[request.code](_message(name, path, request, options.schedule))
    if request.unwritten and options.unwritten == "error":
        raise KernelUninitializedError(
            f"{name}: {request.unwritten} elements of its outputs were never written"
        )
    return Launched(
        seconds,
        request.threads_run,
        request.switches,
        request.accesses,
        request.threadgroup_bytes,
        request.unwritten,
    )


def _with_stacks(request: _Request, mb_run: Callable[[Any], int]) -> None:
    """Lend the launch the stacks of an earlier one; mapping 1024 of them takes 40 ms."""
    with contextlib.suppress(IndexError):
        request.stacks, request.stack_count = _stacks.pop()
    mb_run(ctypes.byref(request))
    if request.stacks:
        _stacks.append((request.stacks, request.stack_count))


def _message(name: str, path: Path, request: _Request, schedule: str) -> str:
    text = request.message.decode(errors="replace")
    for k in range(2):
        if f"{{{k}}}" in text:
            text = text.replace(f"{{{k}}}", _place(path, request.where[k]))
    text = re.sub(r" +([,:]| )", r"\1", text)
    return f"{name}: {text} (schedule {schedule})"


def _place(path: Path, where: int) -> str:
    if where & 1 << 31:
        header = bool(where & 1 << 30)
        return f"({'header line' if header else 'line'} {where & 0x3FFFFFFF})"
    # A return address is that of the instruction after the call.
    return build.line_of(path, where - 1) if where else ""
