"""`mx.distributed.sum_scatter` on the backends of MLX that lack it.

`nn.fully_shard` needs it for gradients. Of MLX 0.32's backends NCCL and JACCL have it; the ring,
which every machine has, and MPI raise an error. There a sum over all ranks, of which each takes
its part, gives the same, and moves about twice the bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx


@contextmanager
def scattering(group: mx.distributed.Group) -> Iterator[bool]:
    """Make `mx.distributed.sum_scatter` work inside the block.

    Args:
        group: its backend is asked; every rank has to.

    Yields:
        Whether it was replaced.
    """
    if _has_it(group):
        yield False
        return
    original = mx.distributed.sum_scatter
    mx.distributed.sum_scatter = sum_and_take
    try:
        yield True
    finally:
        mx.distributed.sum_scatter = original


def sum_and_take(
    x: mx.array, *, group: mx.distributed.Group | None = None, stream: Any = None
) -> mx.array:
    """As `mx.distributed.sum_scatter`: (N rows, ...) of each of R ranks to (N / R rows, ...)."""
    group = group or mx.distributed.init()
    rows = x.shape[0] // group.size()
    total = mx.distributed.all_sum(x, group=group, stream=stream)
    return total[group.rank() * rows : (group.rank() + 1) * rows]


def _has_it(group: mx.distributed.Group) -> bool:
    try:
        mx.eval(mx.distributed.sum_scatter(mx.zeros((group.size(), 1)), group=group))
    except RuntimeError as error:
        if "not supported" in str(error) or "not yet implemented" in str(error):
            return False
        raise
    return True
