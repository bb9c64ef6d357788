"""A companion and its modules hold one model's weights once."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from tiny import tiny_llama

from mlx_companion.loop.companion import Companion
from mlx_companion.models import DEFAULT_MODEL, load
from mlx_companion.slm import drift as drift_module
from mlx_companion.slm.backbone import LanguageModelAdapter
from mlx_companion.slm.config import DriftConfig, ModulesConfig, SLMConfig
from mlx_companion.slm.packs import load_pack, packaged, save_pack
from mlx_companion.slm.sharing import ServedBackbone


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_llama(tmp_path / "model")


def test_modules_read_the_model_that_answers(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = load(folder)
    slm = SLMConfig(model=str(folder))
    with Companion.open(tmp_path / "c.db", model=lm, slm=slm) as companion:
        factory = companion._modules.factory
        backbone = factory.get_slm()
        assert isinstance(backbone, ServedBackbone)
        plain = LanguageModelAdapter(str(folder)).features(["hello"])
        np.testing.assert_array_equal(backbone.features(["hello"]), plain)
        assert backbone.shared
        view: Any = backbone.language_model.model
        assert view is not lm.model
        assert view.model.norm.weight is lm.model.model.norm.weight
        classifier: Any = factory.get_module("research_classifier")
        assert classifier._backbone is backbone
        given: dict[str, Any] = {}
        plain_monitor = drift_module.DriftMonitor

        def note(**options: Any) -> Any:
            given.update(options)
            return plain_monitor(**options)

        monkeypatch.setattr(drift_module, "DriftMonitor", note)
        factory.get_module("drift_monitor")
        assert given["backbone"] is backbone


def test_a_pack_that_was_configured_is_the_one_that_watches(folder: Path, tmp_path: Path) -> None:
    own = load_pack(packaged("drift_monitor"), "drift_monitor")
    save_pack(
        tmp_path / "pack", "drift_monitor", "mine", arrays=own.arrays, settings=own.settings
    )  # fmt: skip
    modules = ModulesConfig(drift_monitor=DriftConfig(pack=tmp_path / "pack"))
    slm = SLMConfig(model=str(folder), modules=modules)
    with Companion.open(tmp_path / "c.db", model=load(folder), slm=slm) as companion:
        assert companion._modules.factory.get_module("drift_monitor").version == "mine"


@pytest.mark.real_model
def test_the_default_model_is_in_memory_once(real_cache: Path) -> None:
    lm = load()
    gc.collect()
    before = mx.get_active_memory()
    assert before > 400e6
    backbone = ServedBackbone(DEFAULT_MODEL, lm)
    assert backbone.features(["what is the weather in porto"]).shape == (1, 1152)
    gc.collect()
    assert backbone.shared
    assert mx.get_active_memory() - before < 20e6
