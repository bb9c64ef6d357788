"""Predicted speeds against the public figures of an M4 Pro, and against arithmetic done by hand."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import replace
from itertools import combinations

import pytest

from mlx_companion.quant.plan import LoraPlan, plan
from mlx_companion.quant.plan_machines import machine
from mlx_companion.quant.plan_shapes import Quantization
from mlx_companion.quant.plan_source import describe
from mlx_companion.quant.plan_speed import (
    fitted_layer_seconds,
    forward_flops,
    generation_speed,
    training_speed,
)

# Tokens per second of 4-bit generation on an M4 Pro with 20 GPU cores; community figures.
MEASURED = {
    "llama3.1-8b": 50.2,
    "qwen2.5-3b": 93.7,
    "llama3.2-3b": 98.6,
    "qwen2.5-7b": 51.6,
    "qwen3-14b": 27.8,
    "llama3-1b": 220.0,
}
# The prompt and reply of such measurements: a few hundred tokens.
CONTEXT = 256
PLACE = machine("m4-pro-48")
KEPT = Quantization(4)


def fit(names: Iterable[str]) -> float:
    rows = [(describe(name)[0], MEASURED[name]) for name in names]
    return fitted_layer_seconds(rows, KEPT, PLACE, CONTEXT)


def errors(names: Iterable[str], layer_seconds: float) -> list[float]:
    place = replace(PLACE, layer_seconds=layer_seconds)
    found = []
    for name in names:
        speed = generation_speed(describe(name)[0], KEPT, place, CONTEXT).generation
        found.append(abs(speed / MEASURED[name] - 1))
    return found


def splits() -> list[tuple[set[str], set[str]]]:
    return [(set(half), set(MEASURED) - set(half)) for half in combinations(MEASURED, 3)]


def test_fitted_on_half_it_predicts_the_other_half() -> None:
    # Whichever half: the median of the other is within a tenth, and every one within a fifth.
    for half, rest in splits():
        found = errors(rest, fit(half))
        assert statistics.median(found) < 0.10
        assert max(found) < 0.20


def test_the_table_holds_that_constant() -> None:
    assert PLACE.layer_seconds == pytest.approx(fit(MEASURED), rel=0.03)
    found = errors(MEASURED, PLACE.layer_seconds)
    assert statistics.median(found) < 0.03
    assert max(found) < 0.08


def test_a_share_of_the_bandwidth_would_not_do() -> None:
    # The usual rule, so many percent of the ceiling, misses small models whatever the percentage.
    ceilings = {
        name: generation_speed(describe(name)[0], KEPT, PLACE, CONTEXT).ceiling for name in MEASURED
    }
    shares = {name: MEASURED[name] / ceilings[name] for name in MEASURED}
    share = statistics.median(shares.values())
    assert max(abs(share / own - 1) for own in shares.values()) > 0.15
    assert 57 < ceilings["llama3.1-8b"] < 66


def test_generation_by_hand() -> None:
    shape, _ = describe("llama3.1-8b")
    packed = (8_030_261_248 - 128256 * 4096 - 65 * 4096) * 4.5 / 8 + 65 * 4096 * 2
    cache = 8192 * 32 * 2 * 8 * 128 * 2
    found = generation_speed(shape, KEPT, PLACE, 8192)
    assert found.read_bytes == pytest.approx(packed + cache, rel=1e-9)
    assert found.ceiling == pytest.approx(244e9 / (packed + cache))
    assert 1 / found.generation == pytest.approx(1 / found.ceiling + 32 * PLACE.layer_seconds)


def test_windows_bound_what_is_read() -> None:
    shape, _ = describe("gemma3-1b")
    far = generation_speed(shape, KEPT, PLACE, 32768).read_bytes
    near = generation_speed(shape, KEPT, PLACE, 512).read_bytes
    # 4 of 26 layers see everything: a head of 256, keys and values of 2 bytes.
    assert far - near == (32768 - 512) * 4 * 2 * 256 * 2


def test_reading_a_prompt_counts_attention() -> None:
    shape, _ = describe("qwen2.5-3b")
    attention = 36 * 4 * 16 * 128 * 2048
    assert forward_flops(shape, 4096) == pytest.approx(2 * shape.parameters + attention)


def test_training_ceiling() -> None:
    # 4 N operations per token, 6 N where layers are computed again.
    shape, _ = describe("qwen2.5-3b")
    plain, _ = training_speed(shape, LoraPlan(length=2), PLACE)
    again, _ = training_speed(shape, LoraPlan(length=2, checkpoint=True), PLACE)
    assert plain == pytest.approx(9.2e12 / (4 * shape.parameters), rel=1e-3)
    assert again == pytest.approx(9.2e12 / (6 * shape.parameters), rel=1e-3)


def test_fewer_experts_are_read() -> None:
    sparse = plan("qwen3-30b-a3b", "m4-pro-48", bits=4, context=256)
    dense = plan("qwen3-32b", "m4-pro-48", bits=4, context=256)
    assert sparse.speed is not None
    assert dense.speed is not None
    assert sparse.speed.generation > 4 * dense.speed.generation
    assert sparse.parts["weights"] > 0.9 * dense.parts["weights"]
