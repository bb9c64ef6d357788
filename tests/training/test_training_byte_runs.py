"""From text files to a model on disk: the same after an interruption, and held to its settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from mlx_companion.blt.byte_lm import ByteLM
from mlx_companion.blt.load import load
from mlx_companion.blt.model import BltModel
from mlx_companion.blt.presets import entropy_preset
from mlx_companion.blt.text_patches import patches
from mlx_companion.errors import ConfigError, DataError, Stopped
from mlx_companion.runtime.stop import StopSwitch
from mlx_companion.training.byte_runs import ByteRunConfig, train_from_files
from mlx_companion.training.callbacks import Callback
from mlx_companion.training.config import TrainConfig
from mlx_companion.training.state import StepInfo

TEXT = "The tide was out and the boats lay on the mud, waiting for the water. " * 30
CONFIG = ByteRunConfig(
    preset="tiny",
    target_patch_bytes=3.0,
    train=TrainConfig(max_steps=4, batch_tokens=256, save_every=1, lr=1e-3),
)


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def entropy_model() -> ByteLM:
    mx.random.seed(5)
    return ByteLM(entropy_preset("tiny"))


class StopAt(Callback):
    """Throws the switch at a step."""

    def __init__(self, step: int, switch: StopSwitch) -> None:
        self.step, self.switch = step, switch

    def on_step(self, step: StepInfo) -> None:
        if step.step == self.step:
            self.switch.request("the test says so")


def weights(folder: Path) -> dict[str, mx.array]:
    return dict(tree_flatten(load(folder).parameters()))


def test_an_interrupted_run_ends_as_one_that_was_not(
    book: Path, entropy_model: ByteLM, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"entropy_model": entropy_model, "valid": book}
    whole, summary = train_from_files(book, tmp_path / "a", CONFIG, **given)
    assert summary.steps == 4
    switch = StopSwitch(tmp_path / "STOP")
    with pytest.raises(Stopped):
        stop = StopAt(2, switch)
        train_from_files(book, tmp_path / "b", CONFIG, callbacks=[stop], stop=switch, **given)
    assert not (tmp_path / "b" / "model").exists()
    resumed, _ = train_from_files(book, tmp_path / "b", CONFIG, **given)
    one, other = weights(whole), weights(resumed)
    assert one.keys() == other.keys()
    assert all(mx.array_equal(one[name], other[name]) for name in one)


def test_boundaries_are_the_entropy_model_s(
    book: Path, entropy_model: ByteLM, tmp_path: Path
) -> None:
    folder, _ = train_from_files(book, tmp_path / "run", CONFIG, entropy_model=entropy_model)
    model = load(folder)
    assert isinstance(model, BltModel)
    assert patches(model, book).mean_patch_bytes == pytest.approx(3.0, rel=0.05)
    alone = patches(entropy_model, book, rule=model.config.patching)
    assert alone.starts.tolist() == patches(model, book).starts.tolist()


@pytest.mark.parametrize(("kind", "cls"), [("flat", ByteLM), ("entropy", ByteLM)])
def test_flat_kinds(kind: str, cls: type, book: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, kind=kind, train=replace(CONFIG.train, max_steps=1))  # type: ignore
    folder, _ = train_from_files(book, tmp_path / "run", config)
    assert isinstance(load(folder), cls)
    assert (tmp_path / "run" / "metrics.jsonl").is_file()


def test_what_cannot_be_run(book: Path, entropy_model: ByteLM, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="kind is 'bolt'"):
        replace(CONFIG, kind="bolt")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match='kind "flat" has none'):
        flat = replace(CONFIG, kind="flat")
        train_from_files(book, tmp_path / "run", flat, entropy_model=entropy_model)
    with pytest.raises(DataError, match="cannot be read"):
        train_from_files(tmp_path / "nothing.txt", tmp_path / "run", CONFIG)
    assert not (tmp_path / "run").exists()
