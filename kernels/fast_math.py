"""Exponentials made of the operations that MLX's Linux CPU backend vectorizes.

That backend computes `exp` (and with it sigmoid, SiLU and softmax) one element at a time, at 8 to
13 ns each; additions and products take 0.1 ns. Here `exp` is range reduction and a polynomial,
relative error below 4e-6 in its range.

    wanted()                            whether this machine gains
    exp(x), softmax(x)                  with gradients; MLX's own where nothing is gained
    raw_exp(x), raw_sigmoid(x), ...     the bare operations, without a gradient: for use inside of
                                        functions that have one of their own
"""

from __future__ import annotations

import sys
from typing import Any

import mlx.core as mx

# exp(-60) is 1e-26: nothing beside a softmax's largest term, and far from denormal numbers,
# which some processors handle a hundred times slower.
LOWEST = -60.0
_LOG2_E = 1.4426950408889634
# Adding 1.5 * 2^23 rounds a float32 to a whole number, which then sits in its lowest bits.
_ROUND = 12582912.0
# Chebyshev fit of 2^f for |f| <= 1/2, lowest power first; relative error 6e-8.
_POWERS = (
    1.0000000522917607,
    0.6931472000679483,
    0.24022211657948608,
    0.055503406680999026,
    0.009670767875351939,
    0.001339528536412053,
)


def wanted() -> bool:
    """Whether this machine gains: MLX's default device is a CPU without vectorized `exp`."""
    on_cpu = mx.default_device().type == mx.DeviceType.cpu
    return on_cpu and not sys.platform.startswith("darwin")


def exp(x: mx.array) -> mx.array:
    """e^x; on Linux CPUs for x in [-60, 60] and constant outside."""
    if wanted() and x.dtype == mx.float32:
        result: Any = _exp(x)
        return result
    return mx.exp(x)


def softmax(scores: mx.array) -> mx.array:
    """Softmax over the last axis."""
    if wanted() and scores.dtype == mx.float32:
        result: Any = _softmax(scores)
        return result
    return mx.softmax(scores, axis=-1)


def raw_exp(x: mx.array) -> mx.array:
    """e^x for float32 x, exact to 4e-6 (relative) in [-60, 60] and constant outside."""
    return exp_below(mx.minimum(x, -LOWEST))


def raw_sigmoid(x: mx.array) -> mx.array:
    """1 / (1 + e^-x) for float32 x."""
    return mx.reciprocal(1 + raw_exp(-x))


def raw_softmax(scores: mx.array) -> mx.array:
    """Softmax over the last axis of float32 scores."""
    shifted = exp_below(scores - scores.max(axis=-1, keepdims=True))
    return shifted * mx.reciprocal(shifted.sum(axis=-1, keepdims=True))


def exp_below(x: mx.array) -> mx.array:
    """`raw_exp` for x that is at most 60, as scores minus their largest are."""
    y = mx.maximum(x, LOWEST) * _LOG2_E
    rounded = y + _ROUND
    f = y - (rounded - _ROUND)
    power = _POWERS[-1] * f + _POWERS[-2]
    for coefficient in _POWERS[-3::-1]:
        power = power * f + coefficient
    # Multiplying by 2^k is adding k to the exponent's bits.
    return (power.view(mx.int32) + (rounded.view(mx.int32) << 23)).view(mx.float32)


def shifted_exp(scores: mx.array) -> mx.array:
    """e^(scores - their largest along the last axis), compiled; no gradient."""
    return _shifted_exp_compiled(scores, scores.max(axis=-1, keepdims=True))


def _shifted_exp(scores: mx.array, largest: mx.array) -> mx.array:
    return raw_exp(scores - largest)


_exp_compiled = mx.compile(raw_exp)
_shifted_exp_compiled = mx.compile(_shifted_exp)


@mx.custom_function
def _exp(x: mx.array) -> mx.array:
    return _exp_compiled(x)


@_exp.vjp
def _exp_vjp(primals: Any, cotangent: mx.array, output: mx.array) -> Any:
    return cotangent * output


@mx.custom_function
def _softmax(scores: mx.array) -> mx.array:
    shifted = shifted_exp(scores)
    return shifted * mx.reciprocal(shifted.sum(axis=-1, keepdims=True))


@_softmax.vjp
def _softmax_vjp(primals: Any, cotangent: mx.array, output: mx.array) -> Any:
    return output * (cotangent - (cotangent * output).sum(axis=-1, keepdims=True))
