"""`tune` and `runs` from the command line: the same things that the library does, told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import tiny_llama
from typer.testing import CliRunner

from mlx_companion.cli import app


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_llama(tmp_path_factory.mktemp("model")))


@pytest.fixture
def data(tmp_path: Path) -> str:
    path = tmp_path / "chats.jsonl"
    rows = [{"prompt": f"say {i}", "completion": f"the river {i} times"} for i in range(16)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def call(*words: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.output


def finetune(model: str, data: str, out: Path, lr: str) -> None:
    call(
        "finetune", "--data", data, "--model", model, "--valid", "0.2", "--out", str(out),
        "--rank", "2", "--epochs", "1", "--lr", lr,
    )  # fmt: skip


def test_runs_are_listed_shown_compared_drawn_and_forgotten(
    model: str, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "no run yet" in call("runs", "list")
    finetune(model, data, tmp_path / "slow", "1e-4")
    finetune(model, data, tmp_path / "fast", "1e-2")
    listed = json.loads(call("runs", "list", "--json"))
    assert [run["name"] for run in listed] == ["fast", "slow"]
    assert "finished" in call("runs", "list")
    assert "settings train.lr" in call("runs", "show", "last")
    found = json.loads(call("runs", "compare", "slow", "fast", "--json"))
    assert found["settings"] == {"train.lr": [1e-4, 1e-2]}
    assert "train.lr" in call("runs", "compare", "slow", "fast")
    page = tmp_path / "page.html"
    call("runs", "plot", "slow", "fast", "--out", str(page))
    assert page.is_file()
    assert len(json.loads(page.with_suffix(".json").read_text())) == 2
    call("runs", "forget", "slow")
    assert [run["name"] for run in json.loads(call("runs", "list", "--json"))] == ["fast"]
    call("runs", "add", str(tmp_path / "slow"))
    assert len(json.loads(call("runs", "list", "--json"))) == 2
    assert "no run 'nothing'" in call("runs", "show", "nothing", code=1)


def test_tune_tells_the_best_settings(model: str, data: str, tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    space.write_text("train.lr: [1e-6, 1e-2]\n")
    told = call(
        "tune", "--data", data, "--model", model, "--space", str(space), "--sampler", "grid",
        "--out", str(tmp_path / "study"), "--set", "lora.rank=2", "--set", "train.epochs=1",
    )  # fmt: skip
    best = json.loads(told.strip().splitlines()[-1])
    assert best["train.lr"] == 1e-2
    space.write_text("- 1\n")
    assert "key: value" in call(
        "tune", "--data", data, "--model", model, "--space", str(space), code=2
    )
