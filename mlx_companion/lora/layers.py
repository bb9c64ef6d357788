"""The adapter layers: frozen linear and embedding layers plus a trained low-rank update.

    y = base(x) + scale * multiplier * (dropout(x) @ A) @ B                       LoRA
    y = base(x) + multiplier * (z + (g - 1) * (x W^T + z))                        DoRA
        with z = scale * (dropout(x) @ A) @ B and g = m / ||W + scale (A B)^T||, one per output

One class serves plain and quantized bases, because the base is kept as a child and is only
called. B starts at zero (A does in embeddings), so attaching changes nothing.

DoRA's norm treats the update as a constant (paper, section 4.3) and is never computed from a
merged weight. With D = scale * A B,

    ||W + D^T||^2 = ||W||^2 + 2 scale <A^T W^T, B> + scale^2 <(A^T A) B, B>     (per output)

where ||W||^2 is computed once, so a training step costs r more input rows through the base,
forward only; while not training, the norm is kept until A or B changes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal

import mlx.core as mx
import mlx.nn as nn

from mlx_companion.kernels.matrix import of_layer

LINEAR_TYPES = (nn.Linear, nn.QuantizedLinear)
EMBEDDING_TYPES = (nn.Embedding, nn.QuantizedEmbedding)
BASE_TYPES = LINEAR_TYPES + EMBEDDING_TYPES
QUANTIZED_TYPES = (nn.QuantizedLinear, nn.QuantizedEmbedding)
TRAINED = ("lora_a", "lora_b", "lora_m")
_ROWS_AT_ONCE = 2048
_TINY = 1e-30


class _Norms:
    """Squared norms of the base's outputs, and the adapted norm that was computed last.

    No array of the module, so that neither checkpoints nor compiled steps see it.
    """

    def __init__(self, squares: mx.array) -> None:
        self.squares = squares
        self.last: tuple[mx.array, mx.array, mx.array] | None = None


class Adapter(nn.Module, ABC):
    """What both adapter layers share.

    Args:
        base: the layer to adapt, plain or quantized; it is kept, not copied.
        rank: inner width r.
        scale: alpha / rank, or alpha / sqrt(rank).
        dropout: share of the update's inputs zeroed while training.
        key: PRNG key of the initial values; the global generator is not touched.
        dtype: what A and B are kept in.
        dora: whether there is a magnitude (see the module).

    Attributes:
        lora_a, lora_b: trained; (inputs, r) and (r, outputs).
        lora_m: trained with DoRA only; (outputs,) float32.
        start_a, start_b: frozen, only after `start_from`; what is subtracted from the update.
    """

    def __init__(
        self,
        base: nn.Module,
        *,
        rank: int,
        scale: float,
        dropout: float,
        key: mx.array,
        dtype: mx.Dtype = mx.float32,
        dora: bool = False,
    ) -> None:
        super().__init__()
        self.base = base
        self.dropout = nn.Dropout(dropout)
        self.scale = scale
        self.multiplier = 1.0
        a, b = self._initial(rank, key)
        self.lora_a, self.lora_b = a.astype(dtype), b.astype(dtype)
        if dora:
            self._norms = _Norms(self._base_squares())
            self.lora_m = mx.sqrt(self._norms.squares)

    @property
    def rank(self) -> int:
        """Inner width of the trained matrices."""
        return int(self.lora_a.shape[1])

    @property
    def dora(self) -> bool:
        """Whether the layer learns a magnitude."""
        return "lora_m" in self

    def start_from(self, a: mx.array, b: mx.array) -> None:
        """Let A and B start at given values, which are subtracted from what they do from then on.

        The base stays as it is: W + scale ((A B)^T - (A0 B0)^T) is the residual form of PiSSA
        without a second copy of W, and exact over quantized bases.
        """
        dtype = self.lora_a.dtype
        self.lora_a, self.lora_b = a.astype(dtype), b.astype(dtype)
        self.start_a, self.start_b = self.lora_a, self.lora_b

    def factors(self) -> tuple[mx.array, mx.array]:
        """Two matrices whose product is the update over `scale`: of rank r, or 2 r with a start.

        A B - A0 B0 is given as (A - A0) B + A0 (B - B0): nothing large cancels, so that the start
        is exactly zero and half precision suffices.
        """
        if "start_a" not in self:
            return self.lora_a, self.lora_b
        a = mx.concatenate([self.lora_a - self.start_a, self.start_a], axis=1)
        return a, mx.concatenate([self.lora_b, self.lora_b - self.start_b], axis=0)

    def gain(self) -> mx.array:
        """DoRA's m / ||W + dW||, (outputs,) float32; only m has a gradient."""
        return self.lora_m.astype(mx.float32) / self._adapted_norm()

    def _adapted_norm(self) -> mx.array:
        last = self._norms.last
        if not self.training and last and last[0] is self.lora_a and last[1] is self.lora_b:
            return last[2]
        a, b = (f.astype(mx.float32) for f in self.factors())
        cross = (self._through_base(a) * b).sum(axis=0)
        own = ((a.T @ a @ b) * b).sum(axis=0)
        squares = self._norms.squares + 2 * self.scale * cross + self.scale**2 * own
        norm = mx.stop_gradient(mx.sqrt(mx.maximum(squares, _TINY)))
        if not self.training:
            self._remember(norm)
        return norm

    def _remember(self, norm: mx.array) -> None:
        try:
            mx.eval(norm)
        except (RuntimeError, ValueError):
            # Inside of a traced function: there is no value yet.
            return
        self._norms.last = (self.lora_a, self.lora_b, norm)

    def _change(self, y: mx.array, plain: mx.array, z: mx.array) -> mx.array:
        """What is added to the base's output y, of which `plain` is the part without bias."""
        if not self.dora:
            return (self.scale * self.multiplier * z).astype(y.dtype)
        # g is close to 1, which half precision cannot tell from 1; g - 1 it can. And written so,
        # one array of the size of y is kept for the gradients instead of two.
        step = (self.scale * z).astype(y.dtype)
        surplus = (self.multiplier * (self.gain() - 1)).astype(y.dtype)
        moved = surplus * (plain + step)
        return moved + (step if self.multiplier == 1 else self.multiplier * step)

    def _product(self) -> mx.array:
        a, b = self.factors()
        return a.astype(mx.float32) @ b.astype(mx.float32)

    @abstractmethod
    def _initial(self, rank: int, key: mx.array) -> tuple[mx.array, mx.array]:
        """A and B before training, for this kind of layer."""

    @abstractmethod
    def _base_squares(self) -> mx.array:
        """Squared norms of the base's outputs, (outputs,) float32."""

    @abstractmethod
    def _through_base(self, a: mx.array) -> mx.array:
        """A^T W^T: what the base makes of A's columns, (r, outputs)."""


