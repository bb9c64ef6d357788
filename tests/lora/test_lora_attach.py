"""Attach, detach and fuse on a small llama, plain and quantized."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from lora_models import TOKENS, adapted, llama, state
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import linear_to_lora_layers, remove_lora_layers

from mlx_companion.errors import AdapterError
from mlx_companion.lora import (
    LoraConfig,
    LoRALinear,
    adapter_parameters,
    attach,
    detach,
    fuse,
    get_multiplier,
    is_attached,
    load_parameters,
    set_multiplier,
)

MLX_LM = {"rank": 4, "scale": 2.0, "dropout": 0.0}


@pytest.mark.parametrize("bits", [None, 4, 8])
def test_attaching_changes_nothing_but_what_is_trained(bits: int | None) -> None:
    model = llama(bits=bits)
    before = model(TOKENS)
    paths = attach(model, LoraConfig(rank=4))
    assert mx.array_equal(model(TOKENS), before)
    assert len(paths) == 2 * 7
    trained = dict(tree_flatten(model.trainable_parameters()))
    assert sorted(trained) == sorted(f"{path}.lora_{m}" for path in paths for m in "ab")
    assert sorted(adapter_parameters(model)) == sorted(trained)
    assert is_attached(model)


def test_the_seed_decides_and_the_global_generator_is_left_alone() -> None:
    def initial(seed: int, disturb: int) -> dict[str, np.ndarray]:
        mx.random.seed(disturb)
        model = llama()
        state_before = [np.array(s) for s in mx.random.state]
        attach(model, LoraConfig(rank=4), seed=seed)
        weights = {name: np.array(w) for name, w in adapter_parameters(model).items()}
        after = [np.array(s) for s in mx.random.state]
        np.testing.assert_array_equal(state_before, after)
        return weights

    one, same, other = initial(1, 5), initial(1, 6), initial(2, 5)
    for name, weight in one.items():
        np.testing.assert_array_equal(weight, same[name])
        assert np.array_equal(weight, other[name]) == name.endswith("lora_b")
    first, second = (one[f"model.layers.{n}.self_attn.q_proj.lora_a"] for n in (0, 1))
    assert not np.array_equal(first, second)
    assert abs(first).max() <= 32**-0.5
    assert first.std() == pytest.approx(32**-0.5 / 3**0.5, rel=0.15)


@pytest.mark.parametrize(
    ("targets", "layers", "count"),
    [
        (("q_proj",), None, 2),
        (("self_attn.*",), None, 8),
        (("*.mlp.*", "v_proj"), None, 8),
        (("model.layers.1.mlp.up_proj",), None, 1),
        (("q_proj", "v_proj"), 1, 2),
        (("q_proj",), 99, 2),
        (("lm_head",), None, 1),
    ],
)
def test_targets(targets: tuple[str, ...], layers: int | None, count: int) -> None:
    model = llama()
    paths = attach(model, LoraConfig(rank=2, targets=targets, layers=layers))
    assert len(paths) == count
    if layers == 1:
        assert all(path.startswith("model.layers.1.") for path in paths)
    wrapped = [path for path, m in model.named_modules() if isinstance(m, LoRALinear)]
    assert sorted(wrapped) == sorted(paths)


def test_errors_say_what_to_do() -> None:
    model = llama()
    with pytest.raises(AdapterError, match=r"matches the targets q_prj.*did you mean q_proj"):
        attach(model, LoraConfig(targets=("q_prj",)))
    with pytest.raises(AdapterError, match=r"called down_proj, gate_proj"):
        attach(model, LoraConfig(targets=("zzz",)))
    with pytest.raises(AdapterError, match="no linear layer at all"):
        attach(nn.Sequential(nn.ReLU()), LoraConfig())
    with pytest.raises(AdapterError, match="layers=1 was given"):
        attach(model, LoraConfig(targets=("lm_head",), layers=1))
    for call in (adapter_parameters, fuse, get_multiplier):
        with pytest.raises(AdapterError, match=r"attach\(model, config\) first"):
            call(model)
    assert dict(tree_flatten(model.trainable_parameters()))
    attach(model, LoraConfig())
    with pytest.raises(AdapterError, match=r"adapters already \(14.*detach"):
        attach(model, LoraConfig())


@pytest.mark.parametrize("bits", [None, 4])
def test_detach_brings_back_the_very_modules(bits: int | None) -> None:
    model = llama(bits=bits)
    model.model.embed_tokens.freeze()
    before, modules, logits = state(model), dict(model.named_modules()), model(TOKENS)
    paths = attach(model, LoraConfig(rank=4))
    assert sorted(detach(model)) == sorted(paths)
    assert {path: id(m) for path, m in model.named_modules()} == {
        path: id(m) for path, m in modules.items()
    }
    assert state(model) == before
    assert mx.array_equal(model(TOKENS), logits)
    assert not is_attached(model)
    assert detach(model) == []


@pytest.mark.parametrize("dora", [False, True])
def test_detach_takes_off_what_mlx_lm_leaves(dora: bool) -> None:
    def foreign() -> nn.Module:
        model = llama()
        linear_to_lora_layers(model, 2, MLX_LM, use_dora=dora)
        return model

    def left(model: nn.Module) -> int:
        return sum(name.endswith(".lora_a") for name, _ in tree_flatten(model.parameters()))

    theirs, ours = foreign(), foreign()
    remove_lora_layers(theirs)
    assert left(theirs) == (14 if dora else 0)
    with pytest.raises(AdapterError, match="adapters already"):
        attach(ours, LoraConfig())
    assert len(detach(ours)) == 14
    assert left(ours) == 0
    assert mx.array_equal(ours(TOKENS), llama()(TOKENS))


def test_a_model_in_evaluation_mode_stays_in_it() -> None:
    model = llama().eval()
    attach(model, LoraConfig(dropout=0.5))
    assert [path for path, module in model.named_modules() if module.training] == []
    detach(model)
    model.train()
    attach(model, LoraConfig(dropout=0.5))
    assert all(module.training for _, module in model.named_modules())


def test_the_multiplier_scales_the_change() -> None:
    model = llama()
    base = model(TOKENS)
    adapted(model)
    full = model(TOKENS)
    set_multiplier(model, 0)
    assert mx.array_equal(model(TOKENS), base)
    set_multiplier(model, 0.5)
    assert get_multiplier(model) == 0.5
    half = mx.abs(model(TOKENS) - base).max().item()
    assert 0 < half < mx.abs(full - base).max().item()
    set_multiplier(model, 1)
    assert mx.array_equal(model(TOKENS), full)
    assert "multiplier" not in str(sorted(dict(tree_flatten(model.parameters()))))
    next(m for _, m in model.named_modules() if isinstance(m, LoRALinear)).multiplier = 3.0
    with pytest.raises(AdapterError, match="different multipliers"):
        get_multiplier(model)


def test_weights_that_do_not_fit_change_nothing() -> None:
    model = adapted(llama())
    weights = adapter_parameters(model)
    name = next(iter(weights))
    for bad, words in (
        ({k: v for k, v in weights.items() if k != name}, "is missing"),
        (weights | {"x.lora_a": mx.zeros((1,))}, r"x\.lora_a is not in the model"),
        (weights | {name: mx.zeros((3, 3))}, r"has shape \(3, 3\), the model needs \(64, 4\)"),
    ):
        with pytest.raises(AdapterError, match=words):
            load_parameters(model, bad)
    assert all(mx.array_equal(weights[k], v) for k, v in adapter_parameters(model).items())


@pytest.mark.parametrize("multiplier", [1.0, 0.3])
def test_fused_equals_unfused(multiplier: float) -> None:
    model = llama(bias=True)
    before = sorted(dict(tree_flatten(model.trainable_parameters())))
    adapted(model)
    set_multiplier(model, multiplier)
    expected = model(TOKENS)
    report = fuse(model)
    assert np.allclose(np.array(model(TOKENS)), np.array(expected), rtol=1e-5, atol=1e-5)
    assert len(report.layers) == 14
    assert report.worst.cosine > 0.9999
    assert not is_attached(model)
    assert sorted(dict(tree_flatten(model.trainable_parameters()))) == before


def on_four_bits(share: float) -> tuple[nn.Module, Callable[[nn.Module], float]]:
    """A frozen 4-bit model with an update of `share` of the weights' spread, and what it keeps."""
    model = llama(bits=4, width=128)
    model.freeze()
    attach(model, LoraConfig(rank=8, targets=("q_proj",), layers=1))
    path = "model.layers.1.self_attn.q_proj"
    layer = dict(model.named_modules())[path]
    layer.lora_b = mx.random.normal(layer.lora_b.shape, key=mx.random.key(7))
    weight = dequantized(layer.base)
    layer.lora_b = layer.lora_b * (share * weight.std() / layer.delta().std())
    delta = layer.delta()

    def kept(fused: nn.Module) -> float:
        realised = np.array(dequantized(fused) - weight).ravel()
        meant = np.array(delta).ravel()
        return float(realised @ meant / np.linalg.norm(realised) / np.linalg.norm(meant))

    return model, kept


