"""The race detector against an oracle: random programs of reads, writes, atomics and fences.

A program is data: one kernel interprets it, so that hundreds run in a second. The oracle compares
every pair of accesses by the definition, which no schedule enters: two accesses race when they
touch one element, not both are reads or atomic, and no fence that both threads pass lies between.
"""

from __future__ import annotations

from itertools import combinations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mlx_companion  # noqa: F401
from mlx_companion.errors import KernelRaceError
from mlx_companion.kernels import testing

STEPS, GROUP, THREADS, CELLS = 6, 96, 192, 3
READ, WRITE, CHANGE, LOAD = 1, 2, 3, 4
NO_FENCE, BARRIER, SIMD_BARRIER, COLLECTIVE = 0, 1, 2, 3
# Two SIMD groups and a bit of a third in each of two threadgroups.
WHO = [0, 1, 33, 64, GROUP, GROUP + 1, GROUP + 33]
pytestmark = pytest.mark.usefixtures("kernel_bench")

INTERPRETER = """
    uint i = thread_position_in_grid.x;
    device int* plain = (device int*)cells;
    int seen = 0;
    for (int s = 0; s < STEPS; s++) {
        int op = program[(s * THREADS + i) * 2], c = program[(s * THREADS + i) * 2 + 1];
        if (op == 1) seen += plain[c];
        else if (op == 2) plain[c] = s;
        else if (op == 3) atomic_fetch_add_explicit(&cells[c], 1, memory_order_relaxed);
        else if (op == 4) seen += atomic_load_explicit(&cells[c], memory_order_relaxed);
        int fence = fences[s];
        if (fence == 1) threadgroup_barrier(mem_flags::mem_device);
        else if (fence == 2) simdgroup_barrier(mem_flags::mem_device);
        else if (fence == 3) seen += simd_sum(0);
    }
    ((device int*)sink)[i] = seen;
"""
Event = tuple[int, int, int, int]  # step, thread, operation, cell


def races(events: list[Event], fences: list[int]) -> bool:
    """Whether any two accesses race, by the definition."""

    def times(step: int, kinds: set[int]) -> int:
        return sum(f in kinds for f in fences[:step])

    for (s, t, op, c), (s2, t2, op2, c2) in combinations(events, 2):
        harmless = {op, op2} <= {READ, LOAD} or {op, op2} <= {CHANGE, LOAD}
        if t == t2 or c != c2 or harmless:
            continue
        if t // GROUP == t2 // GROUP:
            if times(s, {BARRIER}) != times(s2, {BARRIER}):
                continue
            same_simd = t % GROUP // 32 == t2 % GROUP // 32
            meet = {SIMD_BARRIER, COLLECTIVE}
            if same_simd and times(s, meet) != times(s2, meet):
                continue
        return True
    return False


def found(events: list[Event], fences: list[int], schedule: str) -> bool:
    """Whether the bench reports a race."""
    program = np.zeros((STEPS, THREADS, 2), np.int32)
    for s, t, op, c in events:
        program[s, t] = op, c
    kernel = testing.metal_kernel(
        "interpreter", ["program", "fences"], ["cells", "sink"], INTERPRETER,
        atomic_outputs=True, schedule=schedule,
    )  # fmt: skip
    try:
        kernel(
            inputs=[mx.array(program), mx.array(np.array([*fences, 0, 0], np.int32))],
            template=[("STEPS", STEPS), ("THREADS", THREADS)], grid=(THREADS, 1, 1),
            threadgroup=(GROUP, 1, 1), output_shapes=[(CELLS,), (THREADS,)],
            output_dtypes=[mx.int32, mx.int32], init_value=0,
        )  # fmt: skip
    except KernelRaceError:
        return True
    return False


programs = st.dictionaries(
    st.tuples(st.integers(0, STEPS - 1), st.sampled_from(WHO)),
    st.tuples(st.sampled_from([READ, WRITE, CHANGE, LOAD]), st.integers(0, CELLS - 1)),
    min_size=1,
    max_size=7,
)
fences_of = st.lists(st.integers(0, 3), min_size=STEPS, max_size=STEPS)


@pytest.mark.parametrize("schedule", testing.SCHEDULES)
@settings(
    max_examples=150, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(program=programs, fences=fences_of)
def test_exactly_the_races_are_found(
    schedule: str, program: dict[tuple[int, int], tuple[int, int]], fences: list[int]
) -> None:
    events = [(s, t, op, c) for (s, t), (op, c) in program.items()]
    assert found(events, fences, schedule) == races(events, fences)


@pytest.mark.parametrize("schedule", [*testing.SCHEDULES, "random:2", "random:3"])
def test_many_readers_before_a_writer(schedule: str) -> None:
    """Any of many readers may be the one that races; two marks a piece of memory must do."""
    for late in WHO:
        events = [(0, t, READ, 0) for t in WHO if t != late and t < GROUP]
        fences = [BARRIER, NO_FENCE, NO_FENCE, NO_FENCE, NO_FENCE, NO_FENCE]
        write = (2, 64, WRITE, 0)
        assert not found([*events, write], fences, schedule)
        # One more reader after the barrier, or in the other group, makes it a race.
        if late != 64:
            assert found([*events, (1, late, READ, 0), write], fences, schedule)
