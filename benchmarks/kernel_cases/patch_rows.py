"""Shapes of byte models, and rows of patches of unequal length, for the patch ops' cases."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np


@dataclass(frozen=True)
class Size:
    """B rows of N bytes, D wide in H heads; patches of `mean` bytes, J vectors each."""

    B: int
    N: int
    D: int
    H: int
    J: int = 2
    mean: float = 5.0

    @property
    def label(self) -> str:
        return f"B {self.B}, N {self.N}, D {self.D}, H {self.H}, {self.mean:g} bytes per patch"


# The preset "small" (D 96, 1024 bytes) and "base" (D 512), one row and a batch, and one larger.
QUICK = [Size(1, 1024, 96, 2), Size(8, 1024, 96, 2)]
FULL = [*QUICK, Size(1, 512, 512, 8), Size(4, 2048, 512, 8), Size(1, 8192, 512, 8)]


def patch_ids(size: Size) -> tuple[mx.array, int]:
    """(B, N) int32 and P. Lengths are geometric: mostly short, a few long."""
    opens = np.random.default_rng(0).random((size.B, size.N)) < 1 / size.mean
    opens[:, 0] = True
    ids = (np.cumsum(opens, axis=1) - 1).astype(np.int32)
    return mx.array(ids), int(ids.max()) + 1


def normal(*shape: int) -> mx.array:
    """Random numbers, computed."""
    x = mx.random.normal(shape)
    mx.eval(x)
    return x
