"""The operations that decide how fast byte models, adapters and losses run, one folder each.

    patch_pool               bytes of a patch to one vector: maximum, mean or sum
    hash_embed               hash n-grams to the sum of their embeddings
    patch_cross_attention    patches over their bytes, bytes over their patch
    byte_entropy             entropies of next-byte predictions, and the decision
    lora_bgmv                a linear layer with another adapter for each row
    linear_cross_entropy     hidden states to losses, without all the logits

Every op is one public function with `impl="auto" | "reference" | "plain" | "metal" | "cuda"`
(`dispatch`): a reference that is slow and obvious, the best form in plain MLX, and a kernel body
that Metal and CUDA share. `testing` runs the Metal bodies on a CPU, under several schedules, and
finds races, divergence and accesses out of bounds.
"""

from __future__ import annotations

from mlx_companion.kernels.byte_entropy import ByteEntropy, byte_entropy
from mlx_companion.kernels.dispatch import Impl
from mlx_companion.kernels.hash_embed import hash_embed
from mlx_companion.kernels.linear_cross_entropy import linear_cross_entropy
from mlx_companion.kernels.lora_bgmv import lora_bgmv
from mlx_companion.kernels.matrix import Matrix
from mlx_companion.kernels.patch_cross_attention import patch_cross_attention
from mlx_companion.kernels.patch_pool import patch_pool

__all__ = [
    "ByteEntropy",
    "Impl",
    "Matrix",
    "byte_entropy",
    "hash_embed",
    "linear_cross_entropy",
    "lora_bgmv",
    "patch_cross_attention",
    "patch_pool",
]
