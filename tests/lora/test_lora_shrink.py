"""A shrunk adapter is the best of its rank and keeps its strength; what has no rank is refused."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from lora_models import adapted, llama

from mlx_companion.errors import AdapterError, ConfigError
from mlx_companion.lora import (
    LoraConfig,
    adapter_parameters,
    attach,
    attached_config,
    detach,
    load_adapter,
    save_adapter,
    set_multiplier,
    shrink,
)
from mlx_companion.lora.attach import adapter_layers


def made(config: LoraConfig) -> nn.Module:
    return adapted(llama(), config)


def deltas(model: object) -> dict[str, np.ndarray]:
    return {path: np.array(layer.delta()) for path, layer in adapter_layers(model).items()}


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(rank=6, alpha=9.0),
        LoraConfig(rank=6, scaling="rslora", rank_pattern={"q_proj": 3}),
        LoraConfig(rank=5, init="pissa"),
    ],
    ids=["lora", "rslora", "pissa"],
)
def test_it_is_the_truncated_singular_value_decomposition(config: LoraConfig) -> None:
    model = made(config)
    before = deltas(model)
    report = shrink(model, 2)
    after = deltas(model)
    assert after.keys() == before.keys()
    kept = {layer.path: layer.kept for layer in report.layers}
    for path, delta in before.items():
        u, s, vt = np.linalg.svd(delta.astype(np.float64), full_matrices=False)
        best = (u[:, :2] * s[:2]) @ vt[:2]
        np.testing.assert_allclose(after[path], best, atol=1e-5 * np.abs(best).max(), err_msg=path)
        assert kept[path] == pytest.approx((s[:2] ** 2).sum() / (s**2).sum(), rel=1e-4)
    assert report.worst.kept == min(kept.values())
    assert 0 < report.kept <= 1
    assert attached_config(model).rank == 2


def test_a_higher_rank_changes_nothing(tmp_path: Path) -> None:
    model = made(LoraConfig(rank=2, alpha=6.0))
    set_multiplier(model, 0.5)
    before = deltas(model)
    assert shrink(model, 4).worst.kept == pytest.approx(1.0)
    for path, delta in deltas(model).items():
        np.testing.assert_allclose(delta, before[path], atol=1e-6)
    assert adapter_layers(model).popitem()[1].multiplier == 0.5


def test_half_precision_halves_the_file_and_comes_back(tmp_path: Path) -> None:
    model = made(LoraConfig(rank=4))
    save_adapter(tmp_path / "full", model, attached_config(model), "base")
    shrink(model, 4, dtype="float16")
    assert {w.dtype for w in adapter_parameters(model).values()} == {mx.float16}
    save_adapter(tmp_path / "half", model, attached_config(model), "base")
    sizes = [(tmp_path / n / "adapters.safetensors").stat().st_size for n in ("full", "half")]
    assert sizes[1] < 0.7 * sizes[0]
    kept = {name: np.array(w) for name, w in adapter_parameters(model).items()}
    detach(model)
    load_adapter(tmp_path / "half", model, "base")
    assert {w.dtype for w in adapter_parameters(model).values()} == {mx.float16}
    for name, value in adapter_parameters(model).items():
        np.testing.assert_array_equal(np.array(value), kept[name])


def test_what_cannot_be_shrunk_is_refused() -> None:
    model = made(LoraConfig(rank=3, dora=True))
    with pytest.raises(AdapterError, match="DoRA"):
        shrink(model, 2)
    detach(model)
    with pytest.raises(AdapterError, match="no adapter"):
        shrink(model, 2)
    attach(model, LoraConfig(rank=3))
    with pytest.raises(ConfigError, match="rank"):
        shrink(model, 0)
    assert attached_config(model).rank == 3
