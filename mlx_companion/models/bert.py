"""BERT in MLX: the encoder alone, as sentence embeddings use it.

Post-layer-norm transformer with learned absolute positions and exact GELU. Module names follow
the published weights closely enough that loading needs a few renames only (`mlx_name`).

Source: Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers", 2019.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

_RENAMES = (
    ("attention.self.", "attention."),
    ("attention.output.dense", "attention.output"),
    ("attention.output.LayerNorm", "attention_norm"),
    ("intermediate.dense", "intermediate"),
    ("output.dense", "output"),
    ("output.LayerNorm", "output_norm"),
    ("embeddings.LayerNorm", "embeddings.norm"),
    ("encoder.layer.", "layers."),
)


# Rational approximation of erf on [-3.8325, 3.8325], the one of Eigen and XLA: x P(x^2) / Q(x^2),
# highest power first. Its error, 4.4e-7, is no larger than that of `mx.erf` (5.2e-7).
_ERF_LIMIT = 3.832506856900711
_ERF_P = (
    -2.72614225801306e-10,
    2.77068142495902e-08,
    -2.10102402082508e-06,
    -5.69250639462346e-05,
    -7.34990630326855e-04,
    -2.95459980854025e-03,
    -1.60960333262415e-02,
)
_ERF_Q = (
    -1.45660718464996e-05,
    -2.13374055278905e-04,
    -1.68282697438203e-03,
    -7.37332916720468e-03,
    -1.42647390514189e-02,
)


def gelu(x: mx.array) -> mx.array:
    """Exact GELU, x (1 + erf(x / sqrt 2)) / 2, to float32 rounding.

    MLX's erf is four times slower on the CPU backend than this rational one, and takes half the
    time of a small BERT there; elsewhere MLX's own fused GELU is used.
    """
    if mx.default_device().type != mx.DeviceType.cpu:
        return nn.gelu(x)
    y = mx.clip(x * math.sqrt(0.5), -_ERF_LIMIT, _ERF_LIMIT)
    z = y * y
    return 0.5 * x * (1.0 + y * _polynomial(_ERF_P, z) / _polynomial(_ERF_Q, z))


def _polynomial(coefficients: tuple[float, ...], z: mx.array) -> mx.array:
    total = z * coefficients[0] + coefficients[1]
    for coefficient in coefficients[2:]:
        total = total * z + coefficient
    return total


@dataclass(frozen=True)
class BertConfig:
    """Sizes of a BERT, named as in its `config.json`."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float


class BertEmbeddings(nn.Module):
    """Token, position and segment embeddings, summed and normalized."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, width)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, width)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, width)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def __call__(self, tokens: mx.array) -> mx.array:
        """Embed tokens (B, L), all of segment 0, into (B, L, D)."""
        length = tokens.shape[1]
        places = self.position_embeddings.weight[:length] + self.token_type_embeddings.weight[0]
        return self.norm(self.word_embeddings(tokens) + places)


class BertAttention(nn.Module):
    """Multi-head attention in both directions."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def __call__(self, x: mx.array, mask: mx.array) -> mx.array:
        """Attend from x (B, L, D) to itself where mask (B, 1, 1, L) is True."""
        batch, length, width = x.shape
        q, k, v = (
            part(x).reshape(batch, length, self.heads, -1).transpose(0, 2, 1, 3)
            for part in (self.query, self.key, self.value)
        )
        scale = (width // self.heads) ** -0.5
        out = mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)
        return self.output(out.transpose(0, 2, 1, 3).reshape(batch, length, width))


class BertLayer(nn.Module):
    """Attention and feed-forward, each followed by its layer norm."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.attention = BertAttention(config)
        self.attention_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.intermediate = nn.Linear(width, config.intermediate_size)
        self.output = nn.Linear(config.intermediate_size, width)
        self.output_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def __call__(self, x: mx.array, mask: mx.array) -> mx.array:
        """One layer: (B, L, D) to (B, L, D)."""
        x = self.attention_norm(x + self.attention(x, mask))
        return self.output_norm(x + self.output(gelu(self.intermediate(x))))


class Bert(nn.Module):
    """The whole encoder, without pooler and heads."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = BertEmbeddings(config)
        self.layers = [BertLayer(config) for _ in range(config.num_hidden_layers)]

    def __call__(self, tokens: mx.array, mask: mx.array) -> mx.array:
        """Hidden states of the last layer.

        Args:
            tokens: (B, L) ids.
            mask: (B, L) bool, True at tokens and False at padding; True somewhere in each row.

        Returns:
            (B, L, D).
        """
        x = self.embeddings(tokens)
        for layer in self.layers:
            x = layer(x, mask[:, None, None, :])
        return x


def mlx_name(name: str) -> str | None:
    """The parameter here that a published weight fills; None for those that are not used."""
    name = name.removeprefix("bert.")
    if name.startswith(("pooler.", "cls.")) or name.endswith("position_ids"):
        return None
    for old, new in _RENAMES:
        name = name.replace(old, new)
    return name
