"""Lanes: one worker thread per module, replaced when it hangs, never waited for at exit.

Why not an executor of the standard library: its threads are joined when the process ends, so one
hung module would keep the process alive; and a thread that hangs takes its place in the pool for
good. A lane's thread is a daemon. When its work is overdue it is left behind and counted, and a new
one takes over the queue, up to `max_abandoned`; then the lane takes nothing until one of them comes
back::

    lane = Lane("personality_guard")
    done = await lane.run(lambda: guard.process(text), timeout=0.2)   # the loop goes on meanwhile
    done.value, done.error, done.seconds

Time in the queue does not count against `timeout`. What the work raises is in `done.error` and is
never raised here: a StopIteration or SystemExit from a module would otherwise reach the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from mlx_companion.errors import SLMError

# An idle thread leaves after this time, so that a lane nobody closes leaves nothing behind.
_IDLE_SECONDS = 30.0
_LEAST_WAIT = 0.001


@dataclass(frozen=True)
class Done:
    """What came of a piece of work.

    Attributes:
        value: what it returned; None after an error.
        error: what it raised.
        seconds: that it took, waiting in the queue left out.
    """

    value: Any
    error: BaseException | None
    seconds: float


def ending(future: Future[Done]) -> asyncio.Future[None]:
    """A future of the running loop that is set when the other one ends, or was ended already.

    Unlike `asyncio.wrap_future`, cancelling it leaves the work alone, and work that ends after the
    loop is closed ends quietly.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()

    def set_it() -> None:
        if not ended.done():
            ended.set_result(None)

    def tell(_: Future[Done]) -> None:
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(set_it)

    future.add_done_callback(tell)
    return ended


class LaneFullError(SLMError):
    """As many threads of a module hang as may; it takes no more work."""


class _Job:
    """A piece of work, its limit and its result."""

    def __init__(self, work: Callable[[], Any], timeout: float) -> None:
        self.work = work
        self.timeout = timeout
        self.future: Future[Done] = Future()
        self.started: float | None = None

    def run(self) -> None:
        began = time.perf_counter()
        value, error = None, None
        try:
            value = self.work()
        except BaseException as raised:
            error = raised
        self.future.set_result(Done(value, error, time.perf_counter() - began))

    def overdue(self, now: float) -> bool:
        return self.started is not None and now - self.started >= self.timeout


class Lane:
    """One thread at a time for one module; see the module.

    Args:
        name: of the threads.
        max_abandoned: threads that may hang.
    """

    def __init__(self, name: str, max_abandoned: int = 2) -> None:
        self.name = name
        self._max_abandoned = max_abandoned
        self._changed = threading.Condition()
        self._queue: deque[_Job] = deque()
        self._thread: threading.Thread | None = None
        self._current: _Job | None = None
        self._abandoned: set[threading.Thread] = set()
        self._closed = False

    @property
    def abandoned(self) -> int:
        """Threads that hang in work nobody waits for."""
        with self._changed:
            return len(self._abandoned)

    @property
    def full(self) -> bool:
        """No thread is left and no new one may be started."""
        with self._changed:
            return self._is_full()

    async def run(self, work: Callable[[], Any], timeout: float) -> Done:
        """Do the work on the lane's thread.

        Args:
            work: called once, without arguments.
            timeout: seconds from its start.

        Returns:
            What came of it, an error included.

        Raises:
            TimeoutError: it took too long; its thread is left behind.
            LaneFullError: too many threads hang already.
            asyncio.CancelledError: the caller was cancelled. Work that has begun goes on until it
                ends or is overdue.
        """
        job = self._submit(work, timeout)
        ended = ending(job.future)
        try:
            while not job.future.done():
                await asyncio.wait({ended}, timeout=self._patience(job))
                if self._replace_overdue() is job and not job.future.done():
                    raise TimeoutError(f"no answer within {timeout:g} s")
            return job.future.result()
        finally:
            job.future.cancel()
            self._forget(job)

    def post(self, work: Callable[[], Any], timeout: float) -> Future[Done]:
        """As `run`, without waiting; `reap` then looks after what hangs.

        Raises:
            LaneFullError: too many threads hang already.
        """
        return self._submit(work, timeout).future

    def reap(self) -> bool:
        """Leave a thread behind whose work is overdue; whether there was one."""
        return self._replace_overdue() is not None

    def close(self) -> None:
        """Let the threads go when they are done; what waits in the queue is dropped."""
        with self._changed:
            self._closed = True
            for job in self._queue:
                job.future.cancel()
            self._queue.clear()
            self._changed.notify_all()

    def _submit(self, work: Callable[[], Any], timeout: float) -> _Job:
        job = _Job(work, timeout)
        self._replace_overdue()
        with self._changed:
            if self._closed:
                raise SLMError(f"{self.name} was closed; make a new orchestrator")
            if self._is_full():
                raise LaneFullError(
                    f"{len(self._abandoned)} threads of {self.name} hang; it rests till one returns"
                )
            self._queue.append(job)
            self._ensure_thread()
            self._changed.notify()
        return job

    def _patience(self, job: _Job) -> float:
        """Seconds until the work at hand, this job or the one before it, is overdue."""
        now = time.monotonic()
        with self._changed:
            ahead = job if job.started is not None else self._current
            if ahead is None or ahead.started is None:
                return job.timeout
            return max(_LEAST_WAIT, ahead.started + ahead.timeout - now)

    def _replace_overdue(self) -> _Job | None:
        """Leave a thread behind whose work is overdue. Returns that work."""
        now = time.monotonic()
        with self._changed:
            job = self._current
            if job is None or not job.overdue(now):
                return None
            if self._thread is not None:
                self._abandoned.add(self._thread)
            self._thread = self._current = None
            if self._is_full():
                for waiting in self._queue:
                    error = LaneFullError(f"too many threads of {self.name} hang")
                    if waiting.future.set_running_or_notify_cancel():
                        waiting.future.set_result(Done(None, error, 0.0))
                self._queue.clear()
            elif self._queue:
                self._ensure_thread()
            return job

    def _is_full(self) -> bool:
        return self._thread is None and len(self._abandoned) >= self._max_abandoned

    def _ensure_thread(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=f"slm-{self.name}", daemon=True)
            self._thread.start()

    def _forget(self, job: _Job) -> None:
        """Take a job that nobody waits for any more out of the queue."""
        with self._changed, contextlib.suppress(ValueError):
            self._queue.remove(job)

    def _work(self) -> None:
        me = threading.current_thread()
        while (job := self._next(me)) is not None:
            job.run()
            # Or the last result would live as long as the thread is idle.
            del job

    def _next(self, me: threading.Thread) -> _Job | None:
        with self._changed:
            if me in self._abandoned:
                self._abandoned.discard(me)
                return None
            self._current = None
            while True:
                while self._queue:
                    job = self._queue.popleft()
                    if job.future.set_running_or_notify_cancel():
                        job.started = time.monotonic()
                        self._current = job
                        return job
                if self._closed or not self._changed.wait(_IDLE_SECONDS):
                    if self._queue and not self._closed:
                        continue
                    self._thread = None
                    return None
