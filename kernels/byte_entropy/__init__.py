"""Entropy of next-byte predictions, and whether it makes a patch begin, in one pass over logits.

    H[t] = -sum over v of p(v) ln p(v),   p = softmax(logits[t]),   in nats

    byte_entropy(logits)                                  # (..., V) -> entropy (...)
    byte_entropy(logits, threshold=1.2)                   # over: H[t] > threshold
    byte_entropy(logits, rise=0.3)                        # over: H[t] - H[t-1] > rise
    byte_entropy(logits, threshold=1.2, rise=0.3)         # over: both

Decisions compare as exact numbers do: the float32 entropies and their difference, which float32
cannot hold, with the limits as Python has them, in double precision (`decision`). So it is the
decision that `blt.patchers` takes on the same entropies on the host.

The gradient in the logits is -p (ln p + H), from two numbers kept per row.

Reference: Pagnoni et al. 2024, arXiv 2412.09871, section 2.3.
"""

from __future__ import annotations

import math

import mlx.core as mx

from mlx_companion.errors import ConfigError
from mlx_companion.kernels.byte_entropy import body, plain, reference
from mlx_companion.kernels.byte_entropy.decision import ByteEntropy, Limits, decide
from mlx_companion.kernels.dispatch import Impl, choose

__all__ = ["ByteEntropy", "byte_entropy"]

_FLOATS = {mx.float32, mx.float16, mx.bfloat16}


def byte_entropy(
    logits: mx.array,
    *,
    threshold: float | None = None,
    rise: float | None = None,
    impl: Impl = "auto",
) -> ByteEntropy:
    """Entropy of softmax(logits), and the boundary decision of each position by itself.

    Args:
        logits: (..., V), float32, float16 or bfloat16; -inf for impossible values.
        threshold: nats that a deciding entropy is above; None where the level does not matter.
        rise: nats that a deciding entropy is above the one before it, along the axis before the
            last; None where the rise does not matter. The first position has none before it and
            is not over.
        impl: see `dispatch`.

    Returns:
        `entropy` (...) float32, nats, from 0 to ln V, exact to 1e-5; not a number where the logits
        are no distribution (one is not a number or +inf, or all are -inf). `over` (...) bool, None
        when neither limit is given; False where the entropy is not a number.

    Raises:
        ConfigError: logits are no float array with values along the last axis, or a limit is not
            a number.
        HardwareError: the machine cannot run what was asked for.
    """
    chosen = choose(impl, "byte_entropy")
    _check(logits, threshold, rise)
    limits = Limits(threshold, rise)
    if not logits.size:
        entropy = mx.zeros(logits.shape[:-1])
        return ByteEntropy(entropy, entropy > 0 if limits.decides else None)
    if chosen == "plain" and not limits.decides:
        return ByteEntropy(plain.entropy(logits), None)
    if chosen == "reference":
        return reference.byte_entropy(logits, limits)
    if chosen == "plain":
        entropy = plain.entropy(logits)
        return ByteEntropy(entropy, decide(entropy, limits))
    return body.byte_entropy(logits, limits, chosen)


def _check(logits: mx.array, threshold: float | None, rise: float | None) -> None:
    if logits.dtype not in _FLOATS or not logits.ndim or not logits.shape[-1]:
        raise ConfigError(
            f"byte_entropy: logits are {logits.dtype} of shape {logits.shape}; expected floats "
            "(..., V) with V of at least 1"
        )
    for name, limit in (("threshold", threshold), ("rise", rise)):
        if limit is not None and math.isnan(limit):
            raise ConfigError(f"byte_entropy: {name} is not a number; give nats, or None")
