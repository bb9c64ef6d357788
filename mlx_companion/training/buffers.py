"""How much freed memory MLX keeps for reuse while training.

On Linux CPUs MLX keeps only 32 MB, so that nearly every operation on a few megabytes gets fresh
pages from the system; half of a step's elementwise time was page faults. On GPUs it keeps as much
as it ever used, which grows as batches of ever new shapes come by. Both are set to a share of the
machine's memory for the time of a run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx

# A step's largest buffers come back in the next step; more than this is only fragments.
_SHARE = 0.125
_LEAST = 512 * 10**6
_MOST = 4 * 10**9


@contextmanager
def buffer_cache(limit: int | None = None) -> Iterator[int]:
    """Bound MLX's cache of freed buffers inside the block, and empty it at the end.

    Args:
        limit: bytes; None for an eighth of the machine's memory, between 0.5 and 4 GB.

    Yields:
        The limit.
    """
    import psutil

    if limit is None:
        limit = int(min(_MOST, max(_LEAST, _SHARE * psutil.virtual_memory().total)))
    before = mx.set_cache_limit(limit)
    try:
        yield limit
    finally:
        mx.set_cache_limit(before)
        mx.clear_cache()
