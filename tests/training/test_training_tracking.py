"""The book of runs and the trackers: what a run leaves there, and that they never harm it."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sqlite3
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from patience import LONG
from tiny import tiny_llama

from mlx_companion.errors import (
    ConfigError,
    DataError,
    DiskFullError,
    MissingExtraError,
    Stopped,
    TrainingError,
)
from mlx_companion.loop.run_page import write_curves
from mlx_companion.loop.run_view import compared
from mlx_companion.lora import LoraConfig
from mlx_companion.models.load import LanguageModel, load
from mlx_companion.runtime.paths import data_dir
from mlx_companion.runtime.stop import StopSwitch
from mlx_companion.text import Message, Sample
from mlx_companion.training import Callback, StepInfo, TrainConfig, TrainResult, finetune
from mlx_companion.training.run_book import FILE, RunBook, run_id
from mlx_companion.training.tracking import LocalTracker, by_step, flattened, trackers_for

SETTINGS: dict[str, Any] = {"epochs": 2, "batch_tokens": 128, "lr": 1e-2, "save_every": 2}
SAMPLES = [
    Sample((Message("user", f"say {i}"), Message("assistant", f"the river {i} times")))
    for i in range(16)
]


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return load(tiny_llama(tmp_path_factory.mktemp("model")))


def run(lm: LanguageModel, out: Path, **options: Any) -> TrainResult:
    settings = TrainConfig(**(SETTINGS | options.pop("settings", {})))
    options = {"valid": SAMPLES[:3], "progress": False, "train": settings} | options
    return finetune(lm, SAMPLES[3:], out, lora=LoraConfig(rank=2), **options)


def logged(out: Path, event: str, name: str) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line[name]) for line in lines if line["event"] == event]


class StopAt(Callback):
    def __init__(self, step: int, switch: StopSwitch) -> None:
        self.step, self.switch = step, switch

    def on_step(self, step: StepInfo) -> None:
        if step.step == self.step:
            self.switch.request("enough")


def test_a_run_is_noted_as_its_own_metrics_file_has_it(lm: LanguageModel, tmp_path: Path) -> None:
    result = run(lm, tmp_path / "chats")
    book = RunBook()
    (entry,) = book.all()
    assert entry.name == "chats"
    assert entry.status == "finished"
    assert (entry.step, entry.total_steps) == (result.steps, result.steps)
    assert entry.settings["train"]["lr"] == 1e-2
    assert entry.settings["lora"]["rank"] == 2
    assert entry.about["base_sha256"] == lm.base_sha256
    assert entry.summary["valid_after"] == result.valid_after
    assert book.series(entry.id, "loss") == logged(tmp_path / "chats", "step", "loss")
    assert book.series(entry.id, "valid_loss") == logged(tmp_path / "chats", "eval", "loss")
    assert {"lr", "gradient_norm", "seconds"} <= set(book.names(entry.id))


def test_a_stopped_run_says_so_and_goes_on_as_the_same_entry(
    lm: LanguageModel, tmp_path: Path
) -> None:
    out, switch = tmp_path / "run", StopSwitch(tmp_path / "stop")
    with pytest.raises(Stopped):
        run(lm, out, stop=switch, callbacks=[StopAt(3, switch)])
    (entry,) = RunBook().all()
    assert (entry.status, entry.step) == ("stopped", 3)
    run(lm, out)
    (again,) = RunBook().all()
    assert (again.id, again.status, again.started) == (entry.id, "finished", entry.started)
    assert RunBook().series(again.id, "loss") == logged(out, "step", "loss")


def test_readings_behind_a_checkpoint_go_when_a_run_goes_back(tmp_path: Path) -> None:
    book = RunBook(tmp_path / FILE)
    about: dict[str, Any] = {"settings": {}, "about": {}, "total_steps": 9}
    book.begin("abc", tmp_path, step=0, **about)
    book.note("abc", [("loss", step, 1.0) for step in range(1, 8)], 7)
    book.begin("abc", tmp_path, step=4, **about)
    assert [step for step, _ in book.series("abc", "loss")] == [1, 2, 3, 4]


def test_an_entry_can_be_made_again_from_the_folder(lm: LanguageModel, tmp_path: Path) -> None:
    run(lm, tmp_path / "run")
    (before,) = RunBook().all()
    series = {name: RunBook().series(before.id, name) for name in RunBook().names(before.id)}
    (data_dir() / FILE).unlink()
    after = RunBook().add_folder(tmp_path / "run")
    assert (after.id, after.status, after.summary["steps"]) == (before.id, "finished", before.step)
    assert after.settings == before.settings
    assert {name: RunBook().series(after.id, name) for name in series} == series
    with pytest.raises(DataError, match=r"run\.json"):
        RunBook().add_folder(tmp_path)


def _hold(path: str, ready: Any) -> None:
    RunBook(path).begin("dead", "x", step=0, total_steps=5, settings={}, about={})
    ready.set()
    time.sleep(100_000)


def test_a_killed_run_is_interrupted(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_hold, args=(str(tmp_path / FILE), ready))
    process.start()
    assert ready.wait(LONG)
    assert RunBook(tmp_path / FILE).get("dead").status == "running"
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert RunBook(tmp_path / FILE).get("dead").status == "interrupted"


def _write_many(path: str, run: str) -> None:
    book = RunBook(path)
    book.begin(run, run, step=0, total_steps=50, settings={}, about={})
    for step in range(1, 51):
        book.note(run, [("loss", step, float(step))], step)


def test_processes_write_at_the_same_time(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    path = str(tmp_path / FILE)
    workers = [context.Process(target=_write_many, args=(path, f"run{i}")) for i in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    book = RunBook(path)
    assert len(book.all()) == 3
    assert all(len(book.series(f"run{i}", "loss")) == 50 for i in range(3))


def test_runs_are_found_by_id_name_folder_or_last(tmp_path: Path) -> None:
    book = RunBook(tmp_path / FILE)
    for name in ("one", "two"):
        folder = tmp_path / name
        book.begin(run_id(folder, "h"), folder, step=0, total_steps=1, settings={}, about={})
        time.sleep(0.01)
    one, two = run_id(tmp_path / "one", "h"), run_id(tmp_path / "two", "h")
    assert book.get("last").id == two
    assert book.get(str(tmp_path / "one")).id == book.get("one").id == book.get(one[:5]).id == one
    with pytest.raises(DataError, match="no run 'three'"):
        book.get("three")
    with pytest.raises(DataError, match="no run ''"):
        book.get("")
    book.begin("twin", tmp_path / "deep" / "one", step=0, total_steps=1, settings={}, about={})
    with pytest.raises(DataError, match="means 2 runs"):
        book.get("one")
    book.remove("twin")
    assert book.get("one").id == one


def test_a_damaged_or_newer_book_is_named_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / FILE
    path.write_bytes(b"no database at all" * 300)
    with pytest.raises(TrainingError, match="damaged"):
        RunBook(path)
    assert path.read_bytes().startswith(b"no database")
    newer = tmp_path / "newer.sqlite"
    with sqlite3.connect(newer) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(TrainingError, match="version 99"):
        RunBook(newer)


def test_a_tracker_that_fails_does_not_end_the_run(
    lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise TrainingError("the book is gone")

    monkeypatch.setattr(RunBook, "note", broken)
    assert run(lm, tmp_path / "run").steps > 0


def test_a_full_disk_is_told(lm: LanguageModel, tmp_path: Path, monkeypatch: Any) -> None:
    def full(*_: Any) -> None:
        raise DiskFullError("no space left")

    monkeypatch.setattr(RunBook, "note", full)
    with pytest.raises(DiskFullError):
        run(lm, tmp_path / "run")


def test_not_a_number_is_kept_as_nothing(tmp_path: Path) -> None:
    book = RunBook(tmp_path / FILE)
    book.begin("a", tmp_path, step=0, total_steps=2, settings={}, about={})
    book.note("a", [("loss", 1, float("nan")), ("loss", 2, 0.5)], 2)
    book.end("a", "finished", {"valid_after": float("inf")})
    assert book.series("a", "loss") == [(1, None), (2, 0.5)]
    assert book.get("a").summary == {"valid_after": None}
    assert by_step([("loss", 1, None), ("loss", 2, 0.5), ("lr", 2, 0.1)]) == {
        2: {"loss": 0.5, "lr": 0.1}
    }


def test_unknown_and_missing_trackers_are_refused_before_anything_runs(
    lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="did you mean 'mlflow'"):
        run(lm, tmp_path / "run", track=("mlfow",))
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtraError, match=r"mlx-companion\[wandb\]"):
        run(lm, tmp_path / "run", track=("local", "wandb"))
    assert not (tmp_path / "run" / "checkpoints").exists()


class Recorder:
    """Stands in for a tracking program: every call by name."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *a, **k: self.calls.append((name, a, k))

    def of(self, name: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        return [(a, k) for called, a, k in self.calls if called == name]


def test_mlflow_gets_settings_every_step_and_the_end(
    lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = Recorder()
    monkeypatch.setitem(
        sys.modules,
        "mlflow",
        SimpleNamespace(
            **{
                name: getattr(program, name)
                for name in ("start_run", "log_params", "log_metrics", "end_run")
            }
        ),
    )
    result = run(lm, tmp_path / "run", track=("mlflow",))
    (params,) = [a[0] for a, _ in program.of("log_params")]
    assert params["train.lr"] == "0.01"
    steps = {k["step"]: a[0] for a, k in program.of("log_metrics") if "step" in k}
    assert [steps[s]["loss"] for s, _ in logged(tmp_path / "run", "step", "loss")] == [
        loss for _, loss in logged(tmp_path / "run", "step", "loss")
    ]
    assert any(a[0].get("final_steps") == result.steps for a, _ in program.of("log_metrics"))
    assert program.of("end_run") == [(("FINISHED",), {})]
    assert RunBook().all() == []


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_wandb_and_trackio_get_the_same(
    name: str, lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = Recorder()
    functions = {one: getattr(program, one) for one in ("init", "log", "finish")}
    monkeypatch.setitem(sys.modules, name, SimpleNamespace(**functions))
    run(lm, tmp_path / "run", track=(name,))
    ((_, began),) = program.of("init")
    assert began["config"]["lora.rank"] == 2
    steps = [k["step"] for _, k in program.of("log")]
    assert steps == sorted(steps)
    assert len(program.of("finish")) == 1


def test_a_tracker_that_never_began_ends_nothing(tmp_path: Path) -> None:
    (tracker,) = trackers_for(("local", "local"), tmp_path, "h", {}, {})
    assert isinstance(tracker, LocalTracker)
    tracker.on_close()
    assert RunBook().all() == []


def test_comparing_shows_what_differs(lm: LanguageModel, tmp_path: Path) -> None:
    run(lm, tmp_path / "a")
    run(lm, tmp_path / "b", settings={"lr": 1e-3})
    book = RunBook()
    found = compared([book.get("a"), book.get("b")])
    assert found["settings"] == {"train.lr": [1e-2, 1e-3]}
    assert found["figures"]["steps"] == [book.get("a").step] * 2
    assert found["figures"]["valid_after"][0] != found["figures"]["valid_after"][1]
    page, numbers = write_curves(tmp_path / "curves.html", book, [book.get("a"), book.get("b")])
    listed = json.loads(numbers.read_text())
    assert [one["name"] for one in listed] == ["a", "b"]
    assert listed[0]["series"]["loss"] == [list(p) for p in logged(tmp_path / "a", "step", "loss")]
    assert page.read_text().count('class="plot"') == 4
    with pytest.raises(DataError, match="1 to 6"):
        write_curves(tmp_path / "x.html", book, [])
    assert flattened({"a": {"b": 1, "c": {}}, "d": 2}) == {"a.b": 1, "a.c": {}, "d": 2}
