"""`mlx-companion slm ...` over stand-in modules: files in and out, errors, tables."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import companion_world as world
import pytest
from conftest import Run
from slm_stand_ins import PATIENT, StandIn, answer

from mlx_companion.errors import DataError
from mlx_companion.slm.factory import SLMFactory
from mlx_companion.slm.module import MODULES
from mlx_companion.slm.packs import load_pack, save_pack
from mlx_companion.slm.registry import SLMRegistry
from mlx_companion.store import Store

PATIENTLY = [word for key, value in PATIENT.items() for word in ("--set", f"{key}={value}")]


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> dict[str, StandIn]:
    """Stand-ins in the place of the packaged modules."""
    made = {name: StandIn(name) for name in MODULES}
    monkeypatch.setattr(SLMFactory, "_packaged", lambda self, name: made[name])
    return made


def write(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


CASES = [
    ("research_classifier", {"query": "news?"}, "news?"),
    (
        "research_classifier",
        {"query": "news?", "today": "2026-01-02", "label": True},
        {"query": "news?", "today": "2026-01-02"},
    ),
    ("personality_guard", {"id": 3, "text": "Hi."}, "Hi."),
    ("personality_guard", {"text": "Hi.", "user_name": "Ana"}, {"text": "Hi.", "user_name": "Ana"}),
    ("context_tracker", {"text": "lol"}, "lol"),
    (
        "context_tracker",
        {"turns": [{"role": "user", "content": "hi"}]},
        [{"role": "user", "content": "hi"}],
    ),
    (
        "context_tracker",
        {"text": "lol", "now": "2026-01-02", "known": {"a": 1}, "conversation": "c", "id": 1},
        {"text": "lol", "now": "2026-01-02", "known": {"a": 1}, "conversation": "c"},
    ),
    (
        "drift_monitor",
        {"responses": ["a"], "baseline": ["b"], "messages": ["c"], "text": "d"},
        {"responses": ["a"], "baseline": ["b"], "messages": ["c"], "text": "d"},
    ),
    ("drift_monitor", {"text": "i love you"}, {"text": "i love you"}),
    ("drift_monitor", {"responses": ["a", "b"]}, {"responses": ["a", "b"]}),
    (
        "drift_monitor",
        {"responses": ["a"], "baseline": ["b"], "who": 1},
        {"responses": ["a"], "baseline": ["b"]},
    ),
]


@pytest.mark.parametrize(("name", "row", "item"), CASES)
def test_each_module_reads_its_field_and_each_line_comes_out_with_its_result(
    name: str, row: dict[str, Any], item: Any, run: Run, modules: Any, tmp_path: Path
) -> None:
    source = write(tmp_path / "x.jsonl", [row, row])
    done = run("slm", "run", name, "--in", source, "--out", tmp_path / "y.jsonl")
    assert done.exit_code == 0, done.output
    assert modules[name].seen == [item, item]
    expected = answer(name, item).to_dict()
    assert read(tmp_path / "y.jsonl") == [row | {"result": expected}] * 2
    assert done.stdout == ""
    assert "2 lines" in done.stderr


def test_a_module_is_prepared_before_its_lines(
    run: Run, modules: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker, seen = modules["context_tracker"], []
    monkeypatch.setattr(tracker, "prepare", lambda: seen.append(len(tracker.seen)))
    source = write(tmp_path / "x.jsonl", [{"text": "lol"}])
    words = ("slm", "run", "context_tracker", "--in", source, "--out", tmp_path / "y.jsonl")
    assert run(*words).exit_code == 0
    assert seen == [0]


def test_batches_keep_the_order(run: Run, modules: Any, tmp_path: Path) -> None:
    rows = [{"text": f"message {i}", "i": i} for i in range(77)]
    source, out = write(tmp_path / "x.jsonl", rows), tmp_path / "y.jsonl"
    words = ("slm", "run", "personality_guard", "--in", source, "--out", out)
    assert run(*words, "--set", "modules.personality_guard.batch_size=10").exit_code == 0
    made = read(out)
    assert [row["i"] for row in made] == list(range(77))
    assert [row["result"]["original_response"] for row in made] == [r["text"] for r in rows]


def test_the_output_may_be_the_input(run: Run, modules: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [{"query": "hm", "result": "old"}])
    assert run("slm", "run", "research_classifier", "--in", path, "--out", path).exit_code == 0
    assert read(path)[0]["result"]["needs_research"] is True


def test_text_of_any_kind_comes_out_as_it_went_in(run: Run, modules: Any, tmp_path: Path) -> None:
    rows = [{"text": text} for text in ("naïve 日本 🙂", "half \ud83d", "line\u2028sep", "")]
    source, out = write(tmp_path / "x.jsonl", rows), tmp_path / "y.jsonl"
    assert run("slm", "run", "personality_guard", "--in", source, "--out", out).exit_code == 0
    lines = out.read_text(encoding="utf-8").split("\n")
    assert [json.loads(line)["text"] for line in lines[:-1]] == [row["text"] for row in rows]
    assert "日本" in lines[0]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "x.jsonl:2: bad JSON at column 2"),
        ("[1]", "x.jsonl:2: it is a list; expected an object"),
        ('{"text": "x"}', "x.jsonl:2: field 'query': it is missing; research_classifier reads"),
        ('{"query": 7}', "x.jsonl:2: field 'query': it is a number; expected a text"),
        ('{"query": null}', "x.jsonl:2: field 'query': it is null; research_classifier reads"),
        ('{"query": "x", "today": 3}', "x.jsonl:2: field 'today': it is a number"),
        ('{"query": "x", "score": NaN}', "x.jsonl:2: field 'score': it is NaN"),
    ],
)
def test_a_bad_line_is_told_with_its_place_and_nothing_is_written(
    line: str, told: str, run: Run, modules: Any, tmp_path: Path
) -> None:
    source, out = tmp_path / "x.jsonl", tmp_path / "y.jsonl"
    source.write_text('{"query": "fine"}\n' + line + "\n")
    out.write_text("what was there before")
    done = run("slm", "run", "research_classifier", "--in", source, "--out", out)
    assert done.exit_code == 1
    assert told in done.stderr.replace("\n", "")
    assert out.read_text() == "what was there before"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_what_the_module_finds_wrong_has_its_place_too(
    run: Run, modules: Any, tmp_path: Path
) -> None:
    def behave(item: Any) -> Any:
        if item == "bad":
            raise DataError("expected a question", field="query")
        return answer("research_classifier", item)

    modules["research_classifier"].behave = behave
    source = write(tmp_path / "x.jsonl", [{"query": "good"}, {"query": "bad"}])
    words = ("slm", "run", "research_classifier", "--in", source, "--out", tmp_path / "y.jsonl")
    done = run(*words)
    assert done.exit_code == 1
    assert "x.jsonl:2: field 'query': expected a question" in done.stderr.replace("\n", "")


def test_a_place_that_the_module_names_is_replaced_by_that_in_the_file(
    run: Run, modules: Any, tmp_path: Path
) -> None:
    def behave(item: Any) -> Any:
        if item == ["bad"]:
            raise DataError("these are no turns", line=1)
        return answer("context_tracker", item)

    modules["context_tracker"].behave = behave
    source = write(tmp_path / "x.jsonl", [{"turns": ["good"]}, {"turns": ["bad"]}])
    done = run("slm", "run", "context_tracker", "--in", source, "--out", tmp_path / "y.jsonl")
    assert "x.jsonl:2: these are no turns" in done.stderr.replace("\n", "")


def test_a_device_is_no_place_for_results(run: Run, modules: Any, tmp_path: Path) -> None:
    source, pipe = write(tmp_path / "x.jsonl", [{"query": "good"}]), tmp_path / "pipe"
    os.mkfifo(pipe)
    done = run("slm", "run", "research_classifier", "--in", source, "--out", pipe)
    assert done.exit_code == 2
    assert "expected the name of a file to write" in " ".join(done.stderr.split())
    assert pipe.is_fifo()


def test_a_dash_is_standard_input_and_standard_output(
    run: Run, modules: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("slm", "run", "personality_guard", "--in", "-", "--out", "-")
    done = run(*words, input='{"text": "naïve"}\n{"text": "b"}\n')
    assert done.exit_code == 0, done.output
    assert [json.loads(line)["text"] for line in done.stdout.splitlines()] == ["naïve", "b"]
    assert "standard output: 2 lines" in done.stderr
    done = run(*words, input='{"text": "a"}\n{"text": 7}\n')
    assert done.exit_code == 1
    assert "error: standard input:2: field 'text': it is a number" in done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_a_line_on_which_the_module_fails_does_not_end_the_file(
    run: Run, modules: Any, tmp_path: Path
) -> None:
    def behave(item: Any) -> Any:
        if "boom" in item:
            raise ValueError("boom")
        return answer("personality_guard", item)

    guard = modules["personality_guard"]
    guard.behave = behave
    source = write(tmp_path / "x.jsonl", [{"text": "a"}, {"text": "boom"}, {"text": "b"}])
    out = tmp_path / "y.jsonl"
    words = ("slm", "run", "personality_guard", "--in", source, "--out", out)
    done = run(*words)
    assert done.exit_code == 1
    assert "1 without a result" in done.stderr
    rows = read(out)
    assert [row["result"] is None for row in rows] == [False, True, False]
    assert rows[1]["error"] == "ValueError: boom"
    guard.rules = lambda item: answer("personality_guard", item)
    done = run(*words)
    assert done.exit_code == 0
    assert "1 answered by rules alone" in done.stderr
    assert read(out)[1]["result"]["original_response"] == "boom"


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("run", "gard", "--in", "x", "--out", "y"), 2, "there is no module 'gard'"),
        (("run", "drift_monitor", "--in", "no.jsonl", "--out", "y"), 1, "no such file"),
        (("run", "drift_monitor", "--in", ".", "--out", "y"), 1, "it is a folder"),
        (
            ("run", "drift_monitor", "--in", "x", "--out", "y", "--set", "modules.drift_monito=1"),
            2,
            "did you mean 'drift_monitor'",
        ),
        (("bench", "--repeats", "0"), 2, "expected 1 or more"),
        (("status", "--every", "0"), 2, "expected more than 0"),
        (("versions", "drift_moniter"), 2, "did you mean 'drift_monitor'"),
    ],
)
def test_wrong_command_lines(
    words: Sequence[str], code: int, told: str, run: Run, modules: Any
) -> None:
    done = run("slm", *words)
    assert done.exit_code == code
    assert told in done.stderr.replace("\n", " ")


def test_bench_prints_a_line_for_each_module_and_for_all(run: Run, modules: Any) -> None:
    done = run("slm", "bench", "--repeats", "3", *PATIENTLY)
    assert done.exit_code == 0, done.output
    asked = modules["research_classifier"].seen
    # Two rounds and the loading warm up; each round asks it alone and with the others.
    assert len(asked) == len(set(asked)) == 2 * (3 + 2) + 1
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [*MODULES, "all"]
    rows = json.loads(run("slm", "bench", "--repeats", "2", "--json", *PATIENTLY).stdout)
    assert rows[-1]["name"] == "all four together"
    assert all(0 < row["median_ms"] <= row["p95_ms"] for row in rows)
    assert all(row["answered"] == 1 for row in rows)


def test_bench_fails_when_a_module_cannot_be_loaded(
    run: Run, modules: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    del modules["drift_monitor"]
    done = run("slm", "bench")
    assert done.exit_code == 1
    assert "drift_monitor: KeyError" in done.stderr


def test_status_shows_every_module(run: Run, modules: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    good = modules["context_tracker"].behave
    modules["context_tracker"].behave = lambda item: None if item == "hello there" else good(item)
    done = run("slm", "status", "--once", "--text", "hello there", *PATIENTLY)
    assert done.exit_code == 0, done.output
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line.strip()}
    assert set(MODULES) <= set(lines)
    assert "ready" in lines["research_classifier"]
    assert "nonsense" in lines["context_tracker"]
    assert "MB in memory" in done.stdout
    assert modules["personality_guard"].seen[-1] == "hello there"
    plain = json.loads(run("slm", "status", "--json").stdout)
    assert {one["module"] for one in plain} == set(MODULES)


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    """A small pack of the context tracker."""
    folder = tmp_path / "pack"
    save_pack(folder, "context_tracker", "9", metrics={"f1": 0.91})
    return folder


def test_versions_lists_the_shipped_one_and_those_registered(
    run: Run, pack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("mlx_companion.slm.packs.packaged", lambda name: pack)
    with Store() as store:
        registry = SLMRegistry(store, shipped=lambda name: pack)
        version = registry.register_version("context_tracker", pack, {"f1": 0.5})
        registry.activate(version.id, "better")
    lines = run("slm", "versions", "context_tracker").stdout.splitlines()
    assert "shipped" in lines[1]
    assert "f1 0.91" in lines[1]
    assert lines[2].split()[:2] == ["*", version.id.removeprefix("context_tracker-")]
    assert "f1 0.5" in lines[2]
    plain = json.loads(run("slm", "versions", "--json").stdout)
    assert set(plain) == set(MODULES)
    assert [one["id"] for one in plain["context_tracker"]] == ["shipped", version.id]


def test_run_takes_the_version_in_use(
    run: Run, pack: Path, modules: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with Store() as store:
        registry = SLMRegistry(store, shipped=lambda name: pack)
        version = registry.register_version("context_tracker", pack)
        registry.activate(version.id, "better")
    taken: list[Any] = []
    packaged = SLMFactory._packaged

    def note(self: SLMFactory, name: str) -> Any:
        taken.append(self._packs)
        return packaged(self, name)

    monkeypatch.setattr(SLMFactory, "_packaged", note)
    source = write(tmp_path / "x.jsonl", [{"text": "hi"}])
    words = ("slm", "run", "context_tracker", "--in", source, "--out", tmp_path / "y.jsonl")
    assert run(*words).exit_code == 0
    assert load_pack(taken[0]["context_tracker"]).version == "9"


def test_status_shows_the_companion_that_runs(
    run: Run, modules: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    with Store() as store, world.companion(store) as companion:
        companion.chat_sync("hello there")
        done = run("slm", "status", "--once")
        assert done.exit_code == 0, done.output
        lines = {line.split()[0]: line for line in done.stdout.splitlines() if line.strip()}
        assert set(MODULES) <= set(lines)
        assert f"companion v0001, process {os.getpid()}, " in done.stdout
        assert lines["drift_monitor"].split()[-1] == "ok"
        plain = json.loads(run("slm", "status", "--json").stdout)
        assert {one["module"]: one["counts"] for one in plain} == {
            name: {"ok": 1} for name in MODULES
        }
        assert modules["personality_guard"].seen == []
        assert "companion" not in run("slm", "status", "--once", "--own", *PATIENTLY).stdout
        assert modules["personality_guard"].seen != []
    assert "companion" not in run("slm", "status", "--once").stdout


def test_status_ends_with_the_companion_that_it_shows(
    run: Run, modules: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store() as store:
        companion = world.companion(store)
        companion.chat_sync("hello there")
        monkeypatch.setattr("time.sleep", lambda seconds: companion.close())
        done = run("slm", "status")
        assert done.exit_code == 0, done.output
        assert "the companion has ended" in done.stderr
