"""The lower layers of a Llama in NumPy: one short text in two thirds of MLX's time on Linux CPUs.

A message of 15 tokens is read in about forty milliseconds, most of which is fetching weights from
memory. MLX's Linux CPU backend adds some 2,000 small operations to that, each with a cost of its
own, exponentials one element at a time, and a rotary embedding computed anew in each layer. NumPy
does the same with fewer operations on the very same weights: they are not copied.

    rows = llama_rows(lm, layer=20)      # None where MLX's own way is to be used
    rows(tokens)                         # (B, L) -> (B, L, D), as `lm.model.model` cut at layer 20

Adapters on the model are left out on purpose: heads are trained on the model below them.

Source: Touvron et al., "LLaMA", 2023; Su et al., "RoFormer" (rotary embedding), 2021.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from mlx_companion.models.load import LanguageModel

_LINEAR = {
    "self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
}
_MASKED = np.float32(-1e9)


@dataclass(frozen=True)
class _Layer:
    """Weights of one layer, (out, in) as MLX has them; norms (D,)."""

    norm: np.ndarray
    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    o: np.ndarray
    mlp_norm: np.ndarray
    gate: np.ndarray
    up: np.ndarray
    down: np.ndarray


def llama_rows(lm: LanguageModel, layer: int) -> Callable[[np.ndarray], np.ndarray] | None:
    """A function from tokens (B, L), rows without padding, to normalized hidden states (B, L, D).

    Args:
        lm: a loaded model.
        layer: so many layers run.

    Returns:
        None when the model is no plain float32 Llama, or the machine gains nothing.
    """
    from mlx_companion.kernels.fast_math import wanted

    if not wanted() or getattr(lm.model, "model_type", "") != "llama":
        return None
    inner = lm.model.model
    tables = [_tables(block) for block in inner.layers[:layer]]
    norms = [inner.norm.weight, getattr(inner.embed_tokens, "weight", None)]
    rope = inner.layers[0].self_attn.rope
    plain = type(rope).__name__ == "RoPE" and getattr(rope, "scale", 1.0) == 1.0
    windowed = any(block.use_sliding for block in inner.layers[:layer])
    arrays = [*norms, *(array for table in tables for array in table)]
    if not plain or windowed or not all(_float32(array) for array in arrays):
        return None
    views = [np.array(array, copy=False) for array in norms]
    layers = [_Layer(*(np.array(array, copy=False) for array in table)) for table in tables]
    attention = inner.layers[0].self_attn
    heads = (attention.n_heads, attention.n_kv_heads)
    angles = (rope.dims, float(rope.base), bool(rope.traditional))
    return _Rows(layers, views[1], views[0], heads, float(inner.norm.eps), angles)


class _Rows:
    def __init__(
        self,
        layers: list[_Layer],
        embedding: np.ndarray,
        norm: np.ndarray,
        heads: tuple[int, int],
        eps: float,
        angles: tuple[int, float, bool],
    ) -> None:
        self.layers, self.embedding, self.norm = layers, embedding, norm
        self.heads, self.eps = heads, np.float32(eps)
        self.angles = angles

    def __call__(self, tokens: np.ndarray) -> np.ndarray:
        hidden = self.embedding[tokens]
        turn = _turning(tokens.shape[1], *self.angles)
        mask = np.triu(np.full((tokens.shape[1],) * 2, _MASKED), 1)
        for layer in self.layers:
            hidden = hidden + self._attention(self._norm(hidden, layer.norm), layer, turn, mask)
            hidden = hidden + self._mlp(self._norm(hidden, layer.mlp_norm), layer)
        return self._norm(hidden, self.norm)

    def _norm(self, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        squares = np.einsum("bld,bld->bl", x, x) / np.float32(x.shape[-1])
        result: np.ndarray = x * (1 / np.sqrt(squares + self.eps))[..., None] * weight
        return result

    def _attention(
        self,
        x: np.ndarray,
        layer: _Layer,
        turn: Callable[[np.ndarray], np.ndarray],
        mask: np.ndarray,
    ) -> np.ndarray:
        B, L, _ = x.shape
        H, K = self.heads
        q = turn(_times(x, layer.q).reshape(B, L, H, -1))
        k = turn(_times(x, layer.k).reshape(B, L, K, -1))
        v = _times(x, layer.v).reshape(B, L, K, -1)
        width = q.shape[-1]
        # (B, K, H / K, L, D) against (B, K, 1, D, L): queries that share a key head side by side.
        q = q.reshape(B, L, K, H // K, width).transpose(0, 2, 3, 1, 4)
        scores = q @ k.transpose(0, 2, 3, 1)[:, :, None] * np.float32(width**-0.5) + mask
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=-1, keepdims=True)
        mixed = scores @ v.transpose(0, 2, 1, 3)[:, :, None]
        return _times(mixed.transpose(0, 3, 1, 2, 4).reshape(B, L, H * width), layer.o)

    def _mlp(self, x: np.ndarray, layer: _Layer) -> np.ndarray:
        gate, up = _times(x, layer.gate), _times(x, layer.up)
        # SiLU by tanh: no overflow where the gate is far below zero.
        gate *= np.float32(0.5) * (1 + np.tanh(np.float32(0.5) * gate))
        gate *= up
        return _times(gate, layer.down)


def _times(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """x (B, L, in) by weight (out, in): one matrix product for all rows."""
    B, L, _ = x.shape
    result: np.ndarray = (x.reshape(B * L, -1) @ weight.T).reshape(B, L, -1)
    return result


def _turning(
    length: int, dims: int, base: float, traditional: bool
) -> Callable[[np.ndarray], np.ndarray]:
    """Rotary embedding of (B, L, H, D): pairs of neighbours when traditional, else of halves."""
    angles = np.arange(length)[:, None] * base ** (-np.arange(0, dims, 2) / dims)
    cos, sin = (f(angles).astype(np.float32)[:, None] for f in (np.cos, np.sin))
    half = dims // 2
    first = slice(0, dims, 2) if traditional else slice(0, half)
    second = slice(1, dims, 2) if traditional else slice(half, dims)

    def turn(x: np.ndarray) -> np.ndarray:
        turned = x.copy()
        a, b = x[..., first], x[..., second]
        turned[..., first] = a * cos - b * sin
        turned[..., second] = a * sin + b * cos
        return turned

    return turn


def _tables(block: Any) -> list[Any]:
    """The nine arrays of a layer, in the order of `_Layer`; None for what is not plain."""
    linear = {
        name: _weight(getattr(getattr(block, part), name))
        for part, names in _LINEAR.items()
        for name in names
    }
    attention = [linear[name] for name in _LINEAR["self_attn"]]
    mlp = [linear[name] for name in _LINEAR["mlp"]]
    return [
        block.input_layernorm.weight,
        *attention,
        block.post_attention_layernorm.weight,
        *mlp,
    ]


def _weight(layer: Any) -> Any:
    # Adapter layers, ours and mlx-lm's, keep the layer that they wrap under these names.
    layer = getattr(layer, "base", getattr(layer, "linear", layer))
    return None if "bias" in layer else getattr(layer, "weight", None)


def _float32(array: Any) -> bool:
    import mlx.core as mx

    return isinstance(array, mx.array) and array.dtype == mx.float32