def dequantized(layer: nn.Module) -> mx.array:
    if not isinstance(layer, nn.QuantizedLinear):
        return layer.weight
    return mx.dequantize(
        layer.weight, layer.scales, layer.biases, group_size=layer.group_size, bits=layer.bits
    )


def test_fusing_onto_four_bits_is_refused_where_mlx_lm_loses_the_adapter() -> None:
    from mlx_lm.tuner.lora import LoRALinear as MlxLmLoRALinear

    model, kept = on_four_bits(0.01)
    layer = model.layers[1].self_attn.q_proj
    theirs = MlxLmLoRALinear.from_base(layer.base, r=8, scale=layer.scale)
    theirs.lora_a, theirs.lora_b = layer.lora_a, layer.lora_b
    assert kept(theirs.fuse()) < 0.2

    expected = model(TOKENS)
    with pytest.raises(AdapterError, match=r"1 of 1 layers.*layers\.1\.self_attn\.q_proj"):
        fuse(model)
    assert is_attached(model)
    assert mx.array_equal(model(TOKENS), expected)

    report = fuse(model, dequantize=True)
    assert [(layer.kind, layer.cosine > 0.999) for layer in report.layers] == [("Linear", True)]
    assert kept(model.layers[1].self_attn.q_proj) > 0.999
    assert tree_flatten(model.trainable_parameters()) == []
    assert np.allclose(np.array(model(TOKENS)), np.array(expected), rtol=1e-4, atol=1e-4)


def test_a_large_update_survives_four_bits_and_the_report_is_true() -> None:
    model, kept = on_four_bits(0.6)
    report = fuse(model)
    fused = model.layers[1].self_attn.q_proj
    assert isinstance(fused, nn.QuantizedLinear)
    assert report.worst.cosine > 0.9
    assert report.worst.cosine == pytest.approx(kept(fused), abs=1e-3)


def test_bfloat16_is_too_coarse_for_small_updates_as_well() -> None:
    model = llama()
    adapted(model)
    model.set_dtype(mx.bfloat16)
    for layer in (m for _, m in model.named_modules() if isinstance(m, LoRALinear)):
        layer.lora_b = layer.lora_b.astype(mx.float32) * 1e-4
    with pytest.raises(AdapterError, match="rounding leaves"):
        fuse(model)
    report = fuse(model, dequantize=True)
    assert report.worst.cosine > 0.99
    assert model.layers[0].mlp.up_proj.weight.dtype == mx.float32


def test_an_untrained_adapter_fuses_to_the_same_model() -> None:
    model = llama()
    attach(model, LoraConfig())
    expected = model(TOKENS)
    assert fuse(model).worst.cosine == 1.0
    assert mx.array_equal(model(TOKENS), expected)
