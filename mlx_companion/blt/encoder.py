"""The byte encoder: bytes in, states of bytes and vectors of patches out.

A few windowed transformer layers over byte embeddings (with hash n-grams added), then patches: the
elementwise maximum over a patch's bytes, projected to k vectors, each of which attends to the bytes
of its own patch.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from mlx_companion.blt.attention import Sight
from mlx_companion.blt.config import BlockConfig, BltConfig
from mlx_companion.blt.layers import Block
from mlx_companion.kernels.patch_cross_attention import patch_cross_attention
from mlx_companion.kernels.patch_pool import patch_pool


class CrossAttention(nn.Module):
    """Attention between bytes and patches; no positions, and the query's own state is added.

    Args:
        config: of the local stack it belongs to.
    """

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        width = config.width
        self.heads, self.head_width = config.heads, config.head_width
        self.q_norm = nn.RMSNorm(width, eps=config.norm_eps)
        self.k_norm = nn.RMSNorm(width, eps=config.norm_eps)
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, config.kv_count * config.head_width, bias=False)
        self.v_proj = nn.Linear(width, config.kv_count * config.head_width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def within(self, patches: mx.array, h: mx.array, patch_ids: mx.array) -> mx.array:
        """Patches read their own bytes: (B, P, k, D), (B, N, D), (B, N) -> (B, P, k, D)."""
        out = patch_cross_attention(
            self.queries(patches), *self.keys_values(h), patch_ids, side="encoder"
        )
        return patches + self.o_proj(out.flatten(-2))

    def across(
        self, h: mx.array, keys_values: tuple[mx.array, mx.array], source: mx.array
    ) -> mx.array:
        """Bytes read one patch each.

        Args:
            h: (B, N, D).
            keys_values: what `keys_values` made of the patches, each (B, P, k, H, W).
            source: (B, N) int.

        Returns:
            (B, N, D).
        """
        out = patch_cross_attention(self.queries(h), *keys_values, source, side="decoder")
        return h + self.o_proj(out.flatten(-2))

    def queries(self, x: mx.array) -> mx.array:
        """(..., D) -> (..., H, W)."""
        return self.q_proj(self.q_norm(x)).reshape(*x.shape[:-1], self.heads, self.head_width)

    def keys_values(self, x: mx.array) -> tuple[mx.array, mx.array]:
        """(..., D) -> keys and values, each (..., H, W)."""
        normed = self.k_norm(x)
        return self._split(self.k_proj(normed)), self._split(self.v_proj(normed))

    def _split(self, x: mx.array) -> mx.array:
        heads = x.reshape(*x.shape[:-1], -1, self.head_width)
        shared = self.heads // heads.shape[-2]
        return heads if shared == 1 else mx.repeat(heads, shared, axis=-2)


class LocalEncoder(nn.Module):
    """The byte encoder.

    Args:
        config: of the whole model.
    """

    def __init__(self, config: BltConfig) -> None:
        super().__init__()
        stack = config.encoder
        self.cross_k = config.cross_k
        self.embed_tokens = nn.Embedding(config.vocabulary, stack.width)
        self.layers = [Block(stack) for _ in range(stack.layers)]
        self.patch_embedding_projection = nn.Linear(stack.width, config.patch_width, bias=False)
        crossings = stack.layers if config.cross_all_encoder else 1
        self.cross_attn_layers = [CrossAttention(stack) for _ in range(crossings)]

    def __call__(self, e: mx.array, sight: Sight) -> mx.array:
        """States of the bytes: embeddings (B, N, D) -> (B, N, D)."""
        for layer in self.layers:
            e = layer(e, sight)
        return e

    def patches(self, h: mx.array, patch_ids: mx.array, count: int) -> mx.array:
        """Vectors of the patches.

        Args:
            h: (B, N, D), states of the bytes.
            patch_ids: (B, N) int.
            count: P.

        Returns:
            (B, P, k * D).
        """
        return self.read(self.patch_queries(patch_pool(h, patch_ids, count)), h, patch_ids)

    def patch_queries(self, pooled: mx.array) -> mx.array:
        """(B, P, D) -> (B, P, k, D)."""
        B, P, D = pooled.shape
        return self.patch_embedding_projection(pooled).reshape(B, P, self.cross_k, D)

    def read(self, queries: mx.array, h: mx.array, patch_ids: mx.array) -> mx.array:
        """Let patches attend to their bytes: (B, P, k, D) -> (B, P, k * D)."""
        # With cross-attention at every layer each one starts from that layer's pooled bytes, so
        # only the last one's result is left. The residual is doubled, as in the released models.
        out = queries + self.cross_attn_layers[-1].within(queries, h, patch_ids)
        return out.flatten(-2)
