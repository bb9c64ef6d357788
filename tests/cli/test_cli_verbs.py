"""Each verb on an empty or small store: what it prints, and its exit code. No model is loaded."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cli_reference
import pytest
import typer
from typer.testing import Result

import mlx_companion
from mlx_companion.cli import app
from mlx_companion.errors import (
    CompanionError,
    ConfigError,
    DiskFullError,
    LoopError,
    Stopped,
)
from mlx_companion.loop.progress import Silent
from mlx_companion.loop.switch import stop_file
from mlx_companion.runtime.paths import data_dir
from mlx_companion.store import Store

Run = Callable[..., Result]
VERBS = [verbs for verbs, _ in cli_reference.commands(typer.main.get_command(app), ())]


@pytest.mark.parametrize("verbs", VERBS, ids=" ".join)
def test_every_verb_has_help(verbs: tuple[str, ...], run: Run) -> None:
    result = run(*verbs, "--help")
    assert result.exit_code == 0
    assert "Usage:" in result.output
    assert max(map(len, result.output.splitlines())) <= 80


def test_help_is_quick_because_it_imports_nothing_heavy() -> None:
    heavy = ("mlx", "numpy", "scipy", "transformers", "mlx_lm", "tokenizers", "psutil")
    code = (
        "import sys\nfrom mlx_companion.cli import app\n"
        "try:\n    app(['improve', '--help'])\nexcept SystemExit:\n    pass\n"
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_version(run: Run) -> None:
    assert run("--version").output == f"mlx-companion {mlx_companion.__version__}\n"


@pytest.mark.parametrize(
    "words",
    [
        ["imporve"], ["data", "exprot"], ["improve", "--rouns", "1"], ["improve", "--rounds", "x"],
        ["promote"], ["improve", "--review", "--dry-run"], ["data", "export"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_wrong_command_line_ends_with_2(words: list[str], run: Run) -> None:
    result = run(*words)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["promote", "v0009"], 1, "there is no version 'v0009'"),
        (["rollback"], 1, "nothing to go back from"),
        (["diff", "v0001", "v0002"], 1, "there is no version 'v0001'"),
        (["data", "import", "nowhere.jsonl"], 1, "nowhere.jsonl"),
        (["fetch", "smolm2-135m"], 1, "did you mean 'smollm2-135m'?"),
        (["improve", "--set", "gate.alhpa=0.1"], 2, "did you mean 'alpha'?"),
        (["improve", "--set", "gate.alpha"], 2, "expected key=value"),
        (["improve", "--config", "nowhere.yaml"], 2, "nowhere.yaml"),
        (["improve", "--rounds", "0"], 2, "rounds=0"),
        (["finetune", "--data", "x.jsonl", "--rank", "0"], 2, "rank"),
        (["chat", "--set", "serve.temprature=1"], 2, "did you mean 'temperature'?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_an_error_is_one_line_that_says_what_to_do(
    words: list[str], code: int, said: str, run: Run
) -> None:
    result = run(*words)
    assert result.exit_code == code
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1
    assert said in result.stderr


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (LoopError("nothing to learn from"), 1, "error: nothing to learn from"),
        (DiskFullError("no space"), 1, "error: no space"),
        (ConfigError("a key is wrong"), 2, "error: a key is wrong"),
        (PermissionError(13, "Permission denied", "/x"), 1, "Permission denied: '/x'"),
        (Stopped("stopped at a safe point: why"), 130, "run the same command again to continue"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_errors_have_exit_codes(
    error: BaseException, code: int, said: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_improve(monkeypatch, error)
    result = run("improve")
    assert (result.exit_code, result.stdout) == (code, "")
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_a_limit_in_a_later_round_keeps_the_figures(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [None, LoopError("2 rounds were run and max_rounds is 2")]

    def improve(config: Any, **given: Any) -> list[Any]:
        from mlx_companion.loop.rounds import RoundResult

        error = left.pop(0)
        if error is not None:
            raise error
        return [RoundResult(REPORT, Path("/x/report.html"), Path("/x/report.json"))]

    monkeypatch.setattr("mlx_companion.loop.rounds.improve", improve)
    result = run("improve", "--rounds", "3")
    assert (result.exit_code, left) == (0, [])
    assert "No further round: 2 rounds were run" in result.stderr
    assert json.loads(result.stdout.splitlines()[-1])["version"] == "v0004"


def test_a_program_error_is_not_hidden(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_improve(monkeypatch, ZeroDivisionError("a fault in the program"))
    assert isinstance(run("improve").exception, ZeroDivisionError)


def test_debugging_shows_where_an_error_came_from(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_improve(monkeypatch, LoopError("x"))
    monkeypatch.setenv("MLX_COMPANION_DEBUG", "1")
    assert isinstance(run("improve").exception, CompanionError)


REPORT: dict[str, Any] = {
    "round": 4, "outcome": "deploy", "deployed": True, "mode": "auto", "base_version": "v0003",
    "candidate": "v0004", "version": "v0004", "scale": 1.0, "items": 160, "before": 0.2,
    "after": 0.7, "p": 1e-9, "alpha": 0.03, "distinct_before": 150, "distinct_after": 155,
    "relevance_before": 0.5, "relevance_after": 0.55, "perplexity_before": 20.0,
    "perplexity_after": 20.5, "seconds": 600.5, "peak_mb": 2900.0,
    "report": "/a/very/long/path/" + "x" * 90 + "/report.html", "reasons": ["It gains."],
}  # fmt: skip


def fake_improve(
    monkeypatch: pytest.MonkeyPatch, error: BaseException | None = None
) -> list[dict[str, Any]]:
    """Replaces the loop at its door; returns what it was called with."""
    calls: list[dict[str, Any]] = []

    def improve(config: Any, **given: Any) -> list[Any]:
        from mlx_companion.loop.rounds import RoundResult

        calls.append({"config": config, **given})
        given["progress"].round_started(4, "v0003", resumed=False)
        given["progress"].step_started("collect")
        given["progress"].step_finished("collect", "12 prompts", seconds=1.0, skipped=False)
        if error is not None:
            raise error
        return [RoundResult(REPORT, Path("/x/report.html"), Path("/x/report.json"))]

    monkeypatch.setattr("mlx_companion.loop.rounds.improve", improve)
    return calls


def test_the_last_line_of_improve_is_json(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_improve(monkeypatch)
    result = run("improve")
    assert result.exit_code == 0, result.output
    *shown, last = result.stdout.splitlines()
    found = json.loads(last)
    assert found == {name: REPORT[name] for name in found}
    assert {"deployed", "before", "after", "p", "seconds", "peak_mb", "report", "version"} <= set(
        found
    )
    assert any(line.startswith("good replies") for line in shown)
    assert "Deployed: v0004 is now the active version." in shown
    assert "Report: /x/report.html" in shown
    assert "12 prompts" in result.stderr
    assert "12 prompts" not in result.stdout


def test_quiet_prints_the_last_line_alone(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_improve(monkeypatch)
    result = run("improve", "--quiet")
    assert len(result.stdout.splitlines()) == 1
    assert json.loads(result.stdout)["version"] == "v0004"
    assert result.stderr == ""
    assert isinstance(calls[0]["progress"], Silent)


def test_options_reach_the_loop(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = fake_improve(monkeypatch)
    monkeypatch.setenv("MLX_COMPANION_TEST_POISON", "garbage")
    file = tmp_path / "loop.yaml"
    file.write_text("model: from-file\nseed: 3\ngate:\n  alpha: 0.02\n  scale_steps: 1\n")
    words = ["--config", str(file), "--set", "gate.alpha=0.01", "--set", "seed=5"]
    words += ["--set", "lora.rank=4"]
    words += ["--model", "given", "--profile", "p", "--rounds", "2", "--review", "--seed", "9"]
    assert run("improve", *words, "--data-dir", str(tmp_path / "home")).exit_code == 0
    assert len(calls) == 2
    config = calls[0]["config"]
    assert (config.model, config.profile, config.mode) == ("given", "p", "review")
    assert (config.seed, config.rounds) == (9, 1)
    assert (config.gate.alpha, config.gate.scale_steps, config.lora.rank) == (0.01, 1, 4)
    assert calls[0]["poison"] == "garbage"
    assert calls[0]["switch"].path == tmp_path / "home" / "STOP"


def test_a_dry_run_is_asked_for(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_improve(monkeypatch)
    run("improve", "--dry-run")
    run("improve")
    assert [call["config"].mode for call in calls] == ["dry-run", "auto"]


def test_the_kill_switch_stays_thrown_until_resume(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = fake_improve(monkeypatch)
    assert str(stop_file()) in run("stop").output
    refused = run("improve")
    assert refused.exit_code == 1
    assert "mlx-companion resume" in refused.stderr
    assert run("finetune", "--data", "x.jsonl").exit_code == 1
    assert calls == []
    assert "taken back" in run("resume").output
    assert "was not thrown" in run("resume").output
    assert run("improve").exit_code == 0
    run("stop")
    assert run("improve", "--clear-stop").exit_code == 0
    assert len(calls) == 2


def fill() -> None:
    """A store with a base, a deployed version, and an exchange."""
    with Store() as store:
        base = store.versions.ensure_base("0" * 64, "tiny")
        metrics = {"before": 0.2, "after": 0.7, "p": 1e-9, "items": 160, "scale": 1.0}
        round_ = store.rounds.begin(seed=0, base_version=base.id)
        made = store.versions.create(
            name="round 1",
            parent=base.id,
            metrics=metrics,
            round_id=round_.id,
            base_sha256="0" * 64,
        )
        store.versions.activate(made.id, "test")
        one = store.interactions.add("What is a fjord?", "A flooded valley. ünï ✓")
        store.feedback.add(one.id, "up")


def test_versions_are_listed_and_moved(run: Run) -> None:
    assert "no version yet" in run("versions").output
    fill()
    lines = run("versions").output.replace("\N{NO-BREAK SPACE}", " ").splitlines()
    cells = [re.split(r"\s{2,}", line.strip()) for line in lines[1:]]
    assert cells[0][:2] == ["v0001", "base"]
    assert cells[1][:3] == ["*", "v0002", "round 1"]
    assert cells[1][4:6] == ["v0001", "20 % to 70 %"]
    assert run("rollback").output == "v0001 is active now\n"
    assert run("promote", "v0002").output == "v0002 is active now\n"
    assert run("rollback", "--to", "v0001").output == "v0001 is active now\n"
    found = json.loads(run("versions", "--json").stdout)
    assert [v["id"] for v in found["versions"] if v["active"]] == ["v0001"]
    assert [e["action"] for e in found["history"]] == [
        "promote", "promote", "rollback", "promote", "rollback"
    ]  # fmt: skip


def test_two_versions_are_compared(run: Run) -> None:
    fill()
    found = json.loads(run("diff", "v0001", "v0002", "--json").stdout)
    assert found["metrics"]["after"] == [None, 0.7]
    rows = [line.split() for line in run("diff", "v0001", "v0002").output.splitlines()]
    assert ["v0001", "v0002"] in rows
    assert ["after", "–", "0.700"] in rows
    assert "no figures to compare" in run("diff", "v0001", "v0001").output


def test_data_goes_out_and_comes_back(run: Run, tmp_path: Path) -> None:
    fill()
    file = tmp_path / "mine.jsonl"
    out = run("data", "export", str(file))
    assert out.exit_code == 0, out.output
    rows = len(file.read_text(encoding="utf-8").splitlines()) - 1
    assert out.output == f"{rows} rows written to {file}\n"
    other = ["--data-dir", str(tmp_path / "other")]
    assert run("data", "import", str(file), *other).output == (
        f"{rows} rows added, 0 were here already\n"
    )
    assert run("data", "import", str(file), *other).output == (
        f"0 rows added, {rows} were here already\n"
    )
    with Store(tmp_path / "other" / "companion.db") as store:
        (one,) = store.interactions.iter()
        assert one.response == "A flooded valley. ünï ✓"
        assert store.feedback.state(one.id).rating == "up"


def test_one_kind_is_exported(run: Run, tmp_path: Path) -> None:
    fill()
    file = tmp_path / "said.jsonl"
    assert "1 rows written" in run("data", "export", str(file), "--kind", "interaction").output
    assert run("data", "export", str(file), "--kind", "interactoin").exit_code == 1


def test_a_wrong_line_imports_nothing(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "chats.jsonl"
    file.write_text('{"prompt": "a", "response": "b"}\n{"prompt": "c"}\n')
    result = run("data", "import", str(file))
    assert result.exit_code == 1
    assert f"{file}:2" in result.stderr
    assert json.loads(run("data", "stats", "--json").stdout)["interactions"] == 0


@pytest.mark.parametrize(("answer", "left"), [("n\n", 1), ("", 1), ("y\n", 0)])
def test_deleting_asks_first(answer: str, left: int, run: Run) -> None:
    fill()
    result = run("data", "delete", input=answer)
    assert "1 exchanges, 2 versions" in result.output
    assert (result.exit_code == 0) == (left == 0)
    assert json.loads(run("data", "stats", "--json").stdout)["interactions"] == left


def test_deleting_can_be_told_not_to_ask(run: Run) -> None:
    fill()
    log = data_dir() / "logs" / "companion.log"
    log.parent.mkdir()
    log.write_text("{}")
    result = run("data", "delete", "--yes")
    assert result.exit_code == 0
    assert re.fullmatch(r"deleted \d+ rows and [1-9]\d* files\n", result.output)
    assert not log.exists()


def test_statistics_are_shown(run: Run) -> None:
    fill()
    rows = dict(re.findall(r"^ +(\S+(?: \S+)*)  +(\S+)", run("data", "stats").output, re.MULTILINE))
    assert (rows["interactions"], rows["good"], rows["versions"]) == ("1", "1", "2")
    assert rows["active version"] == "v0002"


def test_the_doctor_speaks_json_and_tells_of_problems(run: Run) -> None:
    result = run("doctor", "--json")
    found = json.loads(result.stdout)
    assert found["version"] == mlx_companion.__version__
    assert found["blas"]["matmul_gflops"] > 0
    assert result.exit_code == (1 if found["problems"] else 0)
    run("stop")
    shown = run("doctor")
    assert shown.exit_code == 1
    assert "kill switch" in shown.output
    assert "GFLOP/s" in shown.output


def test_models_are_listed(run: Run) -> None:
    lines = run("models").output.splitlines()
    rows = {line.split()[0]: line.split()[-1] for line in lines[1:]}
    # The test's own cache is empty, the hub library's may not be.
    assert set(rows.values()) <= {"yes", "no"}
    assert rows["smollm2-135m"] in ("yes", "no")
    assert {"smollm2-135m", "phi2", "qwen2.5-3b", "minilm-l6"} <= set(rows)


def test_fetching_prints_the_path(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def fetch(name: str, *, verify: bool) -> Path:
        asked.append((name, verify))
        return Path("/cache/model.gguf")

    monkeypatch.setattr("mlx_companion.models.fetch.fetch", fetch)
    assert run("fetch", "phi2", "--verify").stdout == "/cache/model.gguf\n"
    assert asked == [("phi2", True)]


def test_without_words_there_is_help(run: Run) -> None:
    for words in ([], ["data"]):
        assert "Usage:" in run(*words).output
