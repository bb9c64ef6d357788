"""Parameters and bytes of the planner against the modules themselves."""

from __future__ import annotations

import architectures
import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

import mlx_companion  # noqa: F401
from mlx_companion.blt import presets
from mlx_companion.blt.byte_lm import ByteLM
from mlx_companion.blt.model import BltModel
from mlx_companion.errors import ConfigError
from mlx_companion.models.bert import Bert, BertConfig
from mlx_companion.models.registry import ALIASES
from mlx_companion.quant.plan_families import FAMILIES, family_shape
from mlx_companion.quant.plan_modules import byte_shape, module_shape
from mlx_companion.quant.plan_shapes import Quantization, from_config
from mlx_companion.quant.plan_source import describe, known_models

MOE = {"num_experts": 4, "num_experts_per_tok": 2, "decoder_sparse_step": 2, "head_dim": 8}
MOE |= {"mlp_only_layers": [], "moe_intermediate_size": 16, "norm_topk_prob": True}
MOE |= {"rope_theta": 1e4, "num_hidden_layers": 4}
MODELS = {
    **architectures.OF_ALIAS,
    **{k: v for k, v in architectures.OTHERS.items() if v[0] != "gpt2"},
    "biased": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "qwen3_moe": ("qwen3_moe", MOE),
}
# What the authors say.
PUBLISHED = {
    "smollm2-135m": 134_515_008,
    "phi3-mini": 3_821_079_552,
    "phi2": 2_779_683_840,
    "tinyllama": 1_100_048_384,
    "llama3-1b": 1_235_814_400,
    "llama3.2-3b": 3_212_749_824,
    "llama3.1-8b": 8_030_261_248,
    "mistral-7b": 7_248_023_552,
    "mistral-tiny": 7_241_732_096,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-14b": 14_768_307_200,
    "qwen3-30b-a3b": 30_532_122_624,
    "mixtral-8x7b": 46_702_792_704,
}


def config_of(name: str) -> dict:
    family, options = MODELS[name]
    return architectures._COMMON | {"model_type": family} | options


def arrays(model: nn.Module) -> dict[str, mx.array]:
    return dict(tree_flatten(model.parameters()))


def byte_size(model: nn.Module) -> int:
    return sum(value.nbytes for value in arrays(model).values())


def fits(path: str, module: nn.Module) -> bool:
    return hasattr(module, "to_quantized") and module.weight.shape[-1] % 32 == 0


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_those_of_the_module(name: str) -> None:
    family, options = MODELS[name]
    weights = arrays(architectures.build(family, **options))
    shape = family_shape(config_of(name), name)
    assert shape.parameters == sum(value.size for value in weights.values())
    expected = {p.removesuffix(".weight"): v.shape for p, v in weights.items() if v.ndim > 1}
    stacked = {
        m.path: (m.experts, m.rows, m.columns) if m.role == "experts" else (m.rows, m.columns)
        for m in shape.matrices
    }
    assert stacked == expected


@pytest.mark.parametrize("name", MODELS)
def test_listed_and_built_shapes_agree(name: str) -> None:
    listed, built = family_shape(config_of(name), "x"), module_shape(config_of(name), "x")
    assert {m.path: m for m in listed.matrices} == {m.path: m for m in built.matrices}
    assert listed.vector_values == built.vector_values
    assert listed.attention == built.attention
    assert listed.active_parameters == built.active_parameters


