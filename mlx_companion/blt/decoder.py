"""The byte decoder: turns the last closed patch and the bytes' own states into the next byte."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from mlx_companion.blt.attention import Sight
from mlx_companion.blt.config import BltConfig
from mlx_companion.blt.encoder import CrossAttention
from mlx_companion.blt.layers import Block

KeysValues = tuple[mx.array, mx.array]


class LocalDecoder(nn.Module):
    """The byte decoder.

    Args:
        config: of the whole model.
    """

    def __init__(self, config: BltConfig) -> None:
        super().__init__()
        stack = config.decoder
        self.cross_k = config.cross_k
        self.patch_embedding_projection = nn.Linear(
            config.latent.width, config.patch_width, bias=False
        )
        self.layers = [Block(stack) for _ in range(stack.layers)]
        crossings = stack.layers if config.cross_all_decoder else 1
        self.cross_attn_layers = [CrossAttention(stack) for _ in range(crossings)]
        self.norm = nn.RMSNorm(stack.width, eps=stack.norm_eps)

    def __call__(self, h: mx.array, latents: mx.array, source: mx.array, sight: Sight) -> mx.array:
        """States that predict the next bytes.

        Args:
            h: (B, N, D), the encoder's states of the bytes.
            latents: (B, P, latent width).
            source: (B, N) int, the patch that each byte reads.
            sight: of the local layers.

        Returns:
            (B, N, D).
        """
        memory = self.memory(latents)
        for index, layer in enumerate(self.layers):
            if index < len(memory):
                # The residual is doubled here too.
                h = h + self.cross_attn_layers[index].across(h, memory[index], source)
            h = layer(h, sight)
        return self.norm(h)

    def memory(self, latents: mx.array) -> list[KeysValues]:
        """Keys and values (B, P, k, H, W) of the patches, for each cross-attention."""
        B, P, _ = latents.shape
        vectors = self.patch_embedding_projection(latents).reshape(B, P, self.cross_k, -1)
        return [crossing.keys_values(vectors) for crossing in self.cross_attn_layers]
