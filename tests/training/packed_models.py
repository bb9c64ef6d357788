"""A small byte model and packed rows of text, for the tests of training on them."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_companion.text import PackedRows, flatten

WIDTH = 16
TEXT = [b"the quick brown fox jumps over the lazy dog. " * 4, b"pack my box " * 9, b"0123456789"]


class TinyByteModel(nn.Module):
    """Predicts the next byte from this one and the mean of those before it in the document."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(260, WIDTH)
        self.layers = [nn.Linear(WIDTH, WIDTH) for _ in range(2)]
        self.norm = nn.RMSNorm(WIDTH)
        self.dropout = nn.Dropout(dropout)
        self.lm_head = nn.Linear(WIDTH, 260, bias=False)

    def __call__(self, ids: mx.array, documents: mx.array | None = None) -> mx.array:
        """Logits (B, N, 260) of ids (B, N)."""
        x = self.embed_tokens(ids)
        seen = mx.tril(mx.ones((ids.shape[1], ids.shape[1])))
        if documents is not None:
            seen = seen * (documents[:, :, None] == documents[:, None, :])
        x = x + (seen / seen.sum(axis=-1, keepdims=True)) @ x
        for layer in self.layers:
            x = x + self.dropout(nn.relu(layer(x)))
        return self.lm_head(self.norm(x))


def byte_model(dropout: float = 0.0, seed: int = 0) -> TinyByteModel:
    """One with weights that the seed decides."""
    mx.random.seed(seed)
    model = TinyByteModel(dropout)
    mx.eval(model.parameters())
    return model


def packed(**options: Any) -> PackedRows:
    """Rows of 24 bytes of three documents."""
    return PackedRows(flatten(TEXT), **({"context": 24, "batch_rows": 4} | options))


def count_flops(batch: Any) -> float:
    """A thousand per position, as a real count would depend on the batch."""
    return 1000.0 * batch.ids.size
