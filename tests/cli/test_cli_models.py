"""The verbs that load a model, on a tiny random one: generate, chat and finetune."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from patience import LONG, until
from tiny import tiny_llama
from typer.testing import Result

import mlx_companion as mc
from mlx_companion.loop.switch import stop_file
from mlx_companion.store import Store

Run = Callable[..., Result]
PROMPT = "How do I mend a bicycle tyre?"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_llama(tmp_path_factory.mktemp("tiny") / "llama"))


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    """Twelve rows to train on."""
    file = tmp_path / "chats.jsonl"
    rows = [
        {"prompt": f"What is {n}?", "completion": f"The number {n}, no more."} for n in range(12)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


# The command as it is, but a run that has a checkpoint goes on only after Ctrl-C: it cannot come to
# its end before the signal does.
HELD = """
import signal, time
from mlx_companion.cli import main
from mlx_companion.training.callbacks import MetricsLog

told, install, note = [], signal.signal, MetricsLog.on_step

def installed(number, handler):
    def heard(*arguments):
        told.append(number)
        return handler(*arguments)
    return install(number, heard if number == signal.SIGINT and callable(handler) else handler)

def noted(self, step):
    note(self, step)
    while list((self.path.parent / "checkpoints").glob("*")) and not told:
        time.sleep(0.002)

