"""`linear_cross_entropy`: hidden states and the output matrix to losses, without all the logits.

    loss_i = weight_i (log sum_v e^{l_iv} - l_{i, label_i})        l_i = W h_i + bias

Logits of N tokens over a vocabulary V take N V numbers, their gradient as many again, several times
what the rest of a small model needs. Here they exist a chunk at a time, and the gradient in the
hidden states is computed with the loss, while they do: it is the sum of the matrix's rows, weighed
by the softmax, minus the label's row. See README.md.
"""

from __future__ import annotations

import mlx.core as mx

from mlx_companion.errors import ConfigError
from mlx_companion.kernels.dispatch import Impl, choose
from mlx_companion.kernels.linear_cross_entropy.body import kernel_losses
from mlx_companion.kernels.linear_cross_entropy.heads import Head, OutputLayer, output_layer
from mlx_companion.kernels.linear_cross_entropy.plain import losses_in_plain
from mlx_companion.kernels.linear_cross_entropy.reference import reference
from mlx_companion.kernels.linear_cross_entropy.rows import losses_by_rows
from mlx_companion.kernels.linear_cross_entropy.sizes import (
    ACCELERATOR_ELEMENTS,
    CPU_ELEMENTS,
    chunk_rows,
    default_chunk,
)

__all__ = ["Head", "chunk_rows", "linear_cross_entropy"]


def linear_cross_entropy(
    hidden: mx.array,
    head: Head,
    labels: mx.array,
    *,
    weights: mx.array | None = None,
    bias: mx.array | None = None,
    temperature: float = 1.0,
    chunk: int | None = None,
    head_gradient: bool = False,
    gradient: bool = True,
    impl: Impl = "auto",
) -> mx.array:
    """Cross-entropy of each row's label, weighed.

    Args:
        hidden: (N, D), float.
        head: the output layer: a matrix (V, D), an `nn.Linear` or `nn.Embedding` (tied), plain or
            quantized, or anything that turns (n, D) into logits (n, V), row by row.
        labels: (N,) int. A row whose label is outside [0, V) has loss 0 if its weight is 0, and
            NaN if not, so that the mistake shows.
        weights: (N,) float, what each row counts; 1 by default. They get a gradient too.
        bias: (V,), for a matrix.
        temperature: logits are divided by it.
        chunk: rows of logits that may exist at a time; by default as many as make 17 MB in
            float32, or 134 MB on an accelerator, and all where V is at most 2 D.
        head_gradient: the head is trained: its matrix and bias, or an `nn.Module`'s trainable
            parameters, get a gradient; the backward pass computes the logits again unless all fit
            in one chunk. Otherwise the head gets none.
        gradient: False where no gradient is going to be taken, which saves half of the work; one
            that is taken all the same is right, and slower.
        impl: see `kernels.dispatch`.

    Returns:
        (N,) float32, nats times weight.

    Raises:
        ConfigError: shapes, types or a head that do not fit.
        HardwareError: a kernel was asked for that this machine cannot run.
    """
    _check(hidden, labels, weights, chunk, temperature)
    layer = output_layer(head, bias, head_gradient)
    chosen = choose(impl, "linear_cross_entropy")
    if layer.matrix is not None and layer.matrix.shape[1] != hidden.shape[1]:
        raise ConfigError(
            f"linear_cross_entropy: hidden states {hidden.shape} do not fit a matrix "
            f"{layer.matrix.shape}; both end in the same width"
        )
    if not len(hidden):
        return mx.zeros((0,))
    vocabulary = layer.vocabulary(hidden.shape[1], hidden.dtype)
    labels = labels.astype(mx.int32)
    if temperature != 1:
        # Hidden states are fewer numbers than logits.
        hidden, layer = layer.cooled(hidden, temperature)
    known = (labels >= 0) & (labels < vocabulary)
    counts = mx.ones(labels.shape) if weights is None else weights.astype(mx.float32)
    counts = mx.where(known | (counts == 0), counts, mx.nan)
    labels = mx.where(known, labels, 0)
    return counts * _losses(hidden, labels, layer, vocabulary, chunk, gradient, chosen)


def _losses(
    hidden: mx.array,
    labels: mx.array,
    layer: OutputLayer,
    vocabulary: int,
    chunk: int | None,
    gradient: bool,
    chosen: str,
) -> mx.array:
    if chosen == "reference":
        return reference(hidden, labels, layer)
    elements = CPU_ELEMENTS if chosen == "plain" else ACCELERATOR_ELEMENTS
    rows, width = hidden.shape
    chunk = chunk or default_chunk(rows, width, vocabulary, elements)
    if chosen == "plain":
        return losses_in_plain(hidden, labels, layer, chunk, gradient)
    return losses_by_rows(hidden, labels, layer, kernel_losses(chosen), chunk, gradient)


def _check(
    hidden: mx.array,
    labels: mx.array,
    weights: mx.array | None,
    chunk: int | None,
    temperature: float,
) -> None:
    if hidden.ndim != 2 or not mx.issubdtype(hidden.dtype, mx.floating):
        raise ConfigError(
            f"linear_cross_entropy: hidden is {hidden.shape} of {hidden.dtype}; needed are rows "
            "(N, D) of a float type, so reshape (B, L, D) to (-1, D)"
        )
    if labels.shape != hidden.shape[:1] or not mx.issubdtype(labels.dtype, mx.integer):
        raise ConfigError(
            f"linear_cross_entropy: labels are {labels.shape} of {labels.dtype}; needed are "
            f"{hidden.shape[:1]} whole numbers, one per row of hidden"
        )
    if weights is not None and weights.shape != labels.shape:
        raise ConfigError(
            f"linear_cross_entropy: weights are {weights.shape}; needed are {labels.shape}, one "
            "per row of hidden"
        )
    if chunk is not None and chunk < 1:
        raise ConfigError(f"linear_cross_entropy: chunk is {chunk}; needed is 1 row or more")
    if not temperature > 0:
        raise ConfigError(f"linear_cross_entropy: temperature is {temperature}; needed is above 0")
