"""`patch_pool` beside patches that are cut out, padded to the longest one, and masked."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import mlx.core as mx
import numpy as np

from mlx_companion.kernels.patch_pool import patch_pool

from .case import Case
from .patch_rows import FULL, QUICK, Size, normal, patch_ids

Pool = Callable[[mx.array], mx.array]


def cases(quick: bool) -> list[Case]:
    """The maximum, which the models use, value and gradient, at all sizes; the mean at one."""
    return [
        *[_case(size, "max") for size in (QUICK if quick else FULL)],
        _case(QUICK[0], "mean"),
    ]


def _case(size: Size, mode: str) -> Case:
    return Case(
        "patch_pool",
        f"{size.label}, {mode}",
        naive=lambda: _with_gradient(size, _padded(size, mode)),
        ours=lambda: _with_gradient(
            size,
            lambda h: patch_pool(h, *patch_ids_of(size), mode=mode),  # type: ignore[arg-type]
        ),
    )


def _with_gradient(size: Size, pool: Pool) -> list[mx.array]:
    h, slope = _inputs(size)

    def loss(h: mx.array) -> tuple[mx.array, mx.array]:
        pooled = pool(h)
        return (pooled * slope).sum(), pooled

    (_, pooled), gradient = mx.value_and_grad(loss)(h)
    return [pooled, gradient]


def _padded(size: Size, mode: str) -> Pool:
    places, shown = _places(size)
    rows = mx.arange(size.B)[:, None, None]

    def pool(h: mx.array) -> mx.array:
        cut = h[rows, places]
        if mode == "mean":
            total = mx.where(shown, cut, 0.0).sum(axis=2)
            return total / mx.maximum(shown.sum(axis=2), 1)
        pooled = mx.where(shown, cut, -mx.inf).max(axis=2)
        return mx.where(shown.any(axis=2), pooled, 0.0)

    return pool


@lru_cache(maxsize=4)
def patch_ids_of(size: Size) -> tuple[mx.array, int]:
    """See `patch_ids`; made once."""
    return patch_ids(size)


@lru_cache(maxsize=4)
def _inputs(size: Size) -> tuple[mx.array, mx.array]:
    # No number occurs twice in a column: of two largest, MLX's maximum gives each half the slope.
    order = mx.argsort(normal(size.B, size.N, size.D), axis=1)
    h = order.astype(mx.float32) / size.N
    mx.eval(h)
    return h, normal(size.B, patch_ids_of(size)[1], size.D)


@lru_cache(maxsize=4)
def _places(size: Size) -> tuple[mx.array, mx.array]:
    """Bytes of each patch (B, P, longest), and which of these are there (B, P, longest, 1)."""
    ids, count = patch_ids_of(size)
    lengths = np.stack([np.bincount(row, minlength=count) for row in np.array(ids)])
    begins = np.cumsum(lengths, axis=1) - lengths
    steps = np.arange(lengths.max())
    places = np.minimum(begins[..., None] + steps, size.N - 1)
    return mx.array(places), mx.array((steps < lengths[..., None])[..., None])
