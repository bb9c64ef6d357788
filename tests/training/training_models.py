"""A small random llama with adapters, and small random rows, for the training tests."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.models.llama import Model, ModelArgs

from mlx_companion.lora import LoraConfig, adapter_parameters, attach, load_parameters
from mlx_companion.text import Encoded, LengthBuckets

VOCABULARY = 61


def llama(seed: int = 0, **options: Any) -> Model:
    """Two layers of width 32, random weights, no adapters."""
    args: dict[str, Any] = {
        "model_type": "llama",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": False,
    }
    model = Model(ModelArgs(**(args | options)))
    keys = iter(mx.random.split(mx.random.key(seed), 200))
    weights = sorted(tree_flatten(model.parameters()))
    scaled = [
        (name, mx.random.normal(w.shape, key=next(keys)) * w.shape[-1] ** -0.5)
        for name, w in weights
    ]
    model.load_weights(scaled)
    mx.eval(model.parameters())
    return model


def adapted(dropout: float = 0.0, seed: int = 0, zero: bool = False, **options: Any) -> nn.Module:
    """The same with adapters of rank 4, whose B is random unless `zero`."""
    model = llama(seed, **options)
    attach(model, LoraConfig(rank=4, alpha=8.0, dropout=dropout), seed=seed)
    if not zero:
        keys = iter(mx.random.split(mx.random.key(seed + 1), 200))
        values = {
            name: 0.2 * mx.random.normal(w.shape, key=next(keys))
            for name, w in adapter_parameters(model).items()
        }
        load_parameters(model, values)
    return model


def rows(count: int = 12, seed: int = 0, prefix: int = 0, longest: int = 24) -> list[Encoded]:
    """Random rows of 4 to `longest` tokens behind a common prefix; half of each is trained on."""
    rng = np.random.default_rng(seed)
    shared = rng.integers(0, VOCABULARY, prefix).tolist()
    found = []
    for length in rng.integers(4, longest + 1, count).tolist():
        own = rng.integers(0, VOCABULARY, length).tolist()
        prompt = prefix + length // 2
        targets = [False] * prompt + [True] * (prefix + length - prompt)
        found.append(Encoded(shared + own, targets))
    return found


def buckets(
    count: int = 12, seed: int = 0, batch_tokens: int = 64, **options: Any
) -> LengthBuckets:
    """Batches of such rows."""
    return LengthBuckets(rows(count, seed, **options), batch_tokens=batch_tokens, seed=seed)


def arrays(model: nn.Module) -> dict[str, mx.array]:
    """The trainable parameters by name."""
    return dict(tree_flatten(model.trainable_parameters()))


def same(left: dict[str, mx.array], right: dict[str, mx.array]) -> bool:
    """Bit for bit."""
    return left.keys() == right.keys() and all(
        np.array(left[name]).tobytes() == np.array(right[name]).tobytes() for name in left
    )


def distance(left: Any, right: Any) -> float:
    """Largest difference of two trees of arrays, relative to the largest value."""
    ours, theirs = dict(tree_flatten(left)), dict(tree_flatten(right))
    assert ours.keys() == theirs.keys()
    scale = max(float(mx.abs(value).max()) for value in theirs.values())
    return max(float(mx.abs(ours[name] - theirs[name]).max()) for name in ours) / scale
