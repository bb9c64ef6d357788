"""Three adapters of different ranks and targets, alone and in a bank, for the bank's tests."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
from lora_models import llama

from mlx_companion.lora import (
    AdapterBank,
    LoraConfig,
    adapter_parameters,
    attach,
    load_parameters,
)

TOKENS = mx.array([[1, 5, 9, 33, 2], [7, 7, 0, 63, 12], [3, 1, 4, 1, 5], [60, 2, 2, 9, 8]])
CONFIGS = {
    "tutor": LoraConfig(rank=4, alpha=8.0),
    "poet": LoraConfig(rank=7, alpha=3.0, targets=("q_proj", "down_proj")),
    "clerk": LoraConfig(rank=1, alpha=1.0, targets=("mlp.*", "lm_head")),
}
SEEDS = {name: number for number, name in enumerate(CONFIGS)}


def adapted(name: str, bits: int | None = None, seed: int | None = None, **options: Any) -> Any:
    """The model with that adapter, B not zero."""
    model = llama(bits, **options)
    attach(model, CONFIGS[name])
    keys = iter(mx.random.split(mx.random.key(SEEDS[name] if seed is None else seed), 200))
    weights = adapter_parameters(model)
    load_parameters(
        model, {n: 0.3 * mx.random.normal(w.shape, key=next(keys)) for n, w in weights.items()}
    )
    return model


def alone(name: str | None, tokens: mx.array, **options: Any) -> np.ndarray:
    model = llama(options.get("bits")) if name is None else adapted(name, **options)
    return np.array(model(tokens[None])[0])


def full_bank(bits: int | None = None) -> tuple[Any, AdapterBank]:
    model = llama(bits)
    bank = AdapterBank(model)
    for name in CONFIGS:
        bank.add(name, adapted(name, bits))
    return model, bank
