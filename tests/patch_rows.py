"""Rows of patch numbers for tests: patches of unequal length, padding, and gaps."""

from __future__ import annotations

import numpy as np


def ragged(rng: np.random.Generator, B: int, N: int, opening: float = 0.4) -> np.ndarray:
    """(B, N) patch numbers from 0 up; each byte opens a patch with that probability."""
    opens = rng.random((B, N)) < opening
    opens[:, :1] = True
    return (np.cumsum(opens, axis=1) - 1).astype(np.int32)


def padded(rng: np.random.Generator, ids: np.ndarray, P: int) -> np.ndarray:
    """The same with the end of each row, a different one for each, outside [0, P)."""
    ids = ids.copy()
    for row in ids:
        kept = int(rng.integers(len(row) // 2, len(row) + 1))
        row[kept:] = rng.choice([-1, P, P + 7])
    return ids


def with_gaps(rng: np.random.Generator, ids: np.ndarray, P: int) -> np.ndarray:
    """The same with bytes left out anywhere, and some patches left without bytes."""
    ids = ids.copy()
    ids[rng.random(ids.shape) < 0.2] = rng.choice([-5, -1, P, P + 1])
    for patch in range(0, P, 4):
        ids[ids == patch] = -1
    return ids
