"""A flat transformer language model over bytes, from the same layers.

It is the entropy model that decides where patches begin, the baseline that a patching model has to
beat, and, with another vocabulary, a token model.
"""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn

from mlx_companion.blt.attention import Sight
from mlx_companion.blt.config import BlockConfig, ByteLMConfig
from mlx_companion.blt.entropy import entropies_of_hidden
from mlx_companion.blt.layers import Block, initialize


class FlatTransformer(nn.Module):
    """Embedding, layers, norm and output head.

    Args:
        block: its layers.
        vocabulary: V.
    """

    def __init__(self, block: BlockConfig, vocabulary: int) -> None:
        super().__init__()
        self.block = block
        self.embed_tokens = nn.Embedding(vocabulary, block.width)
        self.layers = [Block(block) for _ in range(block.layers)]
        self.norm = nn.RMSNorm(block.width, eps=block.norm_eps)
        self.lm_head = nn.Linear(block.width, vocabulary, bias=False)

    def hidden(self, ids: mx.array, documents: mx.array | None = None) -> mx.array:
        """States before the output head: (B, N) int -> (B, N, D)."""
        x = self.embed_tokens(ids)
        sight = Sight(ids.shape[1], self.block.window, documents)
        for layer in self.layers:
            x = layer(x, sight)
        return self.norm(x)

    def __call__(self, ids: mx.array, documents: mx.array | None = None) -> mx.array:
        """Logits: (B, N) int -> (B, N, V)."""
        return self.lm_head(self.hidden(ids, documents))

    def entropies(self, ids: mx.array, documents: mx.array | None = None) -> mx.array:
        """Entropy of the prediction at each position: (B, N) int -> (B, N) nats."""
        return entropies_of_hidden(self.hidden(ids, documents), self.lm_head)


class ByteLM(nn.Module):
    """A flat language model.

    Args:
        config: its shape.

    `model(ids, documents=None)` gives logits (B, N, V); `documents` (B, N) tells apart the texts
    that are packed in one row.
    """

    def __init__(self, config: ByteLMConfig) -> None:
        super().__init__()
        self.config = config
        self.model = FlatTransformer(config.block, config.vocabulary)
        self.model.embed_tokens.weight = (
            mx.random.normal(self.model.embed_tokens.weight.shape) * config.block.width**-0.5
        )
        initialize(self.model, config.block.layers)

    @property
    def lm_head(self) -> Callable[[mx.array], mx.array]:
        """States (..., D) to logits (..., V)."""
        return self.model.lm_head

    def hidden(self, ids: mx.array, documents: mx.array | None = None) -> mx.array:
        """States before the output head: (B, N) int -> (B, N, D)."""
        return self.model.hidden(ids, documents)

    def __call__(self, ids: mx.array, documents: mx.array | None = None) -> mx.array:
        return self.model(ids, documents)

    def entropies(self, ids: mx.array, documents: mx.array | None = None) -> mx.array:
        """Entropy of the prediction at each position: (B, N) int -> (B, N) nats."""
        return self.model.entropies(ids, documents)
