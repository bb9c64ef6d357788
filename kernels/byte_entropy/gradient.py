"""The gradient of the entropy, for the plain form and the kernels alike.

With m = max of the logits z and Z = sum of e^(z - m), ln p = z - m - ln Z and

    dH / dz = -p (ln p + H)

so that one pass over the logits does it, given H, m and ln Z of each row. m and ln Z are kept
apart: beside logits of thousands their sum would lose ln Z.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import mlx.core as mx

from mlx_companion.kernels.fast_math import LOWEST, exp_below, wanted

# Logits at a time: half a megabyte for each intermediate array, which caches hold.
PIECE = 1 << 17

# From logits (N, V) to H, m and ln Z (N, 1) float32, and whatever else.
Forward = Callable[[mx.array], tuple[mx.array, ...]]


@lru_cache(maxsize=64)
def with_gradient(forward: Forward) -> Forward:
    """`forward` with this gradient of its first result; the others have none."""

    function: Any = mx.custom_function(forward)

    @function.vjp
    def vjp(primals: Any, cotangents: Any, outputs: Any) -> Any:
        logits = primals[0] if isinstance(primals, tuple) else primals
        return in_pieces(_slope, logits, *outputs[:3], cotangents[0])[0]

    result: Forward = function
    return result


def in_pieces(
    function: Callable[..., tuple[mx.array, ...]], logits: mx.array, *others: mx.array
) -> tuple[mx.array, ...]:
    """`function` of some rows at a time, of logits (N, V) and others (N, 1); results joined."""
    count, V = logits.shape
    step = max(1, PIECE // V) if wanted() else count
    if count <= step:
        return function(logits, *others)
    results: list[tuple[mx.array, ...]] = []
    for at in range(0, count, step):
        rows = [x[at : at + step] for x in (logits, *others)]
        if results:
            # One after the other, so that the memory of one piece serves the next.
            rows[0] = mx.depends(rows[0], results[-1][0])
        results.append(function(*rows))
    return tuple(mx.concatenate(list(parts)) for parts in zip(*results, strict=True))


def raw_exp(x: mx.array) -> mx.array:
    """e^x for x from `LOWEST` to 0, by whatever is fast here."""
    return exp_below(x) if wanted() else mx.exp(x)


def _slope(
    logits: mx.array, entropy: mx.array, largest: mx.array, log_total: mx.array, slope: mx.array
) -> tuple[mx.array]:
    # On CPUs compiled code is slow where arrays are broadcast, so only the middle is compiled.
    log_p = logits.astype(mx.float32) - largest - log_total
    return ((_p_times(log_p, log_p + entropy) * -slope).astype(logits.dtype),)


@mx.compile
def _p_times(log_p: mx.array, x: mx.array) -> mx.array:
    # An impossible value has neither a probability nor a slope: no 0 * inf.
    return raw_exp(mx.maximum(log_p, LOWEST)) * mx.maximum(x, LOWEST)
