"""The recipes that learn from labels and from teachers, in smoke mode and against a stand-in."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from patience import until

from mlx_companion.training.classifier_files import load_tuned
from mlx_companion.training.teacher_stub import StubAnswer, completion, teacher_stub
from recipes import classify_intents, distill, rl_reasoning


def run(recipe: Any, out: Path, *arguments: str) -> None:
    recipe.main(["--smoke", "--out", str(out), *arguments])


def report(out: Path) -> dict[str, Any]:
    return json.loads((out / "report.json").read_text())


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("by", ["head", "generation"])
def test_intents_are_counted(by: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(classify_intents, tmp_path, "--by", by)
    found, given = report(tmp_path), rows(tmp_path / "predictions.jsonl")
    assert found["by"] == by
    assert found["texts"] == len(given) == 10
    right = [row["intent"] == row["given"] for row in given]
    assert found["accuracy"] == sum(right) / 10
    assert {row["intent"] for row in given} >= {"oos", "set_timer"}
    assert "out of scope" in capsys.readouterr().out


def test_the_head_is_what_the_command_line_reads(tmp_path: Path) -> None:
    run(classify_intents, tmp_path, "--by", "head")
    classifier = load_tuned(tmp_path / "classifier")
    given = rows(tmp_path / "predictions.jsonl")
    found = classifier.predict([row["text"] for row in given])
    assert [one.label for one in found] == [row["given"] for row in given]


@pytest.mark.parametrize("by", ["head", "generation"])
def test_a_model_that_may_learn_more_finds_intents(by: str, tmp_path: Path) -> None:
    data = tmp_path / "toy.jsonl"
    texts = [("zzzz" if n % 2 else "aaaa", "b" if n % 2 else "oos") for n in range(16)]
    data.write_text("".join(json.dumps({"text": t, "intent": i}) + "\n" for t, i in texts))
    files = ["--data", str(data), "--valid", str(data), "--valid-per-intent", "2"]
    more = ["--set", "train.max_steps=40", "--set", "train.epochs=40", "--set", "train.lr=0.02"]
    run(classify_intents, tmp_path / "run", "--by", by, *files, *more)
    found = report(tmp_path / "run")
    assert found["texts"] == 4
    if by == "head":
        assert found["accuracy"] == found["in_scope_accuracy"] == found["outside_recall"] == 1.0
    else:
        # So small a model learns what names there are, and not to tell them apart.
        assert found["unmatched"] == 0


def test_few_texts_of_each_intent_can_be_taken(tmp_path: Path) -> None:
    run(classify_intents, tmp_path, "--by", "head", "--per-intent", "2")
    about = json.loads((tmp_path / "run.json").read_text())
    assert about["data"] == {"texts": 10, "labels": 5}


@pytest.mark.parametrize("recipe", [classify_intents, distill])
def test_an_error_is_a_sentence(recipe: Any, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"error: .*unknown key 'train\.lrr'"):
        run(recipe, tmp_path, "--set", "train.lrr=1")
    (tmp_path / "STOP").touch()
    with pytest.raises(SystemExit, match="the same command goes on"):
        run(recipe, tmp_path)


def test_a_student_of_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(distill, tmp_path)
    assert len(rows(tmp_path / "replies.jsonl")) == 64
    assert report(tmp_path)["steps"] == 3
    assert "64 replies to 64 prompts" in capsys.readouterr().out
    about = json.loads((tmp_path / "run.json").read_text())
    assert about["data"]["samples"] + about["data"]["valid_rows"] == 64


def test_a_student_of_logits(tmp_path: Path) -> None:
    run(distill, tmp_path, "--by", "logits")
    found = report(tmp_path)
    assert found["valid_best"] < found["valid_before"] < 1
    assert (tmp_path / "teacher" / "train").exists()
    with pytest.raises(SystemExit, match="needs --teacher"):
        distill.main(["--by", "logits", "--out", str(tmp_path), "--model", str(tmp_path / "tiny")])


def server(stub_url: str) -> list[str]:
    return ["--set", f"teacher.url={stub_url}", "--set", "teacher.model=stub",
            "--set", "teacher.backoff=0.01"]  # fmt: skip


def test_a_teacher_with_bad_days(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def answer(messages: list[dict[str, str]], number: int) -> str | StubAnswer:
        if messages[-1]["content"] == "What is rust?":
            return StubAnswer(b'{"error": "no"}', 400)
        if messages[-1]["content"] == "What is a comet?":
            return StubAnswer(completion("It is", finish_reason="length"))
        faults = [StubAnswer(b"busy", 503), StubAnswer(b"<html>"), StubAnswer(completion(" "))]
        return faults[number % 9] if number % 9 < 3 else "Aye. A good question."

    with teacher_stub(answer) as stub:
        run(distill, tmp_path, *server(stub.url), "--set", "teacher.retries=20")
    told = capsys.readouterr().out
    assert "62 replies to 64 prompts" in told
    assert "1 without a reply, 1 cut off and left out" in told
    assert "HTTP 400: no" in told


def test_no_server(tmp_path: Path) -> None:
    url = "http://127.0.0.1:9/v1"
    with pytest.raises(SystemExit, match=f"error: no server answers at {url}"):
        run(distill, tmp_path, *server(url))


def test_a_killed_run_asks_only_for_the_rest(tmp_path: Path, repository: Path) -> None:
    killed = threading.Event()

    def held(_: object, number: int) -> str:
        # The child cannot come to its end before it is killed.
        if number >= 32:
            killed.wait()
        return "Aye. So it is."

    replies = tmp_path / "run" / "replies.jsonl"
    with teacher_stub(held) as stub:
        script = str(repository / "recipes" / "distill.py")
        command = [sys.executable, script, "--smoke", "--out", str(tmp_path / "run")]
        child = subprocess.Popen(
            [*command, *server(stub.url)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=repository,
            env={"PYTHONPATH": str(repository), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        )
        # Each of its four threads waits by then, and no request is on its way.
        until(lambda: len(stub.requests) == 36 and replies.read_bytes().count(b"\n") >= 12)
        child.send_signal(signal.SIGKILL)
        child.wait()
        killed.set()
        kept, before = len(rows(replies)), len(stub.requests)
        assert 0 < kept < 64
        run(distill, tmp_path / "run", *server(stub.url))
        assert len(stub.requests) - before == 64 - kept
    assert len({row["key"] for row in rows(replies)}) == 64
    assert report(tmp_path / "run")["steps"] == 3


class Sums:
    """A task in the form of reasoning-gym's."""

    def __init__(self, size: int, seed: int) -> None:
        self.entries = [
            {"question": f"{n} + {seed}?", "answer": str(n + seed), "metadata": {"n": n}}
            for n in range(size)
        ]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.entries)

    def score_answer(self, answer: str, entry: dict[str, Any]) -> float:
        assert entry["answer"].isdigit()
        return 1.0 if answer == entry["answer"] else len(answer) / 100


