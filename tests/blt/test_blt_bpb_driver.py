"""The driver of `blt_bpb`: in which order the models are trained, and how many side by side."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from benchmarks import blt_bpb
from benchmarks.bpb_models import MODELS, Workplace


class Process:
    """A training that takes some turns of the driver's clock."""

    def __init__(self, turns: int, code: int = 0) -> None:
        self.turns, self.code = turns, code
        self.returncode: int | None = None

    def poll(self) -> int | None:
        self.turns -= 1
        if self.turns < 0:
            self.returncode = self.code
        return self.returncode


class World:
    """Stands in for processes and clock; notes what is begun, on which core, beside what."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, turns: dict[str, int], fails: str = ""):
        self.begun: list[tuple[str, int, set[str]]] = []
        self.processes: dict[str, Process] = {}
        self.turns, self.fails = turns, fails
        monkeypatch.setattr(blt_bpb, "_start", self.start)
        monkeypatch.setattr(blt_bpb.time, "sleep", lambda _: None)

    def start(self, name: str, core: int, *_: Any) -> Process:
        beside = {n for n, process in self.processes.items() if process.returncode is None}
        self.begun.append((name, core, beside))
        self.processes[name] = Process(self.turns.get(name, 1), int(name == self.fails))
        return self.processes[name]


def run(jobs: int) -> None:
    options = argparse.Namespace(jobs=jobs)
    blt_bpb._train_all(Workplace(Path("data"), Path("out")), options)


@pytest.mark.parametrize("jobs", [1, 2, 3, 8])
@pytest.mark.parametrize("slow", ["entropy", "token", "blt-space"])
def test_every_model_once_and_no_more_than_jobs_at_a_time(
    jobs: int, slow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(monkeypatch, {slow: 9})
    run(jobs)
    names = [name for name, _, _ in world.begun]
    assert sorted(names) == sorted(["entropy", *MODELS])
    assert all(len(beside) < jobs for _, _, beside in world.begun)
    assert all(process.returncode == 0 for process in world.processes.values())
    # The model that reads the entropy model's boundaries waits for it.
    assert next("entropy" not in beside for name, _, beside in world.begun if name == "blt-entropy")
    assert names.index("entropy") < names.index("blt-entropy")


def test_models_side_by_side_have_cores_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, {"token": 5})
    run(2)
    cores = {name: core for name, core, _ in world.begun}
    for name, core, beside in world.begun:
        assert core in (0, 1)
        assert core not in {cores[other] for other in beside}, name


def test_a_training_that_fails_ends_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    World(monkeypatch, {}, fails="token")
    with pytest.raises(SystemExit, match="token failed"):
        run(2)
