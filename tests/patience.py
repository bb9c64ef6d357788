"""A bound for what must not hang: far above what it takes, far below for ever.

    with not_hanging():
        scan("<" * 100_000)

Work whose cost grows with the square of its input does not end in time; a busy machine does not
matter. How fast things are is measured in benchmarks, never in tests.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def not_hanging(seconds: float = 120.0) -> Iterator[None]:
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
