"""`kill -9` at random moments inside every step, twenty times, while others write.

Each world is killed in five steps one after the other and then left to finish, so every kill
is followed by a run that goes on where it was. What must hold after each kill: the database
passes its integrity check, nothing the person said is lost, and the active version loads.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import loop_world
import numpy as np
import pytest
from loop_world import TALKATIVE, TAUGHT, build, settings

from mlx_companion.loop import ServedModel
from mlx_companion.runtime.paths import HOME_VARIABLE
from mlx_companion.store import Store

STEPS = ("collect", "generate", "judge", "mix", "train", "gate", "deploy", "report")
# Five kills in each of four worlds; every step at least twice, the longest more often.
PLANS = (
    ("collect", "generate", "train", "gate", "deploy"),
    ("generate", "judge", "train", "gate", "report"),
    ("collect", "judge", "mix", "train", "deploy"),
    ("generate", "mix", "train", "gate", "report"),
)
WAIT = 600.0


@dataclass
class Writer:
    """Keeps adding interactions to a store from a thread of its own, as a chat would."""

    folder: Path
    written: int = 0
    _over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Writer:
        self._thread = threading.Thread(target=self._write)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _write(self) -> None:
        with Store(self.folder / "companion.db") as store:
            while not self._over.wait(0.02):
                told = store.interactions.add(f"Is it {self.written} yet?", "Not yet.")
                store.feedback.add(told.id, "up")
                self.written += 1


def run(folder: Path, *options: str) -> subprocess.Popen[str]:
    """`python tests/loop_world.py FOLDER`, which tells each step as it begins."""
    changes = [f"{key}={json.dumps(value)}" for key, value in TAUGHT.items()]
    # Numbers of threads that fit beside another one of these on two cores.
    limits = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, loop_world.__file__, str(folder), *options, *changes],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            **limits,
            HOME_VARIABLE: str(folder / "home"),
            "PYTHONPATH": str(Path(loop_world.__file__).parents[1]),
        },
    )


def timed(folder: Path) -> dict[str, float]:
    """A whole round: how long each step took (seconds)."""
    with run(folder) as process:
        assert process.stdout is not None
        began = [(line.split()[1], time.monotonic()) for line in process.stdout]
        assert process.stderr is not None
        assert process.wait(WAIT) == 0, process.stderr.read()
    assert [name for name, _ in began] == [*STEPS, "deploy"]
    return {name: then - now for (name, now), (_, then) in pairwise(began)}


def killed(folder: Path, step: str, after: float) -> None:
    """Run and kill -9 so many seconds after `step` was let begin."""
    with run(folder, "--wait") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for line in process.stdout:
            process.stdin.write("go on\n")
            process.stdin.flush()
            if line == f"step {step}\n":
                time.sleep(after)
                process.kill()
                break
        process.wait(WAIT)
        assert process.stderr is not None
        assert process.returncode == -signal.SIGKILL, process.stderr.read()


def check(folder: Path, told: tuple[int, int]) -> None:
    """What must hold after a kill; `told` counts interactions and feedback."""
    database = sqlite3.connect(folder / "companion.db")
    assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert database.execute("PRAGMA foreign_key_check").fetchall() == []
    database.close()
    with Store(folder / "companion.db") as store:
        assert (store.interactions.count(), store.feedback.count()) == told
        companion = ServedModel.open(store, settings(folder))
        assert companion.version_id == store.versions.active().id
        if companion.version_id != "v0001":
            assert companion.check_adapter_acts() > 0


@pytest.fixture(scope="module")
def durations(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """How long each step takes when two of these processes run at once."""
    folders = [tmp_path_factory.mktemp("timed") for _ in range(2)]
    for folder in folders:
        build(folder, ending=TALKATIVE)
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(timed, folders))
    return {step: float(np.mean([each[step] for each in both])) for step in STEPS}


def survive(folder: Path, plan: tuple[str, ...], seconds: dict[str, float], seed: int) -> None:
    """One world through five kills and to the end of its round."""
    rng = random.Random(seed)
    with Store(folder / "companion.db") as store:
        people, votes = store.interactions.count(), store.feedback.count()
    for number, step in enumerate(plan):
        # Not up to 1: the step may be quicker this time, and over by then.
        moment = rng.uniform(0.0, 0.7) * seconds[step]
        # Others write during the second and the fourth kill.
        writer = Writer(folder)
        with writer if number % 2 else nullcontext():
            killed(folder, step, moment)
        people, votes = people + writer.written, votes + writer.written
        check(folder, (people, votes))
    with run(folder) as process:
        said, problems = process.communicate(timeout=WAIT)
        assert process.returncode == 0, problems
        assert said.splitlines()[-1].startswith("outcome ")
    check(folder, (people, votes))


def test_twenty_kills_lose_nothing_and_every_round_is_finished(
    durations: dict[str, float], tmp_path: Path
) -> None:
    build(tmp_path / "world-0", ending=TALKATIVE)
    worlds = [tmp_path / "world-0"]
    worlds += [shutil.copytree(worlds[0], tmp_path / f"world-{n}") for n in (1, 2, 3)]
    with ThreadPoolExecutor(2) as pool:
        futures = [
            pool.submit(survive, folder, plan, durations, seed)
            for seed, (folder, plan) in enumerate(zip(worlds, PLANS, strict=True))
        ]
        for future in futures:
            future.result()
    for folder in worlds:
        with Store(folder / "companion.db") as store:
            done = store.rounds.all()
            # A round that was over just before its kill is followed by another one.
            assert len(done) in (1, 2)
            assert done[0].outcome == "deployed"
            assert store.rounds.unfinished() is None
            for each in done:
                assert all(step.done for step in store.rounds.steps(each.id).values())
            assert [version.round_id for version in store.versions.all()][:2] == [None, done[0].id]
