"""Whether an entropy is over its limits, exactly, without double precision on the device.

Entropies are float32, limits are Python's doubles. With rd(x) the largest float32 not above x, and
fl(x) the nearest:

    H > threshold      is  H > rd(threshold), as no float32 lies between the two.
    H - H' > rise      is  s > r or (s = r and e > e'), with s + e = H - H' exactly (Knuth's
                       two-sum), s = fl(H - H'), r = fl(rise) and e' = rd(rise - r): rounding
                       keeps order, so where s and r differ they decide, and where they are equal
                       what was rounded off does.

Double precision decides the same unless it has to round the difference itself, of entropies that
are 2^29 apart.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import mlx.core as mx
import numpy as np


class ByteEntropy(NamedTuple):
    """What `byte_entropy` returns.

    Attributes:
        entropy: (...) float32, nats.
        over: (...) bool, the decision; None when no limit was given.
    """

    entropy: mx.array
    over: mx.array | None


class Limits(NamedTuple):
    """What an entropy is compared with, nats; None for nothing."""

    threshold: float | None
    rise: float | None

    @property
    def decides(self) -> bool:
        return self.threshold is not None or self.rise is not None


def decide(entropy: mx.array, limits: Limits) -> mx.array | None:
    """The decision along the last axis of entropies (..., L) float32: (..., L) bool, or None."""
    if not limits.decides:
        return None
    threshold, nearest, rest = rounded(limits)
    over = entropy > threshold
    if limits.rise is None:
        return over
    if not entropy.ndim:
        return mx.zeros((), dtype=mx.bool_)
    h, before = entropy[..., 1:], entropy[..., :-1]
    s = h - before
    taken = s - h
    error = (h - (s - taken)) - (before + taken)
    risen = (s > nearest) | ((s == nearest) & (error > rest))
    first = mx.zeros((*entropy.shape[:-1], 1), dtype=mx.bool_)
    return over & mx.concatenate([first, risen], axis=-1)


@lru_cache(maxsize=64)
def rounded(limits: Limits) -> tuple[float, float, float]:
    """rd(threshold), r and e' of the formulas above; -inf for limits that are not given."""
    lowest = -float("inf")
    threshold = lowest if limits.threshold is None else _down(limits.threshold)
    if limits.rise is None:
        return threshold, lowest, lowest
    nearest = float(_float32(limits.rise))
    rest = limits.rise - nearest if np.isfinite(nearest) else 0.0
    return threshold, nearest, _down(rest)


def _float32(x: float) -> np.float32:
    with np.errstate(over="ignore"):
        return np.float32(x)


def _down(x: float) -> float:
    """The largest float32 that is not above x."""
    nearest = _float32(x)
    if float(nearest) <= x:
        return float(nearest)
    with np.errstate(over="ignore"):
        return float(np.nextafter(nearest, np.float32(-np.inf)))
