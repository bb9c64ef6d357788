"""Tiny random models of mlx-lm's architectures, those of every alias among them.

    model = tiny_model("llama3-1b")        # an alias: its architecture with its kind of RoPE
    model = tiny_model("gpt2")             # or another architecture

Weights are random and large enough for attention to matter; each has two or three layers.
"""

from __future__ import annotations

import importlib
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

VOCABULARY = 61

_COMMON: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": VOCABULARY,
    "tie_word_embeddings": False,
    "max_position_embeddings": 64,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
_SU = {"type": "longrope", "long_factor": [1.0, 1.5, 2.0, 3.0], "short_factor": [1.0] * 4}
_PHI = {"layer_norm_eps": 1e-5, "partial_rotary_factor": 0.5, "num_key_value_heads": 4}

# What each alias of `models.registry` is in mlx-lm, with what sets it apart.
OF_ALIAS: dict[str, tuple[str, dict[str, Any]]] = {
    "smollm2-135m": ("llama", {"rope_traditional": True, "tie_word_embeddings": True}),
    "tinyllama": ("llama", {}),
    "llama3-1b": ("llama", {"rope_scaling": _LLAMA3_ROPE, "tie_word_embeddings": True}),
    "mistral-7b": ("llama", {"head_dim": 16, "rope_theta": 1e6}),
    "mistral-tiny": ("llama", {"head_dim": 16, "rope_theta": 1e6}),
    "phi3-mini": ("phi3", {}),
    "phi2": ("phi", _PHI),
    "qwen2.5-0.5b": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2.5-1.5b": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2.5-3b": ("qwen2", {"rope_theta": 1e6}),
}
# Further ones that differ in something that packing has to do with.
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "windows": (
        "llama",
        {
            "layer_types": ["sliding_attention", "full_attention"],
            "sliding_window": 4,
        },
    ),
    "yarn": ("llama", {"rope_scaling": _YARN}),
    "longrope": ("phi3", {"rope_scaling": _SU, "original_max_position_embeddings": 16}),
    "qwen3": ("qwen3", {"head_dim": 8, "rope_theta": 1e4}),
    "gpt2": (
        "gpt2",
        {"n_ctx": 64, "n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 64}
        | {"layer_norm_epsilon": 1e-5},
    ),
    "gemma3_text": (
        "gemma3_text",
        {"head_dim": 8, "sliding_window": 4, "sliding_window_pattern": 2, "num_hidden_layers": 3},
    ),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
}


def tiny_model(name: str, seed: int = 0) -> nn.Module:
    """A random model by alias, name of `OTHERS`, or mlx-lm's name of the architecture."""
    module, options = (OF_ALIAS | OTHERS).get(name, (name, {}))
    return build(module, seed, **options)


def build(module: str, seed: int = 0, **options: Any) -> nn.Module:
    """A random model of mlx-lm's module with those entries of its config."""
    source = importlib.import_module(f"mlx_lm.models.{module}")
    args = source.ModelArgs.from_dict(_COMMON | {"model_type": module} | options)
    model = source.Model(args)
    weights = sorted(tree_flatten(model.parameters()))
    keys = mx.random.split(mx.random.key(seed), len(weights))
    model.load_weights(
        [(name, _random(name, w, key)) for (name, w), key in zip(weights, keys, strict=True)]
    )
    mx.eval(model.parameters())
    return model


def _random(name: str, weight: mx.array, key: mx.array) -> mx.array:
    noise = mx.random.normal(weight.shape, key=key)
    if weight.ndim == 1:
        return (1.0 if "norm" in name and name.endswith("weight") else 0.0) + 0.1 * noise
    return 1.5 * noise * weight.shape[-1] ** -0.5
