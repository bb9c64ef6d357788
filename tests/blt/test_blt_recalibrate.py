"""A threshold for a wanted patch length, in the model that is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_companion.blt.config import PatchConfig
from mlx_companion.blt.load import load
from mlx_companion.blt.model import BltModel
from mlx_companion.blt.presets import blt_preset
from mlx_companion.blt.recalibrate import recalibrate
from mlx_companion.blt.save import save
from mlx_companion.blt.text_patches import patches
from mlx_companion.blt.weights import quantization_of, quantize
from mlx_companion.errors import ConfigError, DataError

TEXT = "It was a bright cold day in April, and the clocks were striking thirteen. " * 9


@pytest.fixture(scope="module")
def model() -> BltModel:
    mx.random.seed(0)
    return BltModel(blt_preset("tiny"))


@pytest.fixture(scope="module")
def folder(model: BltModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(model, tmp_path_factory.mktemp("recalibrate") / "model")


@pytest.mark.parametrize("target", [1.5, 3.0, 4.5])
def test_patches_get_the_wanted_length(target: float, folder: Path, tmp_path: Path) -> None:
    found = recalibrate(folder, TEXT, target, save_to=tmp_path / "new")
    assert found.bytes == len(TEXT)
    assert found.mean_patch_bytes == pytest.approx(target, rel=0.05)
    written = load(tmp_path / "new")
    assert isinstance(written, BltModel)
    assert written.config.patching.threshold == found.threshold
    # BOS, a byte and a patch of its own, is in the one figure and not in the other.
    pieces = patches(written, TEXT).pieces
    assert (len(TEXT) + 1) / (len(pieces) + 1) == pytest.approx(found.mean_patch_bytes)
    # At the released threshold this random model, unsure of every byte, opens one at each.
    assert found.before_mean_patch_bytes == 1


def test_everything_else_stays(model: BltModel, tmp_path: Path) -> None:
    packed = BltModel(model.config)
    packed.update(model.parameters())
    quantize(packed, 8)
    save(packed, tmp_path / "packed")
    recalibrate(tmp_path / "packed", TEXT, 3.0, save_to=tmp_path / "packed")
    again = load(tmp_path / "packed", dequantize=False)
    assert quantization_of(again) == quantization_of(packed) != {}
    before = replace(packed.config, patching=PatchConfig())
    assert replace(again.config, patching=PatchConfig()) == before  # type: ignore[arg-type]


def test_only_the_beginnings_are_read(folder: Path, tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(TEXT)
    found = recalibrate(folder, tmp_path, 2.0, most=300)
    assert found.bytes == 300
    assert np.isfinite(found.threshold)


def test_what_cannot_be_calibrated(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the text is empty"):
        recalibrate(folder, "", 3.0)
    with pytest.raises(ConfigError, match="cannot be reached"):
        recalibrate(folder, TEXT, 10_000.0)
    spaces = BltModel(blt_preset("tiny", PatchConfig(mode="space")))
    save(spaces, tmp_path / "spaces")
    with pytest.raises(ConfigError, match='mode "space" has no threshold'):
        recalibrate(tmp_path / "spaces", TEXT, 3.0)
