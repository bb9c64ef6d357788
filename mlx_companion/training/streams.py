"""All cores of a Linux CPU at once: parts of a micro-batch side by side.

MLX runs the operations of one CPU stream one after the other, and outside of the matrix products
each of them on one core. Two halves of a micro-batch on two streams use two cores for everything
(measured on 2 cores: 1.5 times the speed of one stream with a BLAS of two threads). The BLAS must
then use one thread per call: an OpenBLAS built on pthreads is told so for the time of the run; one
built on OpenMP takes it only from the environment (`OMP_NUM_THREADS=1`) and is left alone
otherwise, with one stream.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx

from mlx_companion.runtime.cores import available_cores

_PTHREADS, _OPENMP = 1, 2


@contextmanager
def parallel_streams(wanted: int | None = None) -> Iterator[list[mx.Stream]]:
    """Streams to run parts of the work on, the default one first.

    Args:
        wanted: how many; None for one per core where that is faster (see above), else one.
    """
    default = mx.default_stream(mx.default_device())
    count = _useful_streams() if wanted is None else wanted
    streams = [default, *(_extra_stream(i) for i in range(1, count))]
    library = ctypes.CDLL(None) if count > 1 else None
    adjustable = library is not None and _kind(library) == _PTHREADS
    before = library.openblas_get_num_threads() if library is not None and adjustable else 0
    try:
        if library is not None and adjustable:
            library.openblas_set_num_threads(1)
        yield streams
    finally:
        if library is not None and adjustable:
            library.openblas_set_num_threads(before)


_extra: dict[int, mx.Stream] = {}


def _extra_stream(number: int) -> mx.Stream:
    # A stream keeps its thread until the process ends, so the same ones are used again.
    if number not in _extra:
        _extra[number] = mx.new_stream(mx.default_device())
    return _extra[number]


def _useful_streams() -> int:
    if mx.default_device().type != mx.DeviceType.cpu or sys.platform == "darwin":
        return 1
    library = ctypes.CDLL(None)
    kind = _kind(library)
    single = kind == _PTHREADS or (kind == _OPENMP and _openmp_threads(library) == 1)
    return available_cores() if single else 1


def _kind(library: ctypes.CDLL) -> int:
    """How the process's OpenBLAS runs threads; 0 without one."""
    return library.openblas_get_parallel() if hasattr(library, "openblas_get_parallel") else 0


def _openmp_threads(library: ctypes.CDLL) -> int:
    """Threads that OpenMP would use from a thread of MLX's; each new thread starts with it."""
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(library.omp_get_max_threads()))
    thread.start()
    thread.join()
    return found[0]
