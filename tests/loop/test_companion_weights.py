"""A companion and its modules hold one model's weights once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import tiny_llama

from mlx_companion.loop.companion import Companion
from mlx_companion.models import load
from mlx_companion.slm.backbone import LanguageModelAdapter
from mlx_companion.slm.config import DriftConfig, ModulesConfig, SLMConfig
from mlx_companion.slm.packs import load_pack, packaged, save_pack
from mlx_companion.slm.sharing import ServedBackbone


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_llama(tmp_path / "model")


def test_modules_read_the_model_that_answers(folder: Path, tmp_path: Path) -> None:
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
        watcher: Any = factory.get_module("drift_monitor")
        assert classifier._backbone is backbone
        assert watcher._monitor._heads._backbone() is backbone


def test_a_pack_that_was_configured_is_the_one_that_watches(folder: Path, tmp_path: Path) -> None:
    own = load_pack(packaged("drift_monitor"), "drift_monitor")
    save_pack(
        tmp_path / "pack", "drift_monitor", "mine", arrays=own.arrays, settings=own.settings
    )  # fmt: skip
    modules = ModulesConfig(drift_monitor=DriftConfig(pack=tmp_path / "pack"))
    slm = SLMConfig(model=str(folder), modules=modules)
    with Companion.open(tmp_path / "c.db", model=load(folder), slm=slm) as companion:
        assert companion._modules.factory.get_module("drift_monitor").version == "mine"
