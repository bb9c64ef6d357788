"""The recipe makes a model, a report and a picture, and goes on where it was killed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from mlx_companion import blt
from mlx_companion.training import MetricsLog, StepInfo
from recipes import train_blt

STEPS = 3
TEXT = "the tide was out and the boats lay on the mud waiting for the water to come back"
WORDS = TEXT.split()


class Killed(BaseException):
    """Stands for a signal that nothing catches."""


def book(words: int, first: int) -> str:
    """Sentences whose words go round at a pace of their own."""
    return "".join(
        WORDS[(first + at * (at % 7 + 1)) % len(WORDS)] + (". " if at % 9 == 8 else " ")
        for at in range(words)
    )


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    (folder / "train").mkdir()
    (folder / "train" / "one.txt").write_text(book(6000, 0))
    (folder / "train" / "two.txt").write_text(book(2000, 5))
    (folder / "valid.txt").write_text(book(300, 2))
    return folder


def arguments(texts: Path, out: Path) -> list[str]:
    files = ["--texts", str(texts / "train"), "--valid", str(texts / "valid.txt")]
    sizes = ["--preset", "tiny", "--steps", str(STEPS), "--patch-bytes", "3"]
    return [*files, "--out", str(out), *sizes]


@pytest.fixture(scope="module")
def whole(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole") / "run"
    train_blt.main(arguments(texts, out))
    return out


def steps(folder: Path) -> list[int]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line["step"] for line in lines if line["event"] == "step"]


def weights(folder: Path) -> dict[str, mx.array]:
    return dict(tree_flatten(blt.load(folder).parameters()))


def test_the_report_is_that_of_the_model(whole: Path, texts: Path) -> None:
    report = json.loads((whole / "report.json").read_text())
    model = blt.load(whole / "blt" / "model")
    assert isinstance(model, blt.BltModel)
    assert steps(whole / "entropy") == steps(whole / "blt") == [1, 2, 3]
    found = blt.evaluate(model, texts / "valid.txt")
    assert report["bits_per_byte"] == pytest.approx(found.bits_per_byte)
    assert report["bytes"] == (texts / "valid.txt").stat().st_size
    assert report["threshold"] == model.config.patching.threshold
    assert report["sample"].startswith("The ")
    assert len(report["sample"]) > len("The ")


def test_patches_have_about_the_wanted_length(whole: Path) -> None:
    report = json.loads((whole / "report.json").read_text())
    assert report["mean_patch_bytes"] == pytest.approx(3, abs=0.5)


def test_the_picture_shows_the_held_out_text(whole: Path, texts: Path) -> None:
    picture = ET.parse(whole / "patches.svg").getroot()
    assert picture.tag.endswith("svg")
    drawn = [node for node in picture.iter() if "letter" in node.get("class", "")]
    assert len(drawn) == min(train_blt.PLOT_BYTES, (texts / "valid.txt").stat().st_size)


def test_a_killed_run_ends_as_one_that_was_not(
    whole: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    write = MetricsLog.on_step

    def killing(log: MetricsLog, step: StepInfo) -> None:
        write(log, step)
        if log.path.parent.name == "blt" and step.step == 2:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(MetricsLog, "on_step", killing)
        with pytest.raises(Killed):
            train_blt.main(arguments(texts, out))
    assert not (out / "blt" / "model").exists()

    def recording(log: MetricsLog, step: StepInfo) -> None:
        taken.append((log.path.parent.name, step.step))
        write(log, step)

    taken: list[tuple[str, int]] = []
    monkeypatch.setattr(MetricsLog, "on_step", recording)
    train_blt.main(arguments(texts, out))
    # The entropy model was done: no step of it was taken again.
    assert taken == [("blt", 1), ("blt", 2), ("blt", 3)]
    one, other = weights(whole / "blt" / "model"), weights(out / "blt" / "model")
    assert one.keys() == other.keys()
    assert all(mx.array_equal(one[name], other[name]) for name in one)
    found, expected = (json.loads((run / "report.json").read_text()) for run in (out, whole))
    assert found["bits_per_byte"] == expected["bits_per_byte"]
    assert found["sample"] == expected["sample"]


def test_a_second_run_trains_nothing(
    whole: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    before = json.loads((out / "report.json").read_text())

    def refuse(*_: Any) -> None:
        raise AssertionError("a finished run takes no step")

    monkeypatch.setattr(MetricsLog, "on_step", refuse)
    train_blt.main(arguments(texts, out))
    after = json.loads((out / "report.json").read_text())
    assert {**after, "seconds": 0} == {**before, "seconds": 0}


def test_an_error_is_a_sentence(texts: Path, tmp_path: Path) -> None:
    given = arguments(texts, tmp_path / "run")
    given[given.index("tiny")] = "huge"
    with pytest.raises(SystemExit, match="error: preset is 'huge'; expected one of tiny"):
        train_blt.main(given)


def test_a_stopped_run_says_how_to_go_on(texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "STOP").touch()
    with pytest.raises(SystemExit, match="the same command goes on"):
        train_blt.main(arguments(texts, out))
