"""Shapes by name: they can be built, and each kind costs what it is meant to."""

from __future__ import annotations

import mlx.core as mx
import pytest

from mlx_companion.blt.byte_lm import ByteLM
from mlx_companion.blt.config import PatchConfig
from mlx_companion.blt.flops import inference_flops
from mlx_companion.blt.model import BltModel
from mlx_companion.blt.presets import PRESETS, blt_preset, entropy_preset, flat_preset
from mlx_companion.errors import ConfigError


def test_the_smallest_run() -> None:
    ids = mx.array([[1, 70, 80, 90]])
    for model in (
        BltModel(blt_preset("tiny")),
        ByteLM(flat_preset("tiny")),
        ByteLM(entropy_preset("tiny")),
    ):
        assert model(ids).shape == (1, 4, 260)


@pytest.mark.parametrize("name", PRESETS)
def test_an_entropy_model_fits_its_blt_and_costs_little(name: str) -> None:
    shape, entropy = blt_preset(name), entropy_preset(name)  # type: ignore[arg-type]
    assert shape.entropy == entropy.block
    cost = inference_flops(shape, 4.5)
    assert cost.entropy < cost.total / 3
    assert cost.total < 1.2 * inference_flops(flat_preset(name)).total  # type: ignore[arg-type]


def test_a_rule_by_bytes_needs_no_entropy_model() -> None:
    assert blt_preset("small", PatchConfig(mode="space")).entropy is None


def test_an_unknown_name() -> None:
    for function in (blt_preset, flat_preset, entropy_preset):
        with pytest.raises(ConfigError, match="preset is 'large'; expected one of tiny, small"):
            function("large")  # type: ignore[arg-type]
