"""Fusing: what survives, more bits where too little does, adapters that stay, and the report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from lora_models import TOKENS, adapted, llama
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model, save_config, save_model

from mlx_companion.errors import AdapterError, ConfigError
from mlx_companion.lora import (
    LoraConfig,
    adapter_parameters,
    attach,
    attached_config,
    detach,
    fuse,
    is_attached,
    load_adapter,
    save_adapter,
    set_multiplier,
)
from mlx_companion.lora.layers import Adapter, dense_weight

ALL = ("q_proj", "down_proj", "embed_tokens", "lm_head")
CONFIG = {
    "model_type": "llama",
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": 64,
    "tie_word_embeddings": False,
    "quantization": {"group_size": 32, "bits": 4, "mode": "affine"},
}


def sized(model: nn.Module, share: float, of: str = "") -> nn.Module:
    """Updates of `share` of each weight's spread, in the layers whose path holds `of`."""
    for path, layer in model.named_modules():
        if isinstance(layer, Adapter) and of in path:
            layer.lora_a = mx.random.normal(layer.lora_a.shape, key=mx.random.key(3))
            layer.lora_b = mx.random.normal(layer.lora_b.shape, key=mx.random.key(4))
            spread = dense_weight(layer.base).std() / (layer.scale * layer._product().std())
            layer.lora_b = layer.lora_b * (share * spread)
    return model


def four_bits(share: float, **config: Any) -> nn.Module:
    model = llama(bits=4, width=128)
    attach(model, LoraConfig(rank=8, **config))
    return sized(model, share)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("init", ["kaiming", "pissa"])
@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("tied", [False, True])
def test_every_method_fuses(dora: bool, init: Any, bits: int | None, tied: bool) -> None:
    model = llama(bits=bits, tied=tied)
    before = sorted(dict(tree_flatten(model.trainable_parameters())))
    adapted(model, LoraConfig(rank=4, targets=ALL, dora=dora, init=init, scaling="rslora"))
    set_multiplier(model, 0.7)
    expected = model(TOKENS)
    report = fuse(model, dequantize=True)
    np.testing.assert_allclose(np.array(model(TOKENS)), np.array(expected), rtol=2e-3, atol=2e-3)
    assert report.worst.cosine > 0.999
    assert {layer.kind for layer in report.layers} == {"Linear", "Embedding"}
    assert {abs(layer.norm_ratio - 1) < 0.01 for layer in report.layers} == {True}
    assert not is_attached(model)
    found = sorted(dict(tree_flatten(model.trainable_parameters())))
    assert found == before


@pytest.mark.parametrize("share", [0.01, 0.05, 0.15])
def test_mlx_lm_loses_on_four_bits_what_more_bits_keep(share: float) -> None:
    """The share of the weights' spread that an update has decides what 4 bits leave of it."""
    from mlx_lm.tuner.lora import LoRALinear as MlxLmLoRALinear

    model = four_bits(share, targets=("q_proj",), layers=1)
    layer = model.layers[1].self_attn.q_proj
    weight, delta = np.array(dense_weight(layer.base)), np.array(layer.delta())

    def cosine(fused: nn.Module) -> float:
        found = np.array(dense_weight(fused)) - weight
        return float((found * delta).sum() / np.linalg.norm(found) / np.linalg.norm(delta))

    theirs = MlxLmLoRALinear.from_base(layer.base, r=8, scale=layer.scale)
    theirs.lora_a, theirs.lora_b = layer.lora_a, layer.lora_b
    assert cosine(theirs.fuse()) < {0.01: 0.2, 0.05: 0.6, 0.15: 0.97}[share]
    report = fuse(model, min_cosine=0.98, lost="raise_bits")
    fused = model.layers[1].self_attn.q_proj
    assert cosine(fused) > 0.98
    assert report.worst.cosine == pytest.approx(cosine(fused), abs=1e-3)
    realised = np.array(dense_weight(fused)) - weight
    ratio = np.linalg.norm(realised) / np.linalg.norm(delta)
    assert report.worst.norm_ratio == pytest.approx(ratio, rel=1e-3)


def test_bits_are_raised_where_they_are_needed_and_nowhere_else(tmp_path: Path) -> None:
    model = four_bits(2.0, targets=ALL)
    sized(model, 0.2, "q_proj")
    sized(model, 1e-3, "layers.1.self_attn.q_proj")
    expected = model(TOKENS)
    report = fuse(model, lost="raise_bits", min_cosine=0.95)
    bits = {layer.path: (layer.old_bits, layer.bits) for layer in report.layers}
    assert bits == {
        "lm_head": (4, 4),
        "model.embed_tokens": (4, 4),
        "model.layers.0.mlp.down_proj": (4, 4),
        "model.layers.0.self_attn.q_proj": (4, 8),
        "model.layers.1.mlp.down_proj": (4, 4),
        "model.layers.1.self_attn.q_proj": (4, None),
    }
    assert isinstance(model.layers[1].self_attn.q_proj, nn.Linear)
    assert model.layers[0].self_attn.q_proj.bits == 8
    difference = np.linalg.norm(np.array(model(TOKENS) - expected))
    assert difference < 0.5 * np.linalg.norm(np.array(expected))

    table = report.table().splitlines()
    assert table[0].split() == ["layer", "bits", "cosine", "norm"]
    assert any(line.split()[1:4] == ["4", "->", "8"] for line in table)
    assert any("4 -> float32" in line for line in table)

    config = report.updated_config(CONFIG)
    assert CONFIG["quantization"] == {"group_size": 32, "bits": 4, "mode": "affine"}
    assert set(config["quantization"]) == {
        "group_size",
        "bits",
        "mode",
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.self_attn.q_proj",
    }
    # As mlx-lm saves and loads it.
    save_model(tmp_path, model)
    save_config(config, tmp_path / "config.json")
    loaded, _ = load_model(tmp_path)
    assert mx.array_equal(loaded(TOKENS), model(TOKENS))
    assert loaded.layers[0].self_attn.q_proj.bits == 8


