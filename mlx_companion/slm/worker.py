"""One thread on which all MLX work of a backbone is done.

MLX keeps state per thread, and its Python module takes the interpreter's lock when a thread that
used it ends. A thread that ends while the interpreter is shutting down then aborts the process
("terminate called without an active exception"; seen in one of six exits with a thread pool). So
these threads never end by themselves: they wait, and are gone with the process. The thread of a
worker that nobody holds any more serves the next one::

    worker = Worker("slm-backbone")
    worker.submit(work).result()
"""

from __future__ import annotations

import atexit
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")

_Job = tuple[Future[Any], Callable[[], Any]]
# At exit a running forward pass or reply gets so many seconds to end.
_PATIENCE = 10.0

_workers: weakref.WeakSet[Worker] = weakref.WeakSet()
_idle: SimpleQueue[SimpleQueue[_Job]] = SimpleQueue()
_ending = threading.Event()


class Worker:
    """A thread that does one job after another; it starts with the first.

    Args:
        name: of the thread, when it starts one.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: SimpleQueue[_Job] | None = None
        self._lock = threading.Lock()

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Do `work` after what was submitted before; its result or error is in the future."""
        future: Future[T] = Future()
        with self._lock:
            if self._jobs is None:
                self._jobs = self._start()
        self._jobs.put((future, work))
        return future

    def settle(self, patience: float) -> None:
        """Wait until nothing runs."""
        if self._jobs is not None:
            marker: Future[None] = Future()
            self._jobs.put((marker, _nothing))
            try:
                marker.exception(patience)
            except BaseException:
                return

    def _start(self) -> SimpleQueue[_Job]:
        try:
            jobs = _idle.get_nowait()
        except Empty:
            jobs = SimpleQueue()
            # The thread knows the queue only, so that the worker can be collected.
            arguments = (jobs,)
            threading.Thread(
                target=_work_through, args=arguments, name=self._name, daemon=True
            ).start()
        weakref.finalize(self, _idle.put, jobs).atexit = False
        _workers.add(self)
        return jobs


def _work_through(jobs: SimpleQueue[_Job]) -> NoReturn:
    while True:
        future, work = jobs.get()
        if _ending.is_set() and work is not _nothing:
            future.cancel()
        if not future.set_running_or_notify_cancel():
            continue
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)
        # Not kept until the next job: they may hold a model.
        del future, work


def _nothing() -> None:
    """Done when all before it is done."""


@atexit.register
def _settle_all() -> None:
    _ending.set()
    for worker in list(_workers):
        worker.settle(_PATIENCE)
