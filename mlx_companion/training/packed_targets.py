"""Packed rows made ready for a loss over target positions.

What a model reads of each sample is all but its last token, from which nothing is predicted. The
beginning that all samples of a row share (a system prompt) is read once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_companion.errors import ConfigError, DataError
from mlx_companion.models.pack_layout import PackLayout
from mlx_companion.models.packed import check_packable, run_packed
from mlx_companion.text.packed_samples import PackedRow

# A shorter shared beginning is not worth the trouble.
_LEAST = 16


class PackedTargets(NamedTuple):
    """A packed row made ready.

    Attributes:
        tokens: (L,) int32, what the model reads: the shared beginning, then each sample's own
            tokens without its last one.
        positions: (N,) int32, where the hidden states that predict a target lie.
        labels: (N,) int32, the targets.
        weights: (N,) float32, what each counts.
        layout: where the samples lie.
    """

    tokens: mx.array
    positions: mx.array
    labels: mx.array
    weights: mx.array
    layout: PackLayout

    @property
    def prefix(self) -> int:
        """What compiled steps ask of targets. Raises ConfigError: a row's shape is its own."""
        raise ConfigError("packed rows cannot be compiled; set compile or packing to false")

    def hidden(self, model: nn.Module) -> mx.array:
        """(N, D) what predicts the targets.

        Raises:
            ModelError: the model cannot run packed rows.
        """
        check_packable(model)
        return run_packed(model, self.tokens, self.layout)[self.positions]


def packed_targets(
    row: PackedRow, share: bool = True, row_weights: np.ndarray | None = None
) -> PackedTargets:
    """Find the targets of a packed row.

    Args:
        row: samples with at least one target among them.
        share: run the tokens that all samples begin with once.
        row_weights: what each sample's targets count; 1 by default.

    Raises:
        DataError: the row has no target.
    """
    documents = [(t, m) for t, m in row.documents() if len(t) > 1]
    if not any(mask[1:].any() for _, mask in documents):
        raise DataError("a packed row has no token to train on; drop such samples first")
    shared = _shared(documents) if share else 0
    layout = PackLayout(tuple(len(tokens) - 1 - shared for tokens, _ in documents), shared)
    read = [tokens[shared:-1] for tokens, _ in documents]
    places, labels, owners = [], [], []
    for number, (tokens, mask) in enumerate(documents):
        columns = np.nonzero(mask[1:])[0]
        places.append(layout.starts[number] + columns - shared)
        labels.append(tokens[columns + 1])
        owners.append(np.full(len(columns), number))
    weights = np.ones(len(documents)) if row_weights is None else np.asarray(row_weights)
    return PackedTargets(
        mx.array(np.concatenate([documents[0][0][:shared], *read]).astype(np.int32)),
        mx.array(np.concatenate(places).astype(np.int32)),
        mx.array(np.concatenate(labels).astype(np.int32)),
        mx.array(weights[np.concatenate(owners)].astype(np.float32)),
        layout,
    )


def _shared(documents: Sequence[tuple[np.ndarray, np.ndarray]]) -> int:
    """How many leading tokens can be read once for all; each sample keeps one token or more."""
    if len(documents) < 2:
        return 0
    first = documents[0][0]
    # The state that predicts a sample's first target is its own.
    length = min(int(mask.argmax()) - 1 if mask.any() else len(t) - 2 for t, mask in documents)
    for tokens, _ in documents[1:]:
        same = tokens[:length] == first[:length]
        length = length if same.all() else int(same.argmin())
        if length < _LEAST:
            return 0
    return length if length >= _LEAST else 0
