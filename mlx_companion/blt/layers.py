"""The layers that every byte model is made of; attribute names are those of the weight files.

Pre-norm transformer blocks (RMSNorm, rotary positions on interleaved pairs, SwiGLU), as used by
the byte encoder, the latent transformer, the byte decoder, and the entropy model.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from mlx_companion.blt.attention import Sight
from mlx_companion.blt.config import BlockConfig
from mlx_companion.blt.fused import swiglu


class Attention(nn.Module):
    """Self-attention with rotary positions.

    Args:
        config: of the stack it belongs to.
    """

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        width, kv_width = config.width, config.kv_count * config.head_width
        self.heads, self.kv_heads = config.heads, config.kv_count
        self.rope_theta = config.rope_theta
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, kv_width, bias=False)
        self.v_proj = nn.Linear(width, kv_width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def __call__(self, x: mx.array, sight: Sight) -> mx.array:
        """(B, L, D) -> (B, L, D)."""
        return self.merge(sight.attend(*self.project(x)))

    def project(self, x: mx.array, offset: int | mx.array = 0) -> tuple[mx.array, ...]:
        """Queries (B, H, L, W), keys and values (B, K, L, W).

        Args:
            x: (B, L, D).
            offset: position of the first column, for all rows or (B,).
        """
        q = _heads(self.q_proj(x), self.heads)
        k = _heads(self.k_proj(x), self.kv_heads)
        v = _heads(self.v_proj(x), self.kv_heads)
        return self._rotate(q, offset), self._rotate(k, offset), v

    def merge(self, heads: mx.array) -> mx.array:
        """Attention's results (B, H, L, W) through the output projection: (B, L, D)."""
        B, H, L, W = heads.shape
        return self.o_proj(heads.swapaxes(1, 2).reshape(B, L, H * W))

    def _rotate(self, x: mx.array, offset: int | mx.array) -> mx.array:
        return mx.fast.rope(
            x, x.shape[-1], traditional=True, base=self.rope_theta, scale=1.0, offset=offset
        )


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)).

    Reference: Shazeer 2020, "GLU Variants Improve Transformer", arXiv 2002.05202.
    """

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.ffn, bias=False)
        self.up_proj = nn.Linear(config.width, config.ffn, bias=False)
        self.down_proj = nn.Linear(config.ffn, config.width, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        """(..., D) -> (..., D)."""
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))


class Block(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = FeedForward(config)
        self.input_layernorm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.width, eps=config.norm_eps)

    def __call__(self, x: mx.array, sight: Sight) -> mx.array:
        """(B, L, D) -> (B, L, D)."""
        return self.feed_forward(x + self.self_attn(self.input_layernorm(x), sight))

    def feed_forward(self, x: mx.array) -> mx.array:
        """The second half of the layer, residual included."""
        return x + self.mlp(self.post_attention_layernorm(x))


def initialize(module: nn.Module, layers: int) -> None:
    """Draw a stack's matrices: normal, with a standard deviation of D^-1/2 of the inputs.

    Matrices that write to the residual stream are smaller by sqrt(2 * layers), so that its variance
    does not grow with depth.

    Args:
        module: a module whose `nn.Linear` parts are set in place.
        layers: of the stack.
    """
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear):
            scale = part.weight.shape[1] ** -0.5
            if name.endswith(("o_proj", "down_proj")):
                scale /= (2 * layers) ** 0.5
            part.weight = mx.random.normal(part.weight.shape) * scale


def _heads(x: mx.array, count: int) -> mx.array:
    B, L, _ = x.shape
    return x.reshape(B, L, count, -1).swapaxes(1, 2)