class LoRALinear(Adapter):
    """A linear layer with a low-rank update; see `Adapter` for its arguments.

    Shape: A (in, r), B (r, out); x (..., in) gives (..., out) in the dtype that the base gives: A
    and B are cast to that of x, so that half-precision activations stay so.
    """

    def __call__(self, x: mx.array) -> mx.array:
        y = self.base(x)
        # Not only to save work: 0 * inf is NaN, and a switched-off adapter must do nothing.
        if self.scale * self.multiplier == 0:
            return y
        a, b = self.factors()
        z = self.dropout(x) @ a.astype(x.dtype) @ b.astype(x.dtype)
        plain = y - self.base.bias if self.dora and "bias" in self.base else y
        return y + self._change(y, plain, z)

    def delta(self) -> mx.array:
        """What the adapter adds to the weight, multiplier included: (out, in) float32."""
        product = self._product()
        if not self.dora:
            return (self.scale * self.multiplier) * product.T
        weight = dense_weight(self.base)
        scaled = self.gain()[:, None] * (weight + self.scale * product.T)
        return self.multiplier * (scaled - weight)

    def _initial(self, rank: int, key: mx.array) -> tuple[mx.array, mx.array]:
        out_dims, in_dims = linear_shape(self.base)
        bound = 1 / math.sqrt(in_dims)
        a = mx.random.uniform(-bound, bound, (in_dims, rank), key=key)
        return a, mx.zeros((rank, out_dims))

    def _base_squares(self) -> mx.array:
        matrix, parts = of_layer(self.base), []
        for start in range(0, matrix.shape[0], _ROWS_AT_ONCE):
            rows = mx.arange(start, min(start + _ROWS_AT_ONCE, matrix.shape[0]))
            parts.append(mx.square(matrix.rows(rows).astype(mx.float32)).sum(axis=1))
            # Otherwise the whole dequantized matrix would exist at once.
            mx.eval(parts)
        return mx.concatenate(parts)

    def _through_base(self, a: mx.array) -> mx.array:
        return of_layer(self.base).apply(a.T.astype(float_dtype(self.base))).astype(mx.float32)


