"""How long an event loop was held, in terms that a busy machine does not change."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

# Seconds that the loop may be held for.
HELD = 0.02
# However busy the machine is: once in so many times the loop's thread gets its turns.
_TIMES = 40


class Pauses:
    """Watches the loop while something runs on it.

    A pause counts by what else went on in it: the milliseconds that a plain thread ticked (the
    loop waited while others could run), or the CPU time that this process used (something kept
    the interpreter). Of a process that simply was not scheduled neither goes on.

    Args:
        threads: of this process that compute at once outside of the interpreter's lock; their CPU
            time is shared out, for they would add up to more than the time that passed.
    """

    def __init__(self, threads: int = 1) -> None:
        self.longest = 0.0
        self._threads = threads
        self.ticks = 0
        self._stop = threading.Event()

    async def during(self, work: Awaitable[Any]) -> float:
        """The longest pause (seconds) of the loop while `work` runs."""
        control = threading.Thread(target=self._tick)
        control.start()
        watching = asyncio.create_task(self._watch())
        await asyncio.sleep(0.01)
        await work
        self._stop.set()
        await watching
        control.join()
        return self.longest

    def _tick(self) -> None:
        while not self._stop.wait(0.001):
            self.ticks += 1

    async def _watch(self) -> None:
        while not self._stop.is_set():
            ticks, cpu = self.ticks, time.process_time()
            await asyncio.sleep(0.001)
            used = (time.process_time() - cpu) / self._threads
            self.longest = max(self.longest, (self.ticks - ticks) * 0.001, used)


async def calmest(work: Callable[[], Awaitable[Any]], threads: int = 1) -> float:
    """The longest pause (seconds) while `work()` runs, the best of several times.

    A loop that is held is held each time; one whose thread the machine left waiting is not. So it
    is tried until there was no pause above `HELD`.
    """
    least = float("inf")
    for _ in range(_TIMES):
        least = min(least, await Pauses(threads).during(work()))
        if least < HELD:
            break
    return least
