"""Lanes: one worker thread per module, replaced when it hangs, never waited for at exit.

Why not an executor of the standard library: its threads are joined when the process ends, so one
hung module would keep the process alive; and a thread that hangs takes its place in the pool for
good. Here threads are daemons. When a lane's work is overdue its thread is left behind and counted,
and another one takes over the queue, up to `max_abandoned`; then the lane takes nothing until one
of them comes back::

    lane = Lane("personality_guard")
    done = await lane.run(lambda: guard.process(text), timeout=0.2)   # the loop goes on meanwhile
    done.value, done.error, done.seconds

Time in the queue does not count against `timeout`. What the work raises is in `done.error` and is
never raised here: a StopIteration or SystemExit from a module would otherwise reach the event loop.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from mlx_companion.errors import SLMError

_LEAST_WAIT = 0.001
# At exit, work that is being done gets so many seconds to end.
_EXIT_SECONDS = 1.0


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


class _Threads:
    """Threads that are lent and come back, and never end.

    A thread that has used MLX and ends while the interpreter shuts down aborts the process (see
    `worker.py`), so none of these ends: an idle one waits for whoever needs it next.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._idle: list[SimpleQueue[tuple[str, Callable[[], None]]]] = []
        self._busy = 0

    def lend(self, name: str, work: Callable[[], None]) -> None:
        """Do `work`, which raises nothing, on an idle thread or on a new one."""
        with self._changed:
            self._busy += 1
            inbox = self._idle.pop() if self._idle else None
        if inbox is None:
            inbox = SimpleQueue()
            try:
                threading.Thread(target=self._serve, args=(inbox,), daemon=True).start()
            except BaseException:
                with self._changed:
                    self._busy -= 1
                raise
        inbox.put((name, work))

    def settle(self) -> None:
        """At exit: let work that is about to end do so, and wait for no other."""
        with self._changed:
            self._changed.wait_for(lambda: self._busy == 0, _EXIT_SECONDS)

    def forget(self) -> None:
        """After a fork: the child has none of them."""
        self._changed = threading.Condition()
        self._idle.clear()
        self._busy = 0

    def _serve(self, inbox: SimpleQueue[tuple[str, Callable[[], None]]]) -> None:
        me = threading.current_thread()
        while True:
            me.name, work = inbox.get()
            work()
            # Or the lane would live as long as the thread is idle.
            del work
            me.name = "slm-idle"
            with self._changed:
                self._idle.append(inbox)
                self._busy -= 1
                self._changed.notify_all()


_threads = _Threads()
atexit.register(_threads.settle)
os.register_at_fork(after_in_child=_threads.forget)


class _Job:
    """A piece of work, its limit and its result."""

    def __init__(self, work: Callable[[], Any], timeout: float) -> None:
        self.work = work
        self.timeout = timeout
        self.future: Future[Done] = Future()
        self.started: float | None = None
        self.left_behind = False

    def run(self) -> None:
        began = time.perf_counter()
        value, error = None, None
        try:
            value = self.work()
        except BaseException as raised:
            error = raised
        self.future.set_result(Done(value, error, time.perf_counter() - began))

    def overdue(self, now: float) -> bool:
        late = self.started is not None and now - self.started >= self.timeout
        return late and not self.future.done()


class Lane:
    """One thread at a time for one module; see the module.

    Args:
        name: of the threads.
        max_abandoned: threads that may hang.
    """

    def __init__(self, name: str, max_abandoned: int = 2) -> None:
        self.name = name
        self._max_abandoned = max_abandoned
        self._lock = threading.Lock()
        self._queue: deque[_Job] = deque()
        self._turn: object | None = None
        self._current: _Job | None = None
        self._abandoned: set[object] = set()
        self._closed = False

    @property
    def abandoned(self) -> int:
        """Threads that hang in work nobody waits for."""
        with self._lock:
            return len(self._abandoned)

    @property
    def full(self) -> bool:
        """No thread is left and no new one may be started."""
        with self._lock:
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
                # Whoever else looked at the lane may have left it behind already.
                self.reap()
                if job.left_behind and not job.future.done():
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
        with self._lock:
            job = self._current
            if job is None or not job.overdue(time.monotonic()):
                return False
            job.left_behind = True
            self._abandoned.add(self._turn)
            self._turn = self._current = None
            if self._is_full():
                self._refuse_all(f"too many threads of {self.name} hang")
            elif self._queue:
                self._ensure_thread()
            return True

    def close(self) -> None:
        """Take no more work; what waits in the queue is dropped."""
        with self._lock:
            self._closed = True
            for job in self._queue:
                job.future.cancel()
            self._queue.clear()

    def _submit(self, work: Callable[[], Any], timeout: float) -> _Job:
        job = _Job(work, timeout)
        self.reap()
        with self._lock:
            if self._closed:
                raise SLMError(f"{self.name} was closed; make a new orchestrator")
            if self._is_full():
                raise LaneFullError(
                    f"{len(self._abandoned)} threads of {self.name} hang; it rests till one returns"
                )
            self._queue.append(job)
            self._ensure_thread()
        return job

    def _patience(self, job: _Job) -> float:
        """Seconds until the work at hand, this job or the one before it, may be overdue.

        Never more than this job's own limit: the one before it may end any moment, and then this
        one starts without its caller being told.
        """
        now = time.monotonic()
        with self._lock:
            ahead = job if job.started is not None else self._current
            if ahead is None or ahead.started is None:
                return job.timeout
            return min(job.timeout, max(_LEAST_WAIT, ahead.started + ahead.timeout - now))

    def _refuse_all(self, why: str) -> None:
        """Tell those who wait that there is no thread for them."""
        for waiting in self._queue:
            if waiting.future.set_running_or_notify_cancel():
                waiting.future.set_result(Done(None, LaneFullError(why), 0.0))
        self._queue.clear()

    def _is_full(self) -> bool:
        return self._turn is None and len(self._abandoned) >= self._max_abandoned

    def _ensure_thread(self) -> None:
        if self._turn is None:
            self._turn = turn = object()
            try:
                _threads.lend(f"slm-{self.name}", lambda: self._work(turn))
            except RuntimeError as error:
                # The system has no thread left; who waits would wait for ever.
                self._turn = None
                self._refuse_all(f"no thread can be started for {self.name} ({error})")

    def _forget(self, job: _Job) -> None:
        """Take a job that nobody waits for any more out of the queue."""
        with self._lock, contextlib.suppress(ValueError):
            self._queue.remove(job)

    def _work(self, turn: object) -> None:
        """Empty the queue; `turn` stands for this thread as long as it is at it."""
        while (job := self._next(turn)) is not None:
            job.run()

    def _next(self, turn: object) -> _Job | None:
        with self._lock:
            if turn in self._abandoned:
                self._abandoned.discard(turn)
                return None
            while self._queue:
                job = self._queue.popleft()
                if job.future.set_running_or_notify_cancel():
                    job.started = time.monotonic()
                    self._current = job
                    return job
            self._turn = self._current = None
            return None
