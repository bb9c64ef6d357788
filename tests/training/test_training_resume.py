"""A run that is killed again and again ends bit for bit like one that is not."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest


def start(script: str, folder: Path, repository: Path) -> subprocess.Popen[bytes]:
    folder.mkdir(exist_ok=True)
    env = {**os.environ, "PYTHONPATH": str(repository)}
    return subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name(script)), str(folder)], env=env
    )


def finish(script: str, folder: Path, repository: Path) -> None:
    assert start(script, folder, repository).wait(timeout=120) == 0


def log(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    timed = ("seconds", "peak_mb")
    return [{k: v for k, v in json.loads(line).items() if k not in timed} for line in lines]


def wait_for_lines(process: subprocess.Popen[bytes], folder: Path, count: int) -> None:
    """Until the run has logged so many lines, or ended."""
    path = folder / "metrics.jsonl"
    while process.poll() is None:
        if path.exists() and len(path.read_bytes().splitlines()) >= count:
            return
        time.sleep(0.001)


@pytest.mark.parametrize(
    ("script", "kills"), [("resumable_run.py", 20), ("resumable_packed.py", 3)]
)
def test_killed_at_random_moments(
    script: str, kills: int, tmp_path: Path, repository: Path
) -> None:
    rng = random.Random(0)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(script, whole, repository)
    expected = log(whole)
    seen, deaths = 0, 0
    for _ in range(kills):
        process = start(script, killed, repository)
        wait_for_lines(process, killed, seen + rng.randint(2, len(expected) // (kills + 1)))
        time.sleep(rng.random() * 0.02)
        process.send_signal(signal.SIGKILL)
        deaths += process.wait() == -signal.SIGKILL
        seen = len((killed / "metrics.jsonl").read_bytes().splitlines())
    finish(script, killed, repository)
    # Kills that came too late would show nothing.
    assert deaths == kills
    assert log(killed) == expected
    ours, theirs = np.load(killed / "done.npz"), np.load(whole / "done.npz")
    assert sorted(ours.files) == sorted(theirs.files)
    assert all(ours[name].tobytes() == theirs[name].tobytes() for name in ours.files)
    leftovers = [p.name for p in (killed / "checkpoints").iterdir()]
    assert len([name for name in leftovers if name.startswith("step-")]) == 2
