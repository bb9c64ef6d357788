"""Planted faults: each is found, under every schedule, by name, place and line."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest

import mlx_companion  # noqa: F401
from mlx_companion.errors import (
    KernelBoundsError,
    KernelBuildError,
    KernelDivergenceError,
    KernelError,
    KernelRaceError,
    KernelUninitializedError,
)
from mlx_companion.kernels import testing

pytestmark = pytest.mark.usefixtures("kernel_bench")
START = "uint i = thread_position_in_grid.x, t = thread_position_in_threadgroup.x;\n"
FENCE = "threadgroup_barrier(mem_flags::mem_threadgroup);\n"
SHARED = "threadgroup float held[64];\n"


def run(source: str, *, schedule: str, group: int = 64, **options: Any) -> list[mx.array]:
    """256 threads, an input `a` of 256 ones and an output `x` of 256 floats."""
    call = {k: options.pop(k) for k in ("init_value", "inputs") if k in options}
    made = {k: options.pop(k) for k in ("header", "atomic_outputs") if k in options}
    kernel = testing.metal_kernel(
        "faulty", ["a"], ["x"], START + source, schedule=schedule, **made, **options
    )
    call.setdefault("inputs", [mx.ones((256,))])
    return kernel(
        grid=(256, 1, 1), threadgroup=(group, 1, 1), output_shapes=[(256,)],
        output_dtypes=[mx.float32], **call,
    )  # fmt: skip


FAULTS: dict[str, tuple[str, type[KernelError], str]] = {
    "read past the end": (
        "x[i] = a[i + 1];", KernelBoundsError, r"a\[256\].*reads 4 bytes.*256 elements"),
    "read before the start": (
        "x[i] = a[int(i) - 1];", KernelBoundsError,
        r"a\[-1\]: thread 0 of .*\(0, 0, 0\) \(line 2\)"),
    "read far away": ("x[i] = a[i + (1u << 30)];", KernelBoundsError, "far from every buffer"),
    "write past the end": (
        "x[i == 255 ? 256 : i] = 1;", KernelBoundsError, r"x\[256\]: thread 63 .*\(3, 0, 0\)"),
    "write to an input": (
        "((device float*)a)[i] = 1;", KernelBoundsError, "writes an input"),
    "null pointer": ("device float* p = nullptr; p[i] = 1;", KernelBoundsError, "far from"),
    "past a threadgroup array": (
        SHARED + "threadgroup float* p = held; p[t + 1] = 1; x[i] = 1;", KernelBoundsError,
        r"held\[64\]: thread 63"),
    "index past an array": (
        "float own[4] = {1, 2, 3, 4}; x[i] = own[t & 7];", KernelBoundsError,
        r"element [4-7] of an array of type 'float *\[4\]'"),
    "another thread's private memory": (
        "threadgroup ulong place; float own = i; if (t == 0) place = ulong(&own);\n" + FENCE
        + "x[i] = *(float*)place;", KernelBoundsError, "private memory of another thread"),
    "division by zero": ("x[i] = 7 / int(t);", KernelError, "divides an integer by zero"),
    "threadgroup memory never written": (
        SHARED + "x[i] = held[t];", KernelUninitializedError, r"held\[\d+\].*nothing has written"),
    "threadgroup memory of the group before": (
        SHARED + "if (i < 64) held[t] = 1;\n" + FENCE + "x[i] = held[t];",
        KernelUninitializedError, r"of threadgroup \([123], 0, 0\)"),
    "output read before it is written": (
        "x[i] += 1;", KernelUninitializedError, r"x\[\d+\]: .*line 2"),
    "divergent barrier": (
        "if (t < 3) {\n" + FENCE + "}\nx[i] = 1;", KernelDivergenceError, r"\(line 3\)"),
    "two barriers": (
        "if (t < 3) {\n" + FENCE + "} else {\n" + FENCE + "}\nx[i] = 1;", KernelDivergenceError,
        r"threadgroup_barrier \(line [35]\).*threadgroup_barrier \(line [35]\)"),
    "barrier after an early return": (
        "x[i] = 1; if (i > 200) return;\n" + FENCE, KernelDivergenceError, "has left out"),
    "collective in a branch": (
        "x[i] = 0; if (t % 32 < 16) x[i] = simd_sum(1.0f);", KernelDivergenceError, "simd_sum"),
    "two collectives": (
        "if (t % 2) x[i] = simd_sum(1.0f);\nelse x[i] = simd_max(1.0f);", KernelDivergenceError,
        r"simd_(sum|max) \(line [23]\)"),
    "collective against barrier": (
        "if (t % 2) x[i] = simd_sum(1.0f);\nelse { x[i] = 1;\n" + FENCE + "}",
        KernelDivergenceError, "neither can go on"),
    "all write one element": (
        "x[0] = i;", KernelRaceError, r"x\[0\]: thread \d+.*writes what thread \d+.*wrote"),
    "groups share device memory": (
        "x[t] = i;", KernelRaceError, "writes what thread .*wrote"),
    "plain beside atomic": (
        "device float* p = (device float*)x; if (t == 5) p[0] = 1;\n"
        "else atomic_fetch_add_explicit(&x[0], 1.0f, memory_order_relaxed);", KernelRaceError,
        "atomically changed|atomically changes"),
    "endless loop": ("while (a[0] > 0.0f) {} x[i] = 1;", KernelError, "still runs after"),
    "too much threadgroup memory": (
        "threadgroup float big[9000]; big[t] = 1; x[i] = big[t];", KernelError, "Metal has 32768"),
}  # fmt: skip


@pytest.mark.parametrize("schedule", testing.SCHEDULES)
@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_found(fault: str, schedule: str) -> None:
    source, error, message = FAULTS[fault]
    options: dict[str, Any] = {"max_steps": 100_000}
    if "atomic" in fault:
        options |= {"atomic_outputs": True, "init_value": 0}
    with pytest.raises(error, match=message) as caught:
        run(source, schedule=schedule, **options)
    assert str(caught.value).startswith("faulty: ")
    assert schedule in str(caught.value)


@pytest.mark.parametrize("schedule", testing.SCHEDULES)
def test_a_missing_barrier_is_found(schedule: str) -> None:
    """As a race, or as a read of what is not written yet, whichever comes first."""
    source = SHARED + "held[t] = a[i];\n{}x[i] = held[63 - t];"
    run(source.format(FENCE), schedule=schedule)
    with pytest.raises((KernelRaceError, KernelUninitializedError), match="held"):
        run(source.format(""), schedule=schedule)


@pytest.mark.parametrize("schedule", testing.SCHEDULES)
def test_a_missing_second_barrier_is_found(schedule: str) -> None:
    """Write after read, the commonest of all: the array is used again too early."""
    source = SHARED + "held[t] = a[i];\n" + FENCE + "float s = held[63 - t];\n{}held[t] = s;\n"
    source += FENCE + "x[i] = held[t];"
    run(source.format(FENCE), schedule=schedule)
    with pytest.raises(
        KernelRaceError, match=r"held.*\(line 5\).*\(line 6\)|\(line 6\).*\(line 5\)"
    ):
        run(source.format(""), schedule=schedule)


@pytest.mark.parametrize("schedule", testing.SCHEDULES)
def test_lanes_are_ordered_by_what_makes_them_meet(schedule: str) -> None:
    """Within a SIMD group: a simdgroup_barrier orders, a collective does unless strict, lockstep
    alone does not."""
    source = SHARED + "held[t] = a[i];\n{}\nx[i] = held[t ^ 1];"
    meet = "simdgroup_barrier(mem_flags::mem_threadgroup);"
    run(source.format(meet), schedule=schedule)
    run(source.format(meet), schedule=schedule, strict_fences=True)
    run(source.format("float s = simd_sum(1.0f);"), schedule=schedule)
    with pytest.raises(KernelRaceError):
        run(source.format("float s = simd_sum(1.0f);"), schedule=schedule, strict_fences=True)
    with pytest.raises((KernelRaceError, KernelUninitializedError)):
        run(source.format(""), schedule=schedule)


@pytest.mark.parametrize("schedule", testing.SCHEDULES)
@pytest.mark.parametrize(("flags", "fine"), [
    ("mem_none", False), ("mem_device", False), ("mem_threadgroup", True),
    ("mem_device | mem_flags::mem_threadgroup", True),
])  # fmt: skip
def test_fences_are_taken_literally_on_request(schedule: str, flags: str, fine: bool) -> None:
    source = SHARED + f"held[t] = a[i];\nthreadgroup_barrier(mem_flags::{flags});\n"
    source += "x[i] = held[63 - t];"
    run(source, schedule=schedule)
    if fine:
        run(source, schedule=schedule, strict_fences=True)
    else:
        with pytest.raises(KernelRaceError):
            run(source, schedule=schedule, strict_fences=True)


def test_options_let_faults_pass() -> None:
    run("x[i] = 1; if (i > 200) return;\n" + FENCE, schedule="forward", allow_exited=True)
    (x,) = run("x[i] = 1; x[0] = 1;", schedule="forward", races="allow")
    assert x.tolist() == [1.0] * 256
    run("if (i > 3) x[i] = 1;", schedule="forward")
    with pytest.raises(KernelUninitializedError, match="4 elements"):
        run("if (i > 3) x[i] = 1;", schedule="forward", unwritten="error")


def test_the_process_goes_on_after_a_fault() -> None:
    """A fault in the middle of a group leaves nothing behind."""
    for _ in range(20):
        with pytest.raises(KernelBoundsError):
            run("x[i] = a[i + 1];", schedule="lockstep")
        (x,) = run("x[i] = a[i];", schedule="lockstep")
        assert x.tolist() == [1.0] * 256


@pytest.mark.parametrize(("source", "message"), [
    ("x[i] = nowhere;", "kernel:2"),
    ("x[i] = 1;\n\ny[i] = 2;", "kernel:4"),
    ("double d = 1; x[i] = d;", "mb_metal_has_no_double"),
    ("float own[100000]; for (int k = 0; k < 100000; k++) own[k] = a[k % 256];\n"
     "x[i] = own[i * 300];", "private variables take"),
])  # fmt: skip
def test_what_does_not_compile_says_where(source: str, message: str) -> None:
    with pytest.raises(KernelBuildError, match=message):
        run(source, schedule="forward")


def test_lines_of_the_header_are_named_as_such() -> None:
    header = "\ninline float past(const device float* p, uint i) {\n  return p[i + 1];\n}\n"
    with pytest.raises(KernelBoundsError, match=r"\(header line 3\)"):
        run("x[i] = past(a, i);", schedule="forward", header=header)
