"""The loss of packed samples and its gradients against each sample alone, adapters attached."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial, reduce
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from architectures import OF_ALIAS, OTHERS, build, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_map
from training_models import adapted, arrays, buckets, distance, rows, same

import mlx_companion  # noqa: F401
from mlx_companion.errors import ConfigError, DataError, ModelError
from mlx_companion.lora import LoraConfig, adapter_parameters, attach, load_parameters
from mlx_companion.models.fast_cpu import fast_cpu
from mlx_companion.text import Encoded, collate
from mlx_companion.text.packed_samples import PackedSamples, pack
from mlx_companion.training import TrainConfig, Trainer
from mlx_companion.training.gradients import GradientEngine
from mlx_companion.training.losses import SftLoss
from mlx_companion.training.recompute import recompute_layers
from mlx_companion.training.streams import parallel_streams

TOLERANCE = 1e-5


def with_adapters(model: nn.Module, **options: Any) -> nn.Module:
    attach(model, LoraConfig(rank=4, alpha=8.0, **options), seed=0)
    keys = iter(mx.random.split(mx.random.key(1), 300))
    values = {
        name: w + 0.2 * mx.random.normal(w.shape, key=next(keys))
        for name, w in adapter_parameters(model).items()
    }
    load_parameters(model, values)
    return model


def alone(model: nn.Module, data: Sequence[Encoded]) -> tuple[float, Any]:
    """Loss sum and gradients of samples one by one, each a batch of one row."""
    gradient = nn.value_and_grad(model, SftLoss(share_prefix=False))
    parts = [gradient(model, collate(data, [index])) for index in range(len(data))]
    mx.eval(parts)
    total = sum(loss.item() for (loss, _), _ in parts)
    return total, reduce(partial(tree_map, lambda a, b: a + b), [g for _, g in parts])


def packed(model: nn.Module, data: Sequence[Encoded], **options: Any) -> tuple[float, Any]:
    gradient = nn.value_and_grad(model, SftLoss(**options))
    (loss, count), gradients = gradient(model, pack(data, range(len(data))))
    mx.eval(loss, gradients)
    assert count.item() == sum(row.target_count for row in data)
    return loss.item(), gradients


def check(model: nn.Module, data: Sequence[Encoded], **options: Any) -> None:
    loss, gradients = packed(model, data, **options)
    expected, wanted = alone(model, data)
    assert loss == pytest.approx(expected, rel=TOLERANCE)
    assert distance(gradients, wanted) <= TOLERANCE


@pytest.mark.parametrize("prefix", [0, 20])
@pytest.mark.parametrize("name", [*OF_ALIAS, *OTHERS])
def test_loss_and_gradients(name: str, prefix: int) -> None:
    options = {"targets": ("c_attn", "c_fc", "c_proj")} if name == "gpt2" else {}
    model = with_adapters(tiny_model(name), **options)
    model.train()
    with fast_cpu(model):
        check(model, rows(9, seed=1, prefix=prefix, longest=40))


@pytest.mark.parametrize("name", ["smollm2-135m", "phi2", "qwen3"])
def test_all_parameters(name: str) -> None:
    """Weights of the base included: embeddings, norms, biases and the head."""
    model = tiny_model(name)
    model.train()
    check(model, rows(7, seed=2, longest=30))


@pytest.mark.parametrize("options", [{"dora": True}, {"scaling": "rslora"}])
def test_other_adapters(options: dict[str, Any]) -> None:
    check(with_adapters(tiny_model("tinyllama"), **options), rows(6, seed=3))


@settings(max_examples=20, deadline=None)
@given(
    lengths=st.lists(st.integers(2, 60), min_size=1, max_size=10),
    prefix=st.sampled_from([0, 16, 33]),
)
def test_any_lengths(lengths: list[int], prefix: int) -> None:
    data = []
    for number, length in enumerate(lengths):
        row = rows(1, seed=number, prefix=0, longest=4)[0]
        tokens = ([7, 3, 5] * prefix)[:prefix] + (row.tokens * 20)[:length]
        targets = [False] * (prefix + length - 1) + [True]
        data.append(Encoded(tokens, targets))
    check(adapted(), data)


def test_samples_do_not_see_each_other() -> None:
    model, data, loss = adapted(), rows(6, seed=4), SftLoss()
    for changed in range(6):
        other = list(data)
        tokens = [(token + 3) % 61 for token in data[changed].tokens]
        other[changed] = Encoded(tokens, data[changed].targets)
        for looked_at in range(6):
            values = []
            for samples in (data, other):
                row = pack(samples, range(6))
                weights = np.array([index == looked_at for index in row.indices], dtype=float)
                values.append(loss(model, loss.prepare(row, weights))[0].item())
            assert (values[0] == values[1]) == (looked_at != changed)


def test_row_weights() -> None:
    data, loss, model = rows(3, seed=5), SftLoss(), adapted()
    row = pack(data, range(3))
    one_by_one = [loss(model, pack(data, [index]))[0].item() for index in row.indices]
    total, count = loss(model, loss.prepare(row, np.array([0.5, 2.0, 0.0])))
    assert total.item() == pytest.approx(0.5 * one_by_one[0] + 2 * one_by_one[1], rel=1e-6)
    counts = [data[index].target_count for index in row.indices]
    assert count.item() == pytest.approx(0.5 * counts[0] + 2 * counts[1])


@pytest.mark.parametrize("prefix", [0, 24])
def test_recomputed_layers(prefix: int) -> None:
    model, data = adapted(), rows(6, seed=6, prefix=prefix)
    model.train()
    expected, wanted = packed(model, data)
    with recompute_layers(model):
        loss, gradients = packed(model, data)
    assert loss == pytest.approx(expected, rel=1e-6)
    assert distance(gradients, wanted) <= TOLERANCE


@pytest.mark.parametrize("streams", [1, 2, 3])
@pytest.mark.parametrize("pieces", [1, 2])
def test_streams_and_pieces(streams: int, pieces: int) -> None:
    model, data = adapted(), rows(9, seed=7, prefix=20)
    model.train()
    expected, wanted = alone(model, data)
    with parallel_streams(streams) as several:
        engine = GradientEngine(model, SftLoss(), several)
        total = engine.add(pack(data, range(9)), pieces=pieces)
        loss, count = engine.evaluate(pack(data, range(9)))
    assert total.loss == pytest.approx(expected, rel=TOLERANCE)
    assert distance(total.gradients, wanted) <= TOLERANCE
    assert loss == pytest.approx(expected, rel=TOLERANCE)
    assert count == total.targets == sum(row.target_count for row in data)


def test_a_run_and_the_same_again() -> None:
    def run() -> tuple[nn.Module, Any]:
        model = adapted(dropout=0.1, zero=True)
        source = PackedSamples(rows(24, seed=8), row_tokens=64, seed=1)
        config = TrainConfig(epochs=6, lr=2e-2, packing=True, gradient_checkpointing=True)
        return model, Trainer(model, source, valid=buckets(6, seed=9), config=config).run()

    model, summary = run()
    assert summary.train_loss < summary.valid_before - 0.1
    again, _ = run()
    assert same(arrays(model), arrays(again))


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="packing is True; expected false where steps are comp"):
        TrainConfig(packing=True, compile=True)
    source = PackedSamples(rows(3), row_tokens=64)
    with pytest.raises(ConfigError, match="cannot be compiled"):
        Trainer(adapted(), source, config=TrainConfig(compile=True)).run()
    with pytest.raises(DataError, match="no token to train on"):
        SftLoss().prepare(pack([Encoded([1, 2, 3], [False] * 3)], [0]))
    model = build("gemma2", head_dim=8, query_pre_attn_scalar=8)
    with pytest.raises(ModelError, match="gemma2"):
        SftLoss()(model, pack(rows(2), [0, 1]))
