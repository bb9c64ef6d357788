"""Memory between the operations of a step: what MLX keeps, and what the system gets back.

On GPUs MLX keeps every freed buffer for reuse, which grows as batches of ever new shapes come by;
here the cache is bounded for the time of a run. On Linux CPUs its cache is small and the C library
hands buffers back to the system at once, which costs more than many operations themselves; there
the C library is told to keep them (see `runtime/allocator.py`) and to give them back at the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx

from mlx_companion.runtime.allocator import keep_freed_memory, return_freed_memory

# A step's largest buffers come back in the next step; more than this is fragments.
GPU_CACHE_BYTES = 2 * 10**9


@contextmanager
def buffers_for_training() -> Iterator[None]:
    """Set the policy inside the block, and give freed memory back at its end."""
    on_cpu = mx.default_device().type == mx.DeviceType.cpu
    if on_cpu:
        keep_freed_memory()
    before = None if on_cpu else mx.set_cache_limit(GPU_CACHE_BYTES)
    try:
        yield
    finally:
        if before is not None:
            mx.set_cache_limit(before)
        mx.clear_cache()
        return_freed_memory()
