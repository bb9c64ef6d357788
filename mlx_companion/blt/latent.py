"""The latent transformer: most of the model, and run once per patch instead of once per byte."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from mlx_companion.blt.attention import Sight
from mlx_companion.blt.config import BltConfig
from mlx_companion.blt.layers import Block


class LatentTransformer(nn.Module):
    """A causal transformer over patches.

    Args:
        config: of the whole model. Patches are projected when k * D is not the latent width.
    """

    def __init__(self, config: BltConfig) -> None:
        super().__init__()
        stack = config.latent
        if config.patch_width != stack.width:
            self.token_embedding_projection = nn.Linear(config.patch_width, stack.width, bias=False)
        self.layers = [Block(stack) for _ in range(stack.layers)]

    def __call__(self, patches: mx.array, sight: Sight) -> mx.array:
        """(B, P, k * D) -> (B, P, latent width)."""
        x = self.embed(patches)
        for layer in self.layers:
            x = layer(x, sight)
        return x

    def embed(self, patches: mx.array) -> mx.array:
        """The input of the first layer."""
        if "token_embedding_projection" in self:
            return self.token_embedding_projection(patches)
        return patches
