"""One comparison: an op of `mlx_companion.kernels` beside what a person would compose of MLX's.

    Case("patch_pool", "B 4, N 4096, D 384, max", naive=lambda: [...], ours=lambda: [...])

Both callables take nothing and return the arrays to compute: the value, and gradients where the op
has them. Their inputs are made, and evaluated, when the case is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx

Work = Callable[[], Sequence[mx.array]]


@dataclass(frozen=True)
class Case:
    """One op at one size.

    Attributes:
        op: its name.
        label: the size, for people.
        naive, ours: the two ways.
        tolerance: of the check, as a share of the largest value of each array.
        memory_aim: how many times less peak memory ours is to need; None where that is no aim.
    """

    op: str
    label: str
    naive: Work
    ours: Work
    tolerance: float = 1e-4
    memory_aim: float | None = None
