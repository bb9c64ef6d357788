"""The Byte Latent Transformer: encoder, latent transformer and decoder put together.

    model = BltModel(config)
    logits = model(ids)                          # ids (B, N) int32, BOS first -> (B, N, V)
    patching = model.patching(ids)               # where the patches are
    logits = model(ids, patching)                # the same, with patches from outside

Byte t predicts byte t + 1. It knows itself and the bytes before it through the local layers, and
all patches up to the last closed one through the latent transformer: one more patch at the moment
when the next byte is known to open a new one.

Reference: Pagnoni et al. 2024, arXiv 2412.09871.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from mlx_companion.blt.attention import Sight
from mlx_companion.blt.byte_lm import FlatTransformer
from mlx_companion.blt.config import BltConfig
from mlx_companion.blt.decoder import LocalDecoder
from mlx_companion.blt.encoder import LocalEncoder
from mlx_companion.blt.hash_table import HashEmbedding
from mlx_companion.blt.latent import LatentTransformer
from mlx_companion.blt.layers import initialize
from mlx_companion.blt.patchers import make_patching
from mlx_companion.blt.patching import Patching
from mlx_companion.errors import ConfigError

# Latent rows are padded to a multiple of this, so that few shapes occur.
_PATCHES_TO = 32


class BltBackbone(nn.Module):
    """Everything but the output head; the names are those of the weight files.

    Args:
        config: of the whole model.
    """

    def __init__(self, config: BltConfig) -> None:
        super().__init__()
        self.local_encoder = LocalEncoder(config)
        self.global_transformer = LatentTransformer(config)
        self.local_decoder = LocalDecoder(config)
        if config.hash.tables:
            self.encoder_hash_tok_embedding = HashEmbedding(config.hash.rows, config.encoder.width)
        if config.entropy is not None:
            self.patcher = FlatTransformer(config.entropy, config.vocabulary)


class BltModel(nn.Module):
    """A byte latent transformer.

    Args:
        config: its shape.
    """

    def __init__(self, config: BltConfig) -> None:
        super().__init__()
        self.config = config
        self.model = BltBackbone(config)
        self.lm_head = nn.Linear(config.decoder.width, config.vocabulary, bias=False)
        self._initialize()

    def __call__(
        self,
        ids: mx.array,
        patching: Patching | None = None,
        documents: mx.array | None = None,
        lengths: mx.array | None = None,
    ) -> mx.array:
        """Logits of the next bytes.

        Args:
            ids: (B, N) int, BOS first.
            patching: where patches are; None to find them (see `patching`).
            documents: (B, N) int, where several texts are packed in a row.
            lengths: (B,) int, bytes of each row, where rows are padded on the right; logits of
                padding mean nothing.

        Returns:
            (B, N, V).
        """
        if patching is None:
            patching = self.patching(ids, documents, lengths)
        return self.lm_head(self.hidden(ids, patching, documents))

    def patching(
        self,
        ids: mx.array,
        documents: mx.array | None = None,
        lengths: mx.array | None = None,
    ) -> Patching:
        """Where patches begin. Arguments as for the call.

        Raises:
            ConfigError: the mode needs an entropy model, and this model has none.
        """
        rule = self.config.patching
        entropies = self.entropies(ids, documents) if rule.needs_entropies else None
        return make_patching(ids, rule, entropies, documents, lengths)

    def entropies(self, ids: mx.array, documents: mx.array | None = None) -> mx.array:
        """Entropy (nats) of the byte after each position, as the entropy model sees it: (B, N).

        Raises:
            ConfigError: this model has no entropy model.
        """
        if "patcher" not in self.model:
            raise ConfigError(
                f'patching mode "{self.config.patching.mode}" needs an entropy model and this '
                'model has none; use mode "space", or give the patches yourself'
            )
        return mx.stop_gradient(self.model.patcher.entropies(ids, documents))

    def hidden(
        self, ids: mx.array, patching: Patching, documents: mx.array | None = None
    ) -> mx.array:
        """States before the output head: (B, N) int -> (B, N, D)."""
        h = self.encode(ids, documents)
        latents = self.latents(h, patching, documents)
        sight = Sight(ids.shape[1], self.config.decoder.window, documents)
        return self.model.local_decoder(h, latents, patching.source, sight)

    def encode(self, ids: mx.array, documents: mx.array | None = None) -> mx.array:
        """The encoder's states of the bytes: (B, N) int -> (B, N, D)."""
        sight = Sight(ids.shape[1], self.config.encoder.window, documents)
        return self.model.local_encoder(self.embed(ids, documents), sight)

    def embed(self, ids: mx.array, documents: mx.array | None = None) -> mx.array:
        """Byte embeddings plus hash n-grams: (B, N) int -> (B, N, D)."""
        e = self.model.local_encoder.embed_tokens(ids)
        if "encoder_hash_tok_embedding" in self.model:
            e = e + self.model.encoder_hash_tok_embedding(ids, self.config.hash, documents)
        return e

    def latents(
        self, h: mx.array, patching: Patching, documents: mx.array | None = None
    ) -> mx.array:
        """The latent transformer's output for each patch: (B, N, D) -> (B, P, latent width).

        P is the largest number of patches in a row, rounded up; what lies behind a row's own
        patches means nothing and is not read.
        """
        ids = patching.patch_ids
        count = padded_patches(patching.count)
        patches = self.model.local_encoder.patches(h, ids, count)
        owners = None if documents is None else _patch_documents(ids, documents, count)
        sight = Sight(count, self.config.latent.window, owners)
        return self.model.global_transformer(patches, sight)

    def _initialize(self) -> None:
        config, parts = self.config, self.model
        initialize(parts.local_encoder, config.encoder.layers)
        initialize(parts.global_transformer, config.latent.layers)
        initialize(parts.local_decoder, config.decoder.layers)
        self.lm_head.weight = (
            mx.random.normal(self.lm_head.weight.shape) * config.decoder.width**-0.5
        )
        width, summed = config.encoder.width, config.hash.tables + 1
        embeddings: list[nn.Module] = [parts.local_encoder.embed_tokens]
        if "encoder_hash_tok_embedding" in parts:
            embeddings.append(parts.encoder_hash_tok_embedding)
        for part in embeddings:
            # All tables are summed; their sum has the size that one embedding would have.
            part.weight = mx.random.normal(part.weight.shape) * (width * summed) ** -0.5
        if "patcher" in parts:
            entropy = parts.patcher
            initialize(entropy, entropy.block.layers)
            entropy.embed_tokens.weight = (
                mx.random.normal(entropy.embed_tokens.weight.shape) * entropy.block.width**-0.5
            )
            entropy.freeze()


def padded_patches(count: int) -> int:
    """The number of latent positions that `count` patches are computed with."""
    return -(-count // _PATCHES_TO) * _PATCHES_TO


def _patch_documents(patch_ids: mx.array, documents: mx.array, count: int) -> mx.array:
    """The document of each patch: (B, P) int; -1 behind a row's own patches."""
    rows = mx.arange(patch_ids.shape[0])[:, None]
    empty = mx.full((patch_ids.shape[0], count), -1, dtype=documents.dtype)
    return empty.at[rows, patch_ids].maximum(documents)
