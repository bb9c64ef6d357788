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
from patience import LONG, until


def start(script: str, folder: Path, repository: Path, *lines: int) -> subprocess.Popen[bytes]:
    folder.mkdir(exist_ok=True)
    env = {**os.environ, "PYTHONPATH": str(repository)}
    return subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name(script)), str(folder), *map(str, lines)],
        env=env,
    )


def finish(script: str, folder: Path, repository: Path) -> None:
    assert start(script, folder, repository).wait(timeout=LONG) == 0


def log(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    timed = ("seconds", "peak_mb")
    return [{k: v for k, v in json.loads(line).items() if k not in timed} for line in lines]


def wait_for_lines(process: subprocess.Popen[bytes], folder: Path, count: int) -> None:
    path = folder / "metrics.jsonl"

    def there() -> bool:
        assert process.poll() is None
        return path.exists() and len(path.read_bytes().splitlines()) >= count

    until(there)


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
    seen, stretch = 0, len(expected) // (kills + 1)
    for _ in range(kills):
        # It stays after a stretch, so that it cannot end before it is killed.
        process = start(script, killed, repository, seen + stretch)
        wait_for_lines(process, killed, seen + rng.randint(2, stretch))
        time.sleep(rng.random() * 0.02)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        seen = len((killed / "metrics.jsonl").read_bytes().splitlines())
    finish(script, killed, repository)
    assert log(killed) == expected
    ours, theirs = np.load(killed / "done.npz"), np.load(whole / "done.npz")
    assert sorted(ours.files) == sorted(theirs.files)
    assert all(ours[name].tobytes() == theirs[name].tobytes() for name in ours.files)
    leftovers = [p.name for p in (killed / "checkpoints").iterdir()]
    assert len([name for name in leftovers if name.startswith("step-")]) == 2