def create_dataset(name: str, size: int, seed: int) -> Sums:
    if name != "chain_sum":
        raise ValueError(f"Dataset '{name}' not registered")
    return Sums(size, seed)


@pytest.fixture
def gym(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("reasoning_gym")
    module.create_dataset = create_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "reasoning_gym", module)


@pytest.mark.usefixtures("gym")
def test_answers_are_rewarded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(rl_reasoning, tmp_path)
    found = report(tmp_path)
    assert found["steps"] == 2
    assert 0 < found["before"] < 1
    assert "round 0: reward" in capsys.readouterr().out
    before = (tmp_path / "result.json").read_text()
    run(rl_reasoning, tmp_path)
    assert (tmp_path / "result.json").read_text() == before
    assert report(tmp_path) == found


@pytest.mark.usefixtures("gym")
def test_an_unknown_task_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="error: --task sums: Dataset 'sums' not registered"):
        run(rl_reasoning, tmp_path, "--task", "sums")


def test_a_missing_gym_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(SystemExit, match=r'pip install "mlx-companion\[reasoning\]"'):
        run(rl_reasoning, tmp_path)


def test_a_real_task_can_be_checked(tmp_path: Path) -> None:
    pytest.importorskip("reasoning_gym", reason="extra `reasoning`")
    run(rl_reasoning, tmp_path)
    assert report(tmp_path)["task"] == "chain_sum"
