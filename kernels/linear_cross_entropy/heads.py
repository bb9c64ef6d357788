"""The output layer as the op sees it: hidden states and trained arrays in, logits out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from mlx_companion.errors import ConfigError
from mlx_companion.kernels.matrix import Matrix, of_layer

Head = Matrix | nn.Module | Callable[[mx.array], mx.array]

_LAYERS = (nn.Linear, nn.Embedding, nn.QuantizedLinear, nn.QuantizedEmbedding)


@dataclass(frozen=True)
class OutputLayer:
    """What turns hidden states into logits.

    Attributes:
        call: (hidden (n, D), trained arrays) to logits (n, V).
        trained: arrays that get a gradient; for a matrix its weight and then its bias.
        matrix: the layer's, None where it is more than a matrix and a bias.
        bias: (V,), None without.
    """

    call: Callable[[mx.array, Sequence[mx.array]], mx.array]
    trained: tuple[mx.array, ...] = ()
    matrix: Matrix | None = None
    bias: mx.array | None = None

    def vocabulary(self, width: int, dtype: mx.Dtype) -> int:
        """V, for hidden states (n, `width`) of this type."""
        if self.matrix is not None:
            return self.matrix.shape[0]
        # Shapes are known without computing anything, and a layer with dropout draws for nothing.
        with Replayed(random_state()):
            return self.call(mx.zeros((1, width), dtype=dtype), self.trained).shape[-1]

    def cooled(self, hidden: mx.array, temperature: float) -> tuple[mx.array, OutputLayer]:
        """Hidden states and a layer that give logits divided by `temperature`."""
        if self.matrix is None:
            return hidden, replace(self, call=lambda h, arrays: self.call(h, arrays) / temperature)
        if self.bias is None:
            return hidden / temperature, self
        layer = _of_matrix(self.matrix, self.bias / temperature, bool(self.trained))
        return hidden / temperature, layer


def random_state() -> mx.array:
    """Where MLX's random numbers are at: a key of its own."""
    # MLX goes on by writing into the array that it shows.
    return mx.stop_gradient(_key())


class Replayed:
    """Random numbers start from an earlier state inside: a layer's dropout must not differ.

    Args:
        state: of `random_state`.
    """

    def __init__(self, state: mx.array) -> None:
        self.state = state

    def __enter__(self) -> None:
        self.outside = random_state()
        _key()[:] = self.state

    def __exit__(self, *details: object) -> None:
        _key()[:] = self.outside


def output_layer(
    head: Head, bias: mx.array | None = None, head_gradient: bool = False
) -> OutputLayer:
    """Make one of what the op was given.

    Raises:
        ConfigError: a bias for what is not a matrix, or a gradient that nothing could receive.
    """
    # Exactly these types: a subclass, such as an adapter's, may compute something else.
    if isinstance(head, nn.Module) and type(head) in _LAYERS and bias is None:
        return _of_matrix(of_layer(head), head.get("bias"), head_gradient)
    if isinstance(head, Matrix):
        return _of_matrix(head, bias, head_gradient)
    if bias is not None:
        raise ConfigError("linear_cross_entropy: a bias goes with a Matrix; this head adds its own")
    if not head_gradient:
        return OutputLayer(lambda hidden, _: head(hidden))
    if not isinstance(head, nn.Module):
        raise ConfigError(
            "linear_cross_entropy: head_gradient=True needs a Matrix or an nn.Module; the weights "
            "inside of a function cannot be seen, so pass the layer itself"
        )
    return _of_module(head)


def _key() -> mx.array:
    state: Any = mx.random.state
    key: mx.array = state[0]
    return key


def _of_matrix(matrix: Matrix, bias: mx.array | None, head_gradient: bool) -> OutputLayer:
    if bias is not None and bias.shape != (matrix.shape[0],):
        raise ConfigError(
            f"linear_cross_entropy: bias has shape {bias.shape} where ({matrix.shape[0]},) is "
            "needed, one number per row of the matrix"
        )
    if head_gradient and matrix.quantized:
        raise ConfigError(
            "linear_cross_entropy: a quantized matrix takes no gradient; use head_gradient=False, "
            "or dequantize it to train it"
        )
    own = [matrix.weight] if bias is None else [matrix.weight, bias]

    def call(hidden: mx.array, trained: Sequence[mx.array]) -> mx.array:
        weight, *rest = trained or own
        logits = matrix._replace(weight=weight).apply(hidden)
        return logits + rest[0] if rest else logits

    return OutputLayer(call, tuple(own) if head_gradient else (), matrix, bias)


def _of_module(module: nn.Module) -> OutputLayer:
    parameters: dict[str, mx.array] = dict(tree_flatten(module.trainable_parameters()))
    if not parameters:
        return OutputLayer(lambda hidden, _: module(hidden))

    def call(hidden: mx.array, trained: Sequence[mx.array]) -> mx.array:
        own: Any = module.trainable_parameters()
        module.update(tree_unflatten(list(zip(parameters, trained, strict=True))))
        try:
            return module(hidden)
        finally:
            module.update(own)

    return OutputLayer(call, tuple(parameters.values()))