def test_three_choices_for_what_four_bits_would_lose() -> None:
    model = four_bits(0.01, targets=("q_proj", "down_proj"))
    sized(model, 2.0, "down_proj")
    expected = model(TOKENS)
    before = {path: id(module) for path, module in model.named_modules()}
    with pytest.raises(AdapterError, match=r"2 of 4 layers.*self_attn.q_proj.*lost='raise_bits'"):
        fuse(model)
    assert {path: id(module) for path, module in model.named_modules()} == before
    assert mx.array_equal(model(TOKENS), expected)
    with pytest.raises(ConfigError, match="lost must be one of"):
        fuse(model, lost="drop")  # type: ignore[arg-type]

    report = fuse(model, lost="keep")
    assert report.kept == tuple(f"model.layers.{n}.self_attn.q_proj" for n in (0, 1))
    assert report.worst.path.endswith("down_proj")
    assert report.table().count("adapter kept") == 2
    assert sorted({name.split(".")[-2] for name in adapter_parameters(model)}) == ["q_proj"]


def test_what_is_kept_can_be_saved_loaded_and_taken_off(tmp_path: Path) -> None:
    def fused() -> nn.Module:
        model = four_bits(0.01, targets=("q_proj", "down_proj"), rank_pattern={"q_proj": 3})
        sized(model, 2.0, "down_proj")
        assert fuse(model, lost="keep").kept
        return model

    model = fused()
    config = attached_config(model)
    assert config is not None
    assert config.targets == tuple(f"model.layers.{n}.self_attn.q_proj" for n in (0, 1))
    save_adapter(tmp_path / "rest", model, config, "ab" * 32)
    expected = model(TOKENS)
    assert len(detach(model)) == 2
    assert not mx.array_equal(model(TOKENS), expected)
    load_adapter(tmp_path / "rest", model)
    assert mx.array_equal(model(TOKENS), expected)
    assert model.layers[0].self_attn.q_proj.rank == 3


def test_an_adapter_of_one_use_of_a_tied_embedding_stays_beside_it() -> None:
    model = llama(tied=True)
    adapted(model, LoraConfig(targets=("embed_tokens", "q_proj"), tied="input"))
    expected = model(TOKENS)
    for lost in ("refuse", "raise_bits"):
        with pytest.raises(
            AdapterError, match=r"embed_tokens is also the output head.*input alone"
        ):
            fuse(model, lost=lost)  # type: ignore[arg-type]
    assert fuse(model, lost="keep").kept == ("model.embed_tokens",)
    np.testing.assert_allclose(np.array(model(TOKENS)), np.array(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", ["mxfp4", "nvfp4"])
def test_other_quantizations_fuse_and_get_more_bits(mode: str) -> None:
    model = llama(width=128)
    nn.quantize(model, group_size=None, mode=mode, class_predicate=lambda p, m: "q_proj" in p)
    attach(model, LoraConfig(rank=4, targets=("q_proj",)))
    sized(model, 2.0, "layers.0")
    sized(model, 0.2, "layers.1")
    report = fuse(model, lost="raise_bits", min_cosine=0.97)
    first, second = report.layers
    assert (first.mode, first.bits) == (mode, 4)
    assert (second.mode, second.bits, second.group_size) == ("affine", 8, 32)


def test_values_that_are_not_finite_are_refused() -> None:
    model = adapted(llama())
    layer = model.layers[0].mlp.up_proj
    layer.lora_b = mx.full(layer.lora_b.shape, float("nan"))
    for lost in ("refuse", "raise_bits", "keep"):
        with pytest.raises(AdapterError, match=r"layers\.0\.mlp\.up_proj.*not finite"):
            fuse(model, lost=lost)  # type: ignore[arg-type]


def test_a_float_model_needs_no_entries() -> None:
    model = adapted(llama())
    report = fuse(model)
    plain = {k: v for k, v in CONFIG.items() if k != "quantization"}
    assert report.updated_config(plain) == plain
    assert not any(layer.changed_bits for layer in report.layers)
    raised = replace(report.layers[0], old_bits=4, bits=8)
    assert raised.changed_bits