@pytest.mark.parametrize(
    ("bits", "group", "mode"),
    [
        *((bits, 32, "affine") for bits in (3, 4, 5, 6)),
        *((2, 128, "affine"), (8, 64, "affine")),
        *((4, 32, "mxfp4"), (8, 32, "mxfp8"), (4, 16, "nvfp4")),
    ],
)
@pytest.mark.parametrize("name", ["smollm2-135m", "phi3-mini", "mixtral", "qwen2.5-3b", "phi2"])
@pytest.mark.parametrize("dtype", [mx.float16, mx.float32], ids=["f16", "f32"])
def test_quantized_bytes_are_those_of_mlx(
    name: str, bits: int, group: int, mode: str, dtype: mx.Dtype
) -> None:
    family, options = MODELS[name]
    options = options | {"intermediate_size": 96}
    model = architectures.build(family, **options)
    model.set_dtype(dtype)
    nn.quantize(
        model, group, bits, mode=mode,
        class_predicate=lambda p, m: hasattr(m, "to_quantized") and m.weight.shape[-1] % group == 0,
    )  # fmt: skip
    shape = family_shape(config_of(name) | options, name)
    kept = Quantization(bits, group, mode, dtype.size)
    assert shape.weight_bytes(kept) == byte_size(model)


def test_mixed_layers_count_by_their_own_settings() -> None:
    own = {"model.layers.0.mlp.down_proj": {"bits": 8, "group_size": 32}, "lm_head": False}
    model = architectures.build("llama", intermediate_size=64)
    model.set_dtype(mx.bfloat16)
    nn.quantize(model, 32, 4, class_predicate=lambda p, m: own.get(p, hasattr(m, "to_quantized")))
    kept = from_config({"bits": 4, "group_size": 32, **own})
    config = architectures._COMMON | {"model_type": "llama", "intermediate_size": 64}
    assert family_shape(config, "x").weight_bytes(kept) == byte_size(model)
    assert "mixed" in kept.name


def test_bert_is_ours() -> None:
    config = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config |= {"intermediate_size": 48, "vocab_size": 61, "max_position_embeddings": 40}
    config |= {"type_vocab_size": 2}
    shape = family_shape(config | {"model_type": "bert"}, "x")
    model = Bert(BertConfig(**config, layer_norm_eps=1e-12))
    assert shape.parameters == sum(value.size for value in arrays(model).values())
    assert not shape.generates


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_byte_models_are_ours(name: presets.Preset) -> None:
    for config, model in (
        (presets.blt_preset(name), BltModel),
        (presets.flat_preset(name), ByteLM),
    ):
        built = model(config)
        shape = byte_shape(config, name)
        assert shape.parameters == sum(value.size for value in arrays(built).values())
        nn.quantize(built, 32, 4, class_predicate=fits)
        assert shape.weight_bytes(Quantization(4, 32, dtype_bytes=4)) == byte_size(built)


@pytest.mark.parametrize("name", PUBLISHED)
def test_known_models_have_the_published_size(name: str) -> None:
    assert describe(name)[0].parameters == PUBLISHED[name]


def test_every_alias_is_known_and_listed() -> None:
    known = known_models()
    assert {alias: spec.hub_id for alias, spec in ALIASES.items()} == {
        alias: known[alias]["hub_id"] for alias in ALIASES
    }
    assert {entry["config"]["model_type"] for entry in known.values()} <= set(FAMILIES)


def test_active_parameters() -> None:
    # An untied embedding is looked up; of experts only the chosen ones are read.
    assert describe("llama3.1-8b")[0].active_parameters == 8_030_261_248 - 128256 * 4096
    assert describe("llama3-1b")[0].active_parameters == PUBLISHED["llama3-1b"]
    moe = describe("qwen3-30b-a3b")[0]
    experts = 3 * 48 * 2048 * 768
    unused = (128 - 8) * experts + 151936 * 2048
    assert moe.active_parameters == moe.parameters - unused


def test_other_architectures_are_built_by_mlx_lm() -> None:
    config = {"model_type": "gpt2", "vocab_size": 61} | architectures.OTHERS["gpt2"][1]
    config |= {"num_attention_heads": 4}
    model = architectures.tiny_model("gpt2")
    shape, _ = describe(config)
    assert shape.parameters == sum(value.size for value in arrays(model).values())
    assert shape.attention[0].cached == 64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bits": 7}, "bits is 7; expected 2, 3, 4"),
        ({"bits": 4, "group": 48}, "group size is 48"),
        ({"mode": "int4"}, "quantization mode is 'int4'"),
    ],
)
def test_formats_that_mlx_lacks(arguments: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Quantization(**arguments)
