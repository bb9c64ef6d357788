"""Losses: what a training step minimizes.

A loss is a callable `loss(model, batch) -> (sum, count)`: the sum over target tokens (nats) and
their number, so that the trainer can weigh micro-batches by tokens. A loss may have a method
`prepare(batch)` that turns a batch into arrays before anything is traced.

`sft_loss` is the cross-entropy of the target tokens. Logits exist at target positions only, a part
at a time (`kernels.linear_cross_entropy`), so that a vocabulary of 150,000 costs little memory:
mlx-lm's loss computes, and keeps, logits for every prompt and padding token too.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, overload

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_companion.errors import DataError
from mlx_companion.kernels.linear_cross_entropy import chunk_rows, linear_cross_entropy
from mlx_companion.models.heads import head_trains, output_head, split_head
from mlx_companion.models.prefix import can_share, run_prefixed, shared_length
from mlx_companion.text.batches import Batch
from mlx_companion.text.packed_samples import PackedRow
from mlx_companion.training.packed_targets import PackedTargets, packed_targets

__all__ = ["Loss", "SftLoss", "Targets", "chunk_rows", "sft_loss"]

# Prefix lengths are cut to a multiple of this where every new shape is compiled.
_COMPILED_STEP = 8


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
        chunk: targets whose logits may exist at a time; see `linear_cross_entropy`.
    """

    def __init__(
        self, share_prefix: bool = True, pad_to: int = 1, chunk: int | None = None
    ) -> None:
        self.share_prefix = share_prefix
        self.pad_to = pad_to
        self.chunk = chunk

    @overload
    def prepare(self, batch: Batch, row_weights: np.ndarray | None = None) -> Targets: ...

    @overload
    def prepare(self, batch: PackedRow, row_weights: np.ndarray | None = None) -> PackedTargets: ...

    def prepare(
        self, batch: Batch | PackedRow, row_weights: np.ndarray | None = None
    ) -> Targets | PackedTargets:
        """Find the targets of a batch.

        Args:
            batch: rows with at least one target among them.
            row_weights: (B,) what each row's targets count; 1 by default.

        Raises:
            DataError: the batch has no target; its mean loss would be 0/0.
        """
        if isinstance(batch, PackedRow):
            return packed_targets(batch, self.share_prefix, row_weights)
        tokens, targets = np.array(batch.tokens), np.array(batch.targets)
        rows, columns = np.nonzero(targets[:, 1:])
        if not len(rows):
            raise DataError("a batch has no token to train on; drop such samples first")
        step = _COMPILED_STEP if self.pad_to > 1 else 1
        prefix = shared_length(tokens, targets, step) if self.share_prefix else 0
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

    def __call__(
        self, model: nn.Module, batch: Batch | PackedRow | Targets | PackedTargets
    ) -> tuple[mx.array, mx.array]:
        """(sum of the targets' weighted cross-entropy in nats, sum of their weights)."""
        picked = self.prepare(batch) if isinstance(batch, Batch | PackedRow) else batch
        if isinstance(picked, PackedTargets):
            hidden = picked.hidden(model)
        else:
            picked, hidden = _hidden(model, picked)
        head = output_head(model)
        losses = linear_cross_entropy(
            hidden,
            head,
            picked.labels,
            weights=picked.weights,
            chunk=self.chunk,
            head_gradient=head_trains(head),
            gradient=model.training,
        )
        return losses.sum(), picked.weights.sum()


sft_loss = SftLoss()


def _hidden(model: nn.Module, picked: Targets) -> tuple[Targets, mx.array]:
    """Hidden states (N, D) of the targets, and these as the model could be run."""
    backbone, _ = split_head(model)
    if picked.prefix and not can_share(model, backbone):
        picked = _unshared(picked)
    if picked.prefix:
        hidden = run_prefixed(model, picked.tokens, picked.prefix)
    else:
        hidden = backbone(picked.tokens)
    return picked, hidden.reshape(-1, hidden.shape[-1])[picked.positions]


def _padded(values: np.ndarray, filler: int) -> mx.array:
    return mx.array(np.pad(values, (0, filler)).astype(np.int32))


def _unshared(picked: Targets) -> Targets:
    """The same targets for a model that has to run whole rows."""
    width = picked.tokens.shape[1]
    short = width - picked.prefix
    rows, columns = picked.positions // short, picked.positions % short
    return picked._replace(positions=rows * width + columns + picked.prefix, prefix=0)
