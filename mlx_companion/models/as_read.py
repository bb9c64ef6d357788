"""A model as it was when it was read: later it tells whether its weights are still those.

Why: who has a model and wants to know whether it is the one that a name stands for would have to
read the file again, and MLX keeps Python's lock while it reads GGUF. Kept are the layout of every
tensor and the vectors, mostly norms, which move whenever all weights are trained and are small::

    found = AsRead.of(lm.model, dtype, dequantize)
    found.holds(lm.model)        # False once it is quantized, trained or made anything else
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

__all__ = ["AsRead"]

Layout = tuple[mx.Dtype, tuple[int, ...]]


@dataclass(frozen=True)
class AsRead:
    """What a model was.

    Attributes:
        dtype: number type that was asked for; None: that of the files.
        dequantize: whether packed weights were made plain.
        layouts: number type and shape of every tensor by its name.
        vectors: the tensors of one dimension.
    """

    dtype: mx.Dtype | None
    dequantize: bool
    layouts: dict[str, Layout]
    vectors: dict[str, mx.array]

    @classmethod
    def of(cls, model: nn.Module, dtype: mx.Dtype | None, dequantize: bool) -> AsRead:
        """A model as it is now."""
        tensors = _tensors(model)
        # Objects of their own: one that is written into would change here, too.
        vectors = {name: mx.array(one) for name, one in tensors.items() if one.ndim == 1}
        # Now: what is still to be computed belongs to the thread that asked for it.
        mx.eval(vectors)
        return cls(dtype, dequantize, _layouts(tensors), vectors)

    def holds(self, model: nn.Module) -> bool:
        """Whether a model has the same tensors, as far as can be told without reading the rest."""
        tensors = _tensors(model)
        return _layouts(tensors) == self.layouts and all(
            mx.array_equal(one, tensors[name]).item() for name, one in self.vectors.items()
        )


def _tensors(model: nn.Module) -> dict[str, mx.array]:
    found: Any = tree_flatten(model.parameters())
    return dict(found)


def _layouts(tensors: dict[str, mx.array]) -> dict[str, Layout]:
    return {name: (one.dtype, tuple(one.shape)) for name, one in tensors.items()}
