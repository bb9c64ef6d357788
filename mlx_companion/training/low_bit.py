"""AdamW with both moments in 8 bits: 2.2 bytes of state per parameter instead of 8.

Values are quantized in blocks of 256, and decoded one array at a time for its update::

    m   affine, 8 bits, groups of 64 (`mx.quantize`)
    r   sqrt(v), logarithmic: 0, or max * 2^(-(255 - c) / 16) for a code c of 1 to 255

The second moment changes by a thousandth per step (beta2 = 0.999), less than a step of any 8-bit
code, so rounding to the nearest would hold it still; codes are rounded up or down at random in
proportion, which is right on average. The random key is part of the state: runs repeat, and go on
from a checkpoint, exactly. The update itself uses the moments before they are rounded. Arrays of
fewer than 4,096 values keep float32 moments.

Reference: Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization" (blocks, small
arrays); the logarithmic code and random rounding are this module's.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx.optimizers import AdamW

BLOCK = 256
SMALLEST = 4096
_GROUP = 64
# Codes per factor of 2.
_STEPS = 16.0
_LN2 = 0.6931471805599453


class AdamW8bit(AdamW):
    """AdamW with bias correction and 8-bit moments.

    Args:
        learning_rate: may be set anew before each update.
        betas, eps, weight_decay: of AdamW.
        seed: of the random rounding.
    """

    def __init__(
        self,
        learning_rate: float,
        betas: list[float],
        eps: float,
        weight_decay: float,
        seed: int = 0,
    ) -> None:
        super().__init__(
            learning_rate, betas=betas, eps=eps, weight_decay=weight_decay, bias_correction=True
        )
        self.seed = seed
        self._arrays = 0

    def init_single(self, parameter: mx.array, state: dict) -> None:
        """Moments of 0, and a random key of the array's own."""
        if parameter.size < SMALLEST:
            super().init_single(parameter, state)
            return
        blocks = -(-parameter.size // BLOCK)
        zeros = mx.zeros((blocks, BLOCK))
        state["m"], state["m_scales"], state["m_biases"] = mx.quantize(zeros, _GROUP, 8)
        state["r"] = mx.zeros((blocks, BLOCK), dtype=mx.uint8)
        state["r_max"] = mx.zeros((blocks, 1))
        state["key"] = mx.random.split(mx.random.key(self.seed), self._arrays + 1)[-1]
        self._arrays += 1

    def apply_single(self, gradient: mx.array, parameter: mx.array, state: dict) -> mx.array:
        """One array's update."""
        if "r" not in state:
            return super().apply_single(gradient, parameter, state)
        b1, b2 = self.betas
        g = _blocks(gradient.astype(mx.float32))
        m = b1 * _first(state) + (1 - b1) * g
        v = b2 * mx.square(_root(state)) + (1 - b2) * mx.square(g)
        _keep(state, m, mx.sqrt(v))
        step = self.step.astype(mx.float32)
        update = (m / (1 - b1**step)) / (mx.sqrt(v / (1 - b2**step)) + self.eps)
        lr = self.learning_rate.astype(mx.float32)
        flat = update.reshape(-1)[: parameter.size].reshape(parameter.shape)
        decayed = parameter.astype(mx.float32) * (1 - lr * self.weight_decay)
        return (decayed - lr * flat).astype(parameter.dtype)


def unpacked(state: dict[str, mx.array], size: int, parts: int) -> tuple[mx.array, mx.array]:
    """The moments of an array, as numbers.

    Args:
        state: of the array's equal parts, one behind the other; in 8 bits or float32.
        size: of the whole array.
        parts: how many; the blocks of each are its own.

    Returns:
        m and v, both (size,) float32.
    """
    if "r" not in state:
        return state["m"].reshape(-1), state["v"].reshape(-1)
    each = size // parts
    m, root = (v.reshape(parts, -1)[:, :each].reshape(-1) for v in (_first(state), _root(state)))
    return m, mx.square(root)


def packed(m: mx.array, v: mx.array, parts: int) -> dict[str, mx.array]:
    """The way back, without the random key: moments in 8 bits, rounded to the nearest."""
    found: dict[str, mx.array] = {}
    own, root = (_blocks_of_parts(values, parts) for values in (m, mx.sqrt(v)))
    found["m"], found["m_scales"], found["m_biases"] = mx.quantize(own, _GROUP, 8)
    exact, found["r_max"] = _exact_codes(root)
    found["r"] = mx.clip(mx.round(exact), 0, 255).astype(mx.uint8)
    return found


def _blocks_of_parts(values: mx.array, parts: int) -> mx.array:
    return mx.concatenate([_blocks(part) for part in mx.split(values, parts)])


def _blocks(values: mx.array) -> mx.array:
    """Any shape to (blocks, BLOCK), zeros behind."""
    return mx.pad(values.reshape(-1), (0, -values.size % BLOCK)).reshape(-1, BLOCK)


def _first(state: dict[str, Any]) -> mx.array:
    return mx.dequantize(state["m"], state["m_scales"], state["m_biases"], _GROUP, 8)


def _root(state: dict[str, Any]) -> mx.array:
    codes = state["r"].astype(mx.float32)
    powers = mx.exp((codes - 255) * (_LN2 / _STEPS))
    return mx.where(codes > 0, state["r_max"] * powers, 0.0)


def _keep(state: dict[str, Any], m: mx.array, r: mx.array) -> None:
    """Quantize the moments into the state."""
    state["m"], state["m_scales"], state["m_biases"] = mx.quantize(m, _GROUP, 8)
    exact, state["r_max"] = _exact_codes(r)
    state["key"], now = mx.random.split(state["key"])
    codes = mx.floor(exact + mx.random.uniform(shape=r.shape, key=now))
    state["r"] = mx.clip(codes, 0, 255).astype(mx.uint8)


def _exact_codes(r: mx.array) -> tuple[mx.array, mx.array]:
    """Codes before rounding, and the largest value of each block (blocks, 1)."""
    largest = r.max(axis=-1, keepdims=True)
    shares = r / mx.maximum(largest, 1e-30)
    return 255 + _STEPS * mx.log2(mx.maximum(shares, 1e-30)), largest
