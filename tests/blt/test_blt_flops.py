"""The count of operations equals what the model's own matrix products add up to."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_companion.blt.byte_lm import ByteLM
from mlx_companion.blt.config import BlockConfig, BltConfig, ByteLMConfig, HashConfig, PatchConfig
from mlx_companion.blt.flops import inference_flops, mean_sight
from mlx_companion.blt.model import BltModel

N, PATCH = 96, 4


def blt_config(**changes: object) -> BltConfig:
    settings: dict = {
        "encoder": BlockConfig(16, 2, 2, 24, window=8),
        "latent": BlockConfig(48, 3, 4, 40),
        "decoder": BlockConfig(16, 2, 2, 24, window=8),
        "entropy": BlockConfig(12, 2, 2, 20, window=8),
        "hash": HashConfig(vocabulary=50),
        "patching": PatchConfig("static", size=PATCH),
        "context": N,
    }
    return BltConfig(**{**settings, **changes})


class Counter:
    """Counts the multiply-adds of every linear layer while a model runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.operations = 0
        original = nn.Linear.__call__

        def counted(layer: nn.Linear, x: mx.array) -> mx.array:
            self.operations += 2 * x.size * layer.weight.shape[0]
            return original(layer, x)

        monkeypatch.setattr(nn.Linear, "__call__", counted)


def without_attention(config: BltConfig | ByteLMConfig, patch: float) -> float:
    """The count for a window of one byte, less the attention to that byte."""
    cost = inference_flops(config, patch)
    stacks = (
        [(config.block, 1.0, None)]
        if isinstance(config, ByteLMConfig)
        else [
            (config.encoder, 1.0, N),
            (config.decoder, 1.0, N),
            (config.latent, patch, N / patch),
        ]
    )
    total = cost.total
    for block, per, length in stacks:
        seen = mean_sight(length or config.context, block.window)
        total -= block.layers * 4 * seen * block.width / per
    if isinstance(config, BltConfig):
        crossings = config.decoder.layers if config.cross_all_decoder else 1
        total -= (1 + crossings) * 4 * config.cross_k * config.encoder.width
    return total


@pytest.mark.parametrize(
    "changes",
    [{}, {"latent": BlockConfig(32, 3, 4, 40)}, {"cross_k": 4}, {"cross_all_decoder": False}],
    ids=["projected", "plain", "four", "once"],
)
def test_linear_layers_add_up(changes: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    config = blt_config(**changes)
    model = BltModel(config)
    ids = mx.array(np.random.default_rng(0).integers(4, 260, (1, N)).astype(np.int32))
    patching = model.patching(ids)
    monkeypatch.setattr("mlx_companion.blt.model._PATCHES_TO", 1)
    counter = Counter(monkeypatch)
    mx.eval(model(ids, patching))
    mean_patch = N / patching.count
    assert counter.operations / N == pytest.approx(without_attention(config, mean_patch), rel=1e-9)


def test_a_flat_models_linear_layers_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ByteLMConfig(BlockConfig(16, 2, 2, 24, window=8), context=N)
    counter = Counter(monkeypatch)
    mx.eval(ByteLM(config)(mx.zeros((1, N), dtype=mx.int32)))
    assert counter.operations / N == pytest.approx(without_attention(config, 1.0), rel=1e-9)


def test_patches_divide_the_latent_part_and_tables_cost_nothing() -> None:
    small, large = inference_flops(blt_config(), 2.0), inference_flops(blt_config(), 8.0)
    assert large.latent < small.latent / 3.9
    assert large.head == small.head
    more_rows = inference_flops(blt_config(hash=HashConfig(vocabulary=50_000)), 2.0)
    assert more_rows == small


def test_the_entropy_model_counts_only_where_it_is_asked() -> None:
    assert inference_flops(blt_config(), 4.0).entropy == 0
    asked = inference_flops(blt_config(patching=PatchConfig("entropy")), 4.0)
    assert asked.entropy > 0
    assert asked.trained == pytest.approx(asked.total - asked.entropy)


@pytest.mark.parametrize(("length", "window"), [(10, None), (10, 3), (10, 10), (10, 50), (7, 1)])
def test_mean_sight_is_the_mean(length: int, window: int | None) -> None:
    seen = [min(t, window or t) for t in range(1, length + 1)]
    assert mean_sight(length, window) == pytest.approx(np.mean(seen))


def test_flat_models_count_positions_as_longer_pieces_of_text() -> None:
    config = ByteLMConfig(BlockConfig(16, 2, 2, 24), vocabulary=500, context=64)
    per_token = inference_flops(config)
    assert inference_flops(config, 4.0).total == pytest.approx(per_token.total / 4)
    assert sum(v.size for _, v in tree_flatten(ByteLM(config).parameters())) > 0
