"""Losses: what a training step minimizes.

A loss is a callable `loss(model, batch) -> (sum, count)`: the sum over target tokens (nats) and
their number, so that the trainer can weigh micro-batches by tokens. A loss may have a method
`prepare(batch)` that turns a batch into arrays before anything is traced.

`sft_loss` is the cross-entropy of the target tokens. Logits exist at target positions only and in
chunks, and their gradient is taken chunk by chunk in the forward pass, so that a vocabulary of
150,000 costs little memory: mlx-lm's loss computes, and keeps, logits for every prompt and
padding token too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from mlx_companion.errors import DataError
from mlx_companion.kernels import fast_math
from mlx_companion.models import fast_cpu
from mlx_companion.models.heads import split_head
from mlx_companion.models.prefix import can_share, run_prefixed, shared_length
from mlx_companion.text.batches import Batch

# Float32 logits of a chunk take 17 MB; shorter chunks make the products less efficient.
_CHUNK_ELEMENTS = 2**22
_HEAD_NAMES = ("lm_head.", "model.embed_tokens.")

Head = Callable[[mx.array], mx.array]


class Loss(Protocol):
    """What the trainer takes as a loss."""

    def __call__(self, model: nn.Module, batch: Any) -> tuple[mx.array, mx.array]:
        """(sum over targets in nats, number of targets), both scalars."""
        ...


class Targets(NamedTuple):
    """A batch made ready for a loss over target positions.

    Attributes:
        tokens: (B, L) int32, what the model reads.
        positions: (N,) int32, where the hidden states that predict a target lie among the
            B x (L - prefix) that are computed.
        labels: (N,) int32, the targets.
        weights: (N,) float32, what each counts.
        prefix: leading columns that all rows share and that are run once.
    """

    tokens: mx.array
    positions: mx.array
    labels: mx.array
    weights: mx.array
    prefix: int


class SftLoss:
    """Cross-entropy of the target tokens (supervised fine-tuning).

    Args:
        share_prefix: run the tokens that all rows start with once.
        pad_to: the number of targets is rounded up to a multiple of this with targets of weight
            0; more than 1 where each new shape is compiled.
    """

    def __init__(self, share_prefix: bool = True, pad_to: int = 1) -> None:
        self.share_prefix = share_prefix
        self.pad_to = pad_to

    def prepare(self, batch: Batch, row_weights: np.ndarray | None = None) -> Targets:
        """Find the targets of a batch.

        Args:
            batch: rows with at least one target among them.
            row_weights: (B,) what each row's targets count; 1 by default.

        Raises:
            DataError: the batch has no target; its mean loss would be 0/0.
        """
        tokens, targets = np.array(batch.tokens), np.array(batch.targets)
        rows, columns = np.nonzero(targets[:, 1:])
        if not len(rows):
            raise DataError("a batch has no token to train on; drop such samples first")
        prefix = shared_length(tokens, targets) if self.share_prefix else 0
        weights = np.ones(len(rows)) if row_weights is None else np.asarray(row_weights)[rows]
        width = tokens.shape[1] - 1 - prefix
        filler = -len(rows) % self.pad_to
        return Targets(
            mx.array(tokens[:, :-1]),
            _padded(rows * width + columns - prefix, filler),
            _padded(tokens[rows, columns + 1], filler),
            mx.array(np.pad(weights, (0, filler)).astype(np.float32)),
            prefix,
        )

    def __call__(self, model: nn.Module, batch: Batch | Targets) -> tuple[mx.array, mx.array]:
        """(sum of the targets' weighted cross-entropy in nats, sum of their weights)."""
        picked = self.prepare(batch) if isinstance(batch, Batch) else batch
        backbone, head = split_head(model)
        if picked.prefix and not can_share(model, backbone):
            picked = _unshared(picked)
        if picked.prefix:
            hidden = run_prefixed(model, picked.tokens, picked.prefix)
        else:
            hidden = backbone(picked.tokens)
        hidden = hidden.reshape(-1, hidden.shape[-1])[picked.positions]
        loss = _head_loss(model, head, hidden, picked.labels, picked.weights)
        return loss, picked.weights.sum()


sft_loss = SftLoss()


def chunk_rows(vocabulary: int, rows: int) -> int:
    """How many of `rows` rows of logits to compute at a time; chunks are of about equal size."""
    most = max(16, _CHUNK_ELEMENTS // vocabulary)
    return -(-rows // -(-rows // most))


def _padded(values: np.ndarray, filler: int) -> mx.array:
    return mx.array(np.pad(values, (0, filler)).astype(np.int32))


def _unshared(picked: Targets) -> Targets:
    """The same targets for a model that has to run whole rows."""
    width = picked.tokens.shape[1]
    short = width - picked.prefix
    rows, columns = picked.positions // short, picked.positions % short
    return picked._replace(positions=rows * width + columns + picked.prefix, prefix=0)


def _head_loss(
    model: nn.Module,
    head: Head,
    hidden: mx.array,
    labels: mx.array,
    weights: mx.array,
) -> mx.array:
    size = chunk_rows(_vocabulary(model, head, hidden), len(hidden))
    if model.training and not _head_trains(model):
        return _with_gradient(head, size)(hidden, labels, weights)[0]
    total = mx.array(0.0)
    for i in range(0, len(hidden), size):
        logits = head(_after(hidden[i : i + size], total)).astype(mx.float32)
        y, w = labels[i : i + size], weights[i : i + size]
        if model.training:
            total = total + (mx.fast.cross_entropy(logits, y) * w).sum()
        else:
            # Its second result is not asked for, so it is not computed.
            total = total + cross_entropy_with_gradient(logits, y, w)[0]
    return total


def _with_gradient(head: Head, size: int) -> Any:
    """(hidden, labels, weights) to (loss sum, its gradient in hidden), in slices of `size` rows.

    The gradient is computed along the way, when a slice's logits are there; the backward pass only
    scales it. The head itself gets no gradient.
    """

    @mx.custom_function
    def total(h: mx.array, y: mx.array, w: mx.array) -> tuple[mx.array, mx.array]:
        losses: list[mx.array] = []
        slopes: list[mx.array] = []
        for i in range(0, len(h), size):
            own = _after(h[i : i + size], slopes[-1]) if slopes else h[i : i + size]
            logits = head(own)
            loss, slope = cross_entropy_with_gradient(
                logits.astype(mx.float32), y[i : i + size], w[i : i + size]
            )
            # Only products of `slope` come out of this; nothing of the head runs twice.
            _, products = mx.vjp(head, [own], [slope.astype(logits.dtype)])
            losses.append(loss)
            slopes.append(products[0])
        return mx.stack(losses).sum(), mx.concatenate(slopes)

    @total.vjp
    def total_vjp(primals: Any, cotangents: Any, outputs: Any) -> Any:
        _, y, w = primals
        slope = (cotangents[0] * outputs[1]).astype(outputs[1].dtype)
        return slope, mx.zeros_like(y), mx.zeros_like(w)

    return total


def cross_entropy_with_gradient(
    logits: mx.array, labels: mx.array, weights: mx.array
) -> tuple[mx.array, mx.array]:
    """Weighted sum of float32 cross-entropies, and its gradient in the logits."""
    if fast_math.wanted():
        return fast_cpu.cross_entropy(logits, labels, weights)
    loss = (mx.fast.cross_entropy(logits, labels) * weights).sum()
    gradient = mx.softmax(logits, axis=-1) * weights[:, None]
    return loss, gradient.at[mx.arange(labels.size), labels].subtract(weights)


def _after(value: mx.array, earlier: mx.array) -> mx.array:
    """`value`, computed after `earlier`: all slices at once would be all logits at once."""
    return mx.depends([value], [earlier])[0]


def _vocabulary(model: nn.Module, head: Head, hidden: mx.array) -> int:
    known = getattr(model, "_companion_vocabulary", None)
    if known is None:
        # Shapes are known without computing anything.
        known = model._companion_vocabulary = head(mx.zeros((1, hidden.shape[-1]))).shape[-1]
    return known


def _head_trains(model: nn.Module) -> bool:
    names = dict(tree_flatten(model.trainable_parameters()))
    return any(name.startswith(_HEAD_NAMES) for name in names)
