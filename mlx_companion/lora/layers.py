"""The adapter layer: a frozen linear layer plus a trained low-rank update.

    y = base(x) + scale * multiplier * (dropout(x) @ A) @ B

One class serves plain and quantized bases, because the base is kept as a child and is only
called, never looked into. B starts at zero, so attaching changes nothing.
"""

from __future__ import annotations

import math

import mlx.core as mx
import mlx.nn as nn

BASE_TYPES = (nn.Linear, nn.QuantizedLinear)


class LoRALinear(nn.Module):
    """A linear layer with a low-rank update.

    Args:
        base: the layer to adapt, plain or quantized; it is kept, not copied.
        rank: inner width r.
        scale: alpha / rank.
        dropout: share of the update's inputs zeroed while training.
        key: PRNG key of A's initial values; the global generator is not touched.

    Shape: A (in, r), B (r, out), both float32; x (..., in) gives (..., out) in the dtype that
    the base gives: A and B are cast to that of x, so that half-precision activations stay so.
    """

    def __init__(
        self, base: nn.Module, *, rank: int, scale: float, dropout: float, key: mx.array
    ) -> None:
        super().__init__()
        out_dims, in_dims = linear_shape(base)
        bound = 1 / math.sqrt(in_dims)
        self.base = base
        self.dropout = nn.Dropout(dropout)
        self.scale = scale
        self.multiplier = 1.0
        self.lora_a = mx.random.uniform(-bound, bound, (in_dims, rank), key=key)
        self.lora_b = mx.zeros((rank, out_dims))

    def __call__(self, x: mx.array) -> mx.array:
        y = self.base(x)
        strength = self.scale * self.multiplier
        # Not only to save work: 0 * inf is NaN, and a switched-off adapter must do nothing.
        if strength == 0:
            return y
        z = self.dropout(x) @ self.lora_a.astype(x.dtype) @ self.lora_b.astype(x.dtype)
        return y + (strength * z).astype(y.dtype)

    def delta(self) -> mx.array:
        """What the adapter adds to the weight: scale * multiplier * (A B)^T, (out, in) float32."""
        product = self.lora_a.astype(mx.float32) @ self.lora_b.astype(mx.float32)
        return (self.scale * self.multiplier) * product.T


def linear_shape(layer: nn.Module) -> tuple[int, int]:
    """(out, in) of a plain or quantized linear layer; quantized weights are packed in 32 bits."""
    out_dims, columns = layer.weight.shape
    if isinstance(layer, nn.QuantizedLinear):
        return out_dims, columns * 32 // layer.bits
    return out_dims, columns
