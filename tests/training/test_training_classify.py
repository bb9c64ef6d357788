"""Training a classifier from a file to a folder: it learns, repeats, resumes and refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import tiny_llama
from typer.testing import CliRunner

from mlx_companion.cli import app
from mlx_companion.errors import CheckpointError, DataError, Stopped, WeightsError
from mlx_companion.lora import LoraConfig, is_attached
from mlx_companion.models.load import load
from mlx_companion.runtime.stop import StopSwitch
from mlx_companion.text.labelled_records import Labelled, read_labelled, read_texts
from mlx_companion.training import Callback, StepInfo, TrainConfig
from mlx_companion.training.classifier_files import (
    find_classifier,
    load_tuned,
    packaged_classifiers,
)
from mlx_companion.training.classifier_scores import score
from mlx_companion.training.classify import (
    ClassifyConfig,
    ClassifyResult,
    train_classifier,
)

THINGS = {
    "water": ("river", "kettle", "rain", "sea"),
    "iron": ("train", "station", "rail", "bridge"),
    "green": ("garden", "leaf", "grass", "tree"),
}
CONFIG = ClassifyConfig(
    lora=LoraConfig(rank=4, alpha=8.0),
    train=TrainConfig(epochs=12, batch_tokens=256, lr=1e-2, lr_ratios={"head.*": 4.0}),
)


def labelled(count: int, seed: int) -> Labelled:
    rng = np.random.default_rng(seed)
    names = list(THINGS)
    labels = [names[i] for i in rng.integers(0, 3, count)]
    return Labelled([f"i saw the {rng.choice(THINGS[label])} today" for label in labels], labels)


def write(path: Path, data: Labelled) -> Path:
    rows = [{"text": t, "intent": y} for t, y in zip(*data, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model"))


def train(model: Path, out: Path, **options: Any) -> ClassifyResult:
    given = {"valid": labelled(30, 1), "config": CONFIG, "progress": False, "track": ()} | options
    return train_classifier(str(model), given.pop("data", labelled(90, 0)), out, **given)


@pytest.fixture(scope="module")
def trained(model: Path, tmp_path_factory: pytest.TempPathFactory) -> ClassifyResult:
    return train(model, tmp_path_factory.mktemp("run") / "out")


def test_it_learns_and_its_folder_gives_the_same_answers(
    trained: ClassifyResult, model: Path
) -> None:
    assert trained.valid is not None
    assert trained.valid.accuracy > 0.9
    classifier = load_tuned(trained.folder)
    again = score(classifier, labelled(30, 1))
    assert again == trained.valid
    assert is_attached(classifier.model)
    other = load_tuned(trained.folder, load(model))
    assert other.predict(["the sea"])[0].label == classifier.predict(["the sea"])[0].label


def test_the_command_labels_a_file_and_counts(trained: ClassifyResult, tmp_path: Path) -> None:
    data = labelled(20, 2)
    path = write(tmp_path / "test.jsonl", data)
    expected = [p.label for p in load_tuned(trained.folder).predict(data.texts)]
    result = CliRunner().invoke(app, ["classify", str(trained.folder), "--jsonl", str(path)])
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in result.stdout.strip().splitlines()]
    assert [row["label"] for row in rows] == expected
    assert [row["expected"] for row in rows] == data.labels
    right = sum(a == b for a, b in zip(expected, data.labels, strict=True))
    assert f"{right} of 20 right" in result.stderr
    run_folder = str(trained.folder.parent)
    told = CliRunner().invoke(app, ["classify", run_folder, "the sea", "--top", "3"])
    assert set(json.loads(told.stdout)["labels"]) == set(THINGS)
    assert CliRunner().invoke(app, ["classify", run_folder]).exit_code == 2


def test_scores_are_those_of_counting(trained: ClassifyResult) -> None:
    classifier = load_tuned(trained.folder)
    data = labelled(50, 3)
    data.labels[0] = "unheard of"
    found = score(classifier, data)
    given = [p.label for p in classifier.predict(data.texts)]
    pairs = list(zip(data.labels, given, strict=True))
    assert found.accuracy == np.mean([a == b for a, b in pairs])
    assert found.recall["unheard of"] == 0
    for label in THINGS:
        own = [b == label for a, b in pairs if a == label]
        assert found.recall[label] == pytest.approx(np.mean(own))
        called = [a == label for a, b in pairs if b == label]
        assert found.precision[label] == pytest.approx(np.mean(called))
    assert sum(n for *_, n in found.confused) == sum(a != b for a, b in pairs)
    assert found.without("unheard of") == pytest.approx(
        np.mean([found.recall[label] for label in THINGS])
    )


class StopAt(Callback):
    def __init__(self, step: int, switch: StopSwitch) -> None:
        self.step, self.switch = step, switch

    def on_step(self, step: StepInfo) -> None:
        if step.step == self.step:
            self.switch.request("enough")


def test_a_stopped_run_goes_on_to_the_same_classifier(
    trained: ClassifyResult, model: Path, tmp_path: Path
) -> None:
    switch = StopSwitch(tmp_path / "stop")
    with pytest.raises(Stopped):
        train(model, tmp_path / "out", stop=switch, callbacks=[StopAt(4, switch)])
    result = train(model, tmp_path / "out")
    assert result.steps == trained.steps
    assert result.valid is not None
    assert trained.valid is not None
    assert result.valid.log_loss == pytest.approx(trained.valid.log_loss, rel=1e-4)
    assert train(model, tmp_path / "out").seconds == result.seconds


def test_another_run_in_the_folder_is_refused(model: Path, tmp_path: Path) -> None:
    short = ClassifyConfig(lora=CONFIG.lora, train=TrainConfig(max_steps=1))
    train(model, tmp_path / "out", config=short)
    with pytest.raises(CheckpointError, match="another run"):
        train(model, tmp_path / "out", config=short, data=labelled(40, 9))
    train(model, tmp_path / "out", config=short, data=labelled(40, 9), resume=False)


def test_files_are_read_and_wrong_rows_are_named(tmp_path: Path) -> None:
    data = labelled(5, 0)
    assert read_labelled(write(tmp_path / "a.jsonl", data)) == data
    (tmp_path / "b.csv").write_text("query,category\nhello,greeting\nbye,farewell\n")
    assert read_labelled(tmp_path / "b.csv").labels == ["greeting", "farewell"]
    (tmp_path / "c.jsonl").write_text('{"text": "a", "label": 3}\n{"text": "b"}\n')
    assert read_texts(tmp_path / "c.jsonl") == (["a", "b"], ["3", None])
    with pytest.raises(DataError, match=r"c\.jsonl:2: field 'label'"):
        read_labelled(tmp_path / "c.jsonl")
    (tmp_path / "d.jsonl").write_text('{"text": ["a"], "label": "x"}\n')
    with pytest.raises(DataError, match="field 'text'"):
        read_labelled(tmp_path / "d.jsonl")
    (tmp_path / "e.jsonl").write_text("")
    with pytest.raises(DataError):
        read_labelled(tmp_path / "e.jsonl")


def test_data_that_cannot_be_learned_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="all 3 texts"):
        train(model, tmp_path / "a", data=Labelled(["x", "y", "z"], ["same"] * 3))
    with pytest.raises(DataError, match="none of the classifier's"):
        train(model, tmp_path / "b", valid=Labelled(["x"], ["unheard of"]))
    assert not (tmp_path / "b" / "result.json").exists()


def test_classifiers_are_found_by_folder_run_or_name(
    trained: ClassifyResult, tmp_path: Path
) -> None:
    assert find_classifier(trained.folder) == trained.folder
    assert find_classifier(trained.folder.parent) == trained.folder
    assert "intents" in packaged_classifiers()
    assert (find_classifier("intents") / "README.md").is_file()
    with pytest.raises(WeightsError, match="intents"):
        find_classifier(tmp_path / "nothing")


@pytest.mark.real_model
def test_the_packaged_classifier_knows_what_people_ask(real_cache: Path) -> None:
    asked = {
        "what's the weather like in lisbon tomorrow": "weather",
        "move fifty dollars from checking to savings": "transfer",
        "how do you say good night in norwegian": "translate",
        "please wake me at half past six": "alarm",
        "flip a coin for me": "flip_coin",
        "how many calories are in a slice of rye bread": "calories",
        "i need to book a flight from oslo to rome": "book_flight",
        "which of the moons of neptune goes backwards": "oos",
    }
    found = load_tuned("intents").predict(list(asked))
    wrong = {text: p.label for text, p in zip(asked, found, strict=True) if p.label != asked[text]}
    assert len(wrong) <= 1, wrong
