"""Bytes of caches, adapters and training, against the arrays themselves and by hand."""

from __future__ import annotations

import architectures
import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache

import mlx_companion  # noqa: F401
from mlx_companion.errors import ConfigError
from mlx_companion.lora import LoraConfig, attach
from mlx_companion.lora.config import DEFAULT_TARGETS
from mlx_companion.models.fast_cpu import fast_cpu
from mlx_companion.quant.plan_families import family_shape
from mlx_companion.quant.plan_machines import Machine, machine
from mlx_companion.quant.plan_memory import (
    LoraPlan,
    adapter_values,
    cache_bytes,
    training_bytes,
)
from mlx_companion.quant.plan_source import describe
from mlx_companion.text.batches import LengthBuckets
from mlx_companion.text.encode import Encoded
from mlx_companion.training.config import TrainConfig
from mlx_companion.training.gradients import GradientEngine
from mlx_companion.training.losses import SftLoss
from mlx_companion.training.optimizers import optimizer_for

CPU = Machine("cpu", 10**10, 10**10, 1e10, None, 1e11, 1e11, 1e-4, gpu=False)
MODELS = {**architectures.OF_ALIAS, **architectures.OTHERS}


def shape_of(name: str, **more: object) -> object:
    family, options = MODELS[name]
    config = architectures._COMMON | {"model_type": family} | options | more
    return family_shape(config, name)


@pytest.mark.parametrize("name", ["smollm2-135m", "phi3-mini", "mistral-7b", "qwen2.5-3b", "phi2"])
@pytest.mark.parametrize("tokens", [1, 63, 256, 300])
def test_the_cache_is_that_of_mlx_lm(name: str, tokens: int) -> None:
    model = architectures.tiny_model(name)
    cache = make_prompt_cache(model)
    mx.eval(model(mx.zeros((1, tokens), dtype=mx.int32), cache=cache))
    held = sum(part.keys.nbytes + part.values.nbytes for part in cache)
    assert cache_bytes(shape_of(name), tokens, 32) == held


@pytest.mark.parametrize("name", ["windows", "gemma3_text"])
def test_windows_bound_the_cache(name: str) -> None:
    model = architectures.tiny_model(name)
    cache = make_prompt_cache(model)
    shape = shape_of(name, **({"num_hidden_layers": 3} if name == "gemma3_text" else {}))
    for _ in range(9):
        mx.eval(model(mx.zeros((1, 1), dtype=mx.int32), cache=cache))
    held = sum(part.keys.nbytes + part.values.nbytes for part in cache)
    assert cache_bytes(shape, 9, 32) == held


def test_the_cache_by_hand() -> None:
    shape, _ = describe("llama3.1-8b")
    assert cache_bytes(shape, 32768) == 32768 * 32 * 2 * 8 * 128 * 2
    assert cache_bytes(shape, 32768, rows=3) == 3 * cache_bytes(shape, 32768)
    assert cache_bytes(shape, 32768, 4) == cache_bytes(shape, 32768) * 4.5 / 16
    with pytest.raises(ConfigError, match="kv bits is 5"):
        cache_bytes(shape, 1, 5)


@pytest.mark.parametrize("name", architectures.OF_ALIAS)
@pytest.mark.parametrize(("rank", "layers"), [(8, None), (3, 1)])
def test_adapters_are_those_that_are_attached(name: str, rank: int, layers: int | None) -> None:
    model = architectures.tiny_model(name)
    attach(model, LoraConfig(rank=rank, layers=layers))
    held = dict(tree_flatten(model.trainable_parameters()))
    run = LoraPlan(rank=rank, layers=layers)
    assert run.targets == DEFAULT_TARGETS
    assert adapter_values(shape_of(name), run) == sum(v.size for v in held.values())


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit"])
def test_optimizer_states(optimizer: str) -> None:
    model = architectures.build("llama", hidden_size=256, intermediate_size=512)
    attach(model, LoraConfig(rank=32))
    made = optimizer_for(TrainConfig(optimizer=optimizer), model)
    made.init(model.trainable_parameters())
    states = dict(tree_flatten(made.state))
    held = sum(v.nbytes for v in states.values() if v.size > 100)
    config = architectures._COMMON | {"model_type": "llama"}
    shape = family_shape(config | {"hidden_size": 256, "intermediate_size": 512}, "x")
    run = LoraPlan(rank=32, optimizer=optimizer)
    assert training_bytes(shape, run, CPU, 4)["optimizer"] == pytest.approx(held, rel=0.05)


@pytest.mark.parametrize(("rows", "length"), [(2, 128), (1, 256), (4, 65)])
def test_a_training_step_takes_what_is_planned(rows: int, length: int) -> None:
    options = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 8}
    options |= {"vocab_size": 600, "num_attention_heads": 6}
    model = architectures.build("llama", **options)
    attach(model, LoraConfig(rank=4))
    model.train()
    texts = [
        Encoded([7 + (i * (row + 3)) % 500 for i in range(length)], [False] + [True] * (length - 1))
        for row in range(rows)
    ]
    batch = LengthBuckets(texts, batch_tokens=rows * length).batch(tuple(range(rows)))
    engine = GradientEngine(model, SftLoss(share_prefix=False), [mx.default_stream(mx.cpu)])
    with fast_cpu(model, True):
        engine.add(batch)
        mx.synchronize()
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        engine.add(batch)
        held = mx.get_peak_memory() - before
    shape = family_shape(architectures._COMMON | {"model_type": "llama"} | options, "x")
    parts = training_bytes(shape, LoraPlan(4, rows, length), CPU, 4)
    named = ("gradients", "activations", "backward", "logits")
    assert sum(parts[name] for name in named) == pytest.approx(held, rel=0.15)


def test_checkpointing_keeps_one_layer() -> None:
    place = machine("m4-pro-48")
    shape, _ = describe("qwen2.5-3b")
    plain = training_bytes(shape, LoraPlan(), place, 2)
    again = training_bytes(shape, LoraPlan(checkpoint=True), place, 2)
    assert again["activations"] < 0.1 * plain["activations"]
    assert {k: v for k, v in again.items() if k != "activations"} == {
        k: v for k, v in plain.items() if k != "activations"
    }


def test_attention_of_a_mac_keeps_its_scores_while_training() -> None:
    shape, _ = describe("qwen2.5-3b")
    run = LoraPlan(batch=2, length=1024)
    mac = training_bytes(shape, run, machine("m4-pro-48"), 2)["activations"]
    cpu = training_bytes(shape, run, CPU, 2)["activations"]
    assert mac - cpu == 2 * 36 * 16 * 2 * 1024**2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": 0}, "rank is 0; expected 1 or more"),
        ({"length": -1}, "length is -1"),
        ({"optimizer": "sgd"}, "optimizer is 'sgd'; expected one of adamw"),
    ],
)
def test_runs_that_cannot_be(arguments: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LoraPlan(**arguments)


def test_targets_that_are_not_there() -> None:
    with pytest.raises(ConfigError, match="no linear layer called w1"):
        adapter_values(shape_of("phi2"), LoraPlan(targets=("w1",)))