signal.signal, MetricsLog.on_step = installed, noted
main()
"""


def start(*words: str, held: bool = False) -> subprocess.Popen[str]:
    """`mlx-companion` in a process of its own."""
    program = ["-c", HELD] if held else ["-m", "mlx_companion"]
    return subprocess.Popen(
        [sys.executable, *program, *words],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        encoding="utf-8",
    )  # fmt: skip


def test_generate_prints_what_the_library_generates(run: Run, model: str) -> None:
    expected = mc.generate(mc.load(model), PROMPT, max_tokens=12, system="Be brief.")
    words = ["--model", model, "--max-tokens", "12", "--system", "Be brief."]
    for prompt, given in ((PROMPT, None), ("-", PROMPT)):
        result = run("generate", prompt, *words, input=given)
        assert result.exit_code == 0, result.output
        assert result.stdout.strip() == expected.text


def test_generate_samples_with_a_seed(run: Run, model: str) -> None:
    def sampled(seed: str) -> str:
        words = ["--temperature", "1.5", "--top-k", "20", "--top-p", "0.9", "--seed", seed]
        return run("generate", PROMPT, "--model", model, "--max-tokens", "16", *words).stdout

    assert sampled("1") == sampled("1") != sampled("2")


def test_raw_text_is_continued_as_it_is(run: Run, model: str) -> None:
    lm = mc.load(model)
    tokens = list(lm.tokenizer.encode("The kettle is"))
    expected = mc.generate(lm, tokens, max_tokens=8).text
    result = run("generate", "The kettle is", "--raw", "--model", model, "--max-tokens", "8")
    assert result.stdout.strip() == expected
    assert expected != mc.generate(lm, "The kettle is", max_tokens=8).text


def test_a_stop_ends_the_reply(run: Run, model: str) -> None:
    words = ["generate", PROMPT, "--model", model, "--max-tokens", "16"]
    whole = run(*words).stdout.strip()
    stop = whole[len(whole) // 2 :][:2]
    assert run(*words, "--stop", stop).stdout.strip() == whole[: whole.index(stop)].strip()


@pytest.mark.parametrize(
    ("prompt", "given", "said"),
    [
        ("  ", None, "the prompt is empty"),
        ("-", b"\xff\xfe", "not UTF-8"),
        ("-", b"word " * 20_000, "shorten the prompt"),
    ],
    ids=["empty", "not text", "too long"],
)
def test_a_prompt_that_cannot_be_used(
    prompt: str, given: bytes | None, said: str, run: Run, model: str
) -> None:
    result = run("generate", prompt, "--model", model, input=given)
    assert (result.exit_code, result.stdout) == (1, "")
    assert said in result.stderr


def test_a_model_that_is_not_there(run: Run, tmp_path: Path) -> None:
    result = run("generate", "hello", "--model", str(tmp_path / "nowhere"))
    assert result.exit_code == 1
    assert "nowhere" in result.stderr


def test_a_chat_through_a_pipe_is_kept(model: str) -> None:
    process = start("chat", "--model", model, "--set", "serve.max_tokens=8", "--seed", "1")
    said = "hello there\n/good\n/edit Good day.\nand now?\n"
    out, errors = process.communicate(said, timeout=LONG)
    assert process.returncode == 0, errors
    with Store() as store:
        first, second = store.interactions.iter()
        assert (first.prompt, second.prompt) == ("hello there", "and now?")
        assert first.conversation_id == second.conversation_id
        assert first.model_version == store.versions.active().id == "v0001"  # type: ignore[union-attr]
        assert store.feedback.state(first.id).rating == "up"
        assert store.feedback.state(first.id).edited == "Good day."
    assert out.count("noted") == 2
    assert first.response in out


def test_a_chat_goes_on_with_the_base_of_the_active_version(run: Run, model: str) -> None:
    words = ["--set", "serve.max_tokens=4"]
    assert run("chat", "--model", model, *words, input="one\n").exit_code == 0
    assert run("chat", *words, input="two\n").exit_code == 0
    with Store() as store:
        assert [i.prompt for i in store.interactions.iter()] == ["one", "two"]
        assert len(store.versions.all()) == 1


def test_a_script_learns_that_a_line_was_not_answered(run: Run, model: str) -> None:
    result = run("chat", "--model", model, input="word " * 5000 + "\nhello\n")
    assert result.exit_code == 1
    assert "shorten the prompt" in result.output
    with Store() as store:
        assert [i.prompt for i in store.interactions.iter()] == ["hello"]


def test_finetune_makes_an_adapter_that_generate_uses(
    run: Run, model: str, chats: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    words = ["--model", model, "--data", str(chats), "--out", str(out), "--valid", "0.2"]
    words += ["--rank", "4", "--alpha", "8", "--epochs", "2", "--lr", "0.02", "--seed", "3"]
    words += ["--batch-tokens", "256", "--max-tokens", "128", "--layers", "1"]
    result = run("finetune", *words, "--set", "train.warmup_steps=0")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"adapter: {out / 'adapter'}\n"
    settings = json.loads((out / "run.json").read_text())
    assert {k: settings["lora"][k] for k in ("rank", "alpha", "layers")} == {
        "rank": 4, "alpha": 8.0, "layers": 1
    }  # fmt: skip
    train = settings["train"]
    assert (train["epochs"], train["lr"], train["seed"]) == (2, 0.02, 3)
    assert (train["batch_tokens"], train["max_tokens"], train["warmup_steps"]) == (256, 128, 0)
    plain = run("generate", "What is 3?", "--model", model, "--max-tokens", "8").stdout
    adapter = ["--adapter", str(out / "adapter")]
    tuned = run("generate", "What is 3?", "--model", model, "--max-tokens", "8", *adapter)
    assert tuned.exit_code == 0, tuned.output
    assert tuned.stdout != plain
    again = ["finetune", *words, "--epochs", "1"]
    refused = run(*again)
    assert refused.exit_code == 1
    assert "another run" in refused.stderr
    assert run(*again, "--no-resume").exit_code == 0
    assert json.loads((out / "run.json").read_text())["train"]["epochs"] == 1


def test_finetune_refuses_malformed_data(run: Run, model: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": \n')
    result = run("finetune", "--model", model, "--data", str(file), "--out", str(tmp_path / "run"))
    assert result.exit_code == 1
    assert f"{file}:2" in result.stderr


def test_an_interrupted_finetune_goes_on(model: str, chats: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ["finetune", "--model", model, "--data", str(chats), "--out", str(out)]
    words += ["--epochs", "40", "--batch-tokens", "128", "--set", "train.save_every=5"]
    process = start(*words, held=True)
    until(lambda: list((out / "checkpoints").glob("*")))
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=LONG)
    assert process.returncode == 130, errors
    assert "stopping at the next safe point" in errors
    assert "run the same command again to continue" in errors
    assert not (out / "result.json").exists()
    process = start(*words)
    _, errors = process.communicate(timeout=LONG)
    assert process.returncode == 0, errors
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)
    assert json.loads((out / "result.json").read_text())["steps"] == steps[-1] == len(set(steps))


def test_a_thrown_switch_stops_a_running_finetune(model: str, chats: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ["finetune", "--model", model, "--data", str(chats), "--out", str(out)]
    process = start(*words, "--epochs", "100000", "--batch-tokens", "128")
    until((out / "metrics.jsonl").exists)
    stop_file().touch()
    _, errors = process.communicate(timeout=LONG)
    assert process.returncode == 130, errors
    assert list((out / "checkpoints").glob("*"))