class LoRAEmbedding(Adapter):
    """An embedding with a low-rank update; see `Adapter` for its arguments.

    Shape: A (V, r), B (r, D); ids (...) give (..., D); `as_linear` takes (..., D) to (..., V).

    Attributes:
        use: of an embedding tied to the head: "both", or only "input" (looking up) or "output"
            (`as_linear`). A fused matrix is both, so only "both" can be fused.

    Dropout acts in `as_linear` only: a token id has no parts to leave out.
    """

    use: Literal["both", "input", "output"] = "both"

    def __call__(self, ids: mx.array) -> mx.array:
        y = self.base(ids)
        if self.use == "output" or self.scale * self.multiplier == 0:
            return y
        a, b = self.factors()
        return y + self._change(y, y, a[ids].astype(y.dtype) @ b.astype(y.dtype))

    def as_linear(self, x: mx.array) -> mx.array:
        """The output head of a model that ties it to its embedding."""
        if self.use == "input" or self.scale * self.multiplier == 0:
            return self.base.as_linear(x)
        a, b = (f.astype(x.dtype) for f in self.factors())
        strength, inner = self.scale * self.multiplier, self.dropout(x)
        if self.dora:
            # The gain belongs to the columns of the matrix, so it scales the inputs here.
            gain = self.gain()
            inner = inner * gain.astype(x.dtype)
            x = x + x * (self.multiplier * (gain - 1)).astype(x.dtype)
        y = self.base.as_linear(x)
        return y + (strength * ((inner @ b.T) @ a.T)).astype(y.dtype)

    def delta(self) -> mx.array:
        """What the adapter adds to the weight, multiplier included: (V, D) float32."""
        product = self._product()
        if not self.dora:
            return (self.scale * self.multiplier) * product
        weight = dense_weight(self.base)
        scaled = self.gain() * (weight + self.scale * product)
        return self.multiplier * (scaled - weight)

    def _initial(self, rank: int, key: mx.array) -> tuple[mx.array, mx.array]:
        rows, width = linear_shape(self.base)
        # A row of B has a length of about 1, whichever way the matrix is used.
        return mx.zeros((rows, rank)), mx.random.normal((rank, width), key=key) / math.sqrt(width)

    def _base_squares(self) -> mx.array:
        matrix = of_layer(self.base)
        total = mx.zeros((matrix.shape[1],))
        for start in range(0, matrix.shape[0], _ROWS_AT_ONCE):
            rows = mx.arange(start, min(start + _ROWS_AT_ONCE, matrix.shape[0]))
            total = total + mx.square(matrix.rows(rows).astype(mx.float32)).sum(axis=0)
            mx.eval(total)
        return total

    def _through_base(self, a: mx.array) -> mx.array:
        matrix = of_layer(self.base)
        return matrix.apply_transposed(a.T.astype(float_dtype(self.base))).astype(mx.float32)


def linear_shape(layer: nn.Module) -> tuple[int, int]:
    """(out, in) of a linear layer, (V, D) of an embedding; quantized weights are packed."""
    out_dims, columns = layer.weight.shape
    if isinstance(layer, QUANTIZED_TYPES):
        return out_dims, columns * 32 // layer.bits
    return out_dims, columns


def dense_weight(layer: nn.Module) -> mx.array:
    """The weight of a linear or embedding layer, dequantized, float32."""
    return of_layer(layer).dense().astype(mx.float32)


def float_dtype(layer: nn.Module) -> mx.Dtype:
    """The floating-point type that a layer's weight has, or had before it was quantized."""
    dtype = layer.scales.dtype if isinstance(layer, QUANTIZED_TYPES) else layer.weight.dtype
    return dtype if mx.issubdtype(dtype, mx.floating) else mx.float32
