"""A matrix as the ops take it: plain, or in MLX's quantized form.

weight = of_layer(model.lm_head)        # nn.Linear, nn.Embedding, or their quantized twins
y = weight.apply(x)                     # x W^T
rows = weight.rows(ids)                 # gathered rows, dequantized
"""

from __future__ import annotations

from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from mlx_companion.errors import ConfigError


class Matrix(NamedTuple):
    """A matrix (rows, columns); of `mx.quantize` when it has scales.

    Attributes:
        weight: (rows, columns), or packed in 32 bits (rows, columns * bits / 32).
        scales: (rows, columns / group_size), None for a plain matrix.
        biases: as scales, None in modes without.
        group_size, bits, mode: of `mx.quantize`.
    """

    weight: mx.array
    scales: mx.array | None = None
    biases: mx.array | None = None
    group_size: int = 64
    bits: int = 4
    mode: str = "affine"

    @property
    def quantized(self) -> bool:
        return self.scales is not None

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        rows, columns = self.weight.shape
        return (rows, columns * 32 // self.bits) if self.quantized else (rows, columns)

    @property
    def arrays(self) -> list[mx.array]:
        """Those that there are, in the order of the fields."""
        return [part for part in self[:3] if part is not None]

    def with_arrays(self, arrays: list[mx.array] | tuple[mx.array, ...]) -> Matrix:
        """The same form around other arrays, as many as `arrays` gave."""
        parts = [*arrays, None, None]
        return self._replace(weight=parts[0], scales=parts[1], biases=parts[2])

    def apply(self, x: mx.array) -> mx.array:
        """x W^T: (..., columns) -> (..., rows)."""
        if self.scales is None:
            return x @ self.weight.T
        return mx.quantized_matmul(
            x, self.weight, self.scales, self.biases, transpose=True, **self._form()
        )

    def apply_transposed(self, x: mx.array) -> mx.array:
        """x W: (..., rows) -> (..., columns); the gradient of `apply` in x."""
        if self.scales is None:
            return x @ self.weight
        return mx.quantized_matmul(
            x, self.weight, self.scales, self.biases, transpose=False, **self._form()
        )

    def rows(self, ids: mx.array) -> mx.array:
        """Gathered rows: (...) int -> (..., columns)."""
        if self.scales is None:
            return self.weight[ids]
        biases = None if self.biases is None else self.biases[ids]
        return mx.dequantize(self.weight[ids], self.scales[ids], biases, **self._form())

    def dense(self) -> mx.array:
        """(rows, columns), dequantized."""
        if self.scales is None:
            return self.weight
        return mx.dequantize(self.weight, self.scales, self.biases, **self._form())

    def _form(self) -> dict[str, Any]:
        return {"group_size": self.group_size, "bits": self.bits, "mode": self.mode}


def of_layer(layer: nn.Module) -> Matrix:
    """The weight of a linear or embedding layer, plain or quantized.

    Raises:
        ConfigError: it is another kind of layer.
    """
    if isinstance(layer, nn.QuantizedLinear | nn.QuantizedEmbedding):
        return Matrix(
            layer.weight,
            layer.scales,
            layer.get("biases"),
            layer.group_size,
            layer.bits,
            getattr(layer, "mode", "affine"),
        )
    if isinstance(layer, nn.Linear | nn.Embedding):
        return Matrix(layer.weight)
    raise ConfigError(
        f"{type(layer).__name__} is neither a linear nor an embedding layer, so it has no one "
        "matrix; pass its weight as a Matrix"
    )
