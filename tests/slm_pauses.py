"""How long an event loop was held, in terms that a busy machine does not change."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable
from typing import Any


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
        self._ticks = 0
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
            self._ticks += 1

    async def _watch(self) -> None:
        while not self._stop.is_set():
            ticks, cpu = self._ticks, time.process_time()
            await asyncio.sleep(0.001)
            used = (time.process_time() - cpu) / self._threads
            self.longest = max(self.longest, (self._ticks - ticks) * 0.001, used)
