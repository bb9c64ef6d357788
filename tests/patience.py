"""Waiting, and time, in tests that any machine must pass, a stalling and a very fast one.

A bound for what must not hang is far above what it takes, and far below for ever::

    with not_hanging():
        scan("<" * 100_000)

Work whose cost grows with the square of its input does not end in time; a busy machine does not
matter. How fast things are is measured in benchmarks, never in tests. What depends on the time
that passes gets a `Clock` in the place of the module `time`, and what another thread or process
does is waited for with `until`. Where nothing else shows that work is small, the time of the
processor is bounded, many times over and by the speed of the machine.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

# Seconds to wait for what must come: far more than a machine that stalls needs.
LONG = 300.0


class Clock:
    """Stands in for the module `time` where it is read; goes on only when told to."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic


def slowness() -> float:
    """How many times slower this machine computes now than the one that the figures are from."""
    start = time.thread_time()
    sum(n * n for n in range(200_000))
    return max(1.0, (time.thread_time() - start) / 0.02)


@contextmanager
def cpu_seconds_below(seconds: float) -> Iterator[None]:
    """Fail when the block computes for longer, on a machine of the usual speed."""
    start = time.process_time()
    yield
    used = time.process_time() - start
    assert used < seconds or used < seconds * slowness(), f"{used:.2f} s"


def until(true: Callable[[], object], seconds: float = LONG) -> None:
    """Wait for something that another thread or process does; fail when it never does."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"still not so after {seconds:g} s"
        time.sleep(0.002)


@contextmanager
def not_hanging(seconds: float = LONG) -> Iterator[None]:
    """Fail when the block runs for longer; in the main thread only."""

    def give_up(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"still at work after {seconds:g} s: the cost grows too fast")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
