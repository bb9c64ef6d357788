"""Checkpoints: round trips, damage, other runs, pruning, a full disk."""

from __future__ import annotations

import errno
import json
import logging
import os
from pathlib import Path

import mlx.core as mx
import pytest
from training_models import same

from mlx_companion.errors import CheckpointError, DiskFullError
from mlx_companion.training.checkpoint import STATE_FILE, CheckpointFolder

ARRAYS = {
    "parameters": {"a.lora_a": mx.arange(6.0).reshape(2, 3), "half": mx.ones(3, mx.bfloat16)},
    "optimizer": {"step": mx.array(7, mx.uint64), "a.m": mx.full((2, 3), 1 / 3)},
}


def folder(tmp_path: Path, run_hash: str = "run", keep_last: int = 2) -> CheckpointFolder:
    return CheckpointFolder(tmp_path / "checkpoints", run_hash, keep_last)


def filled(tmp_path: Path) -> CheckpointFolder:
    """Checkpoints of steps 1 and 2."""
    checkpoints = folder(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, ARRAYS, {"step": step, "loss": 0.1 + step / 3})
    return checkpoints


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    filled(tmp_path)
    found = folder(tmp_path).load_latest()
    assert found is not None
    assert found.state == {"step": 2, "loss": 0.1 + 2 / 3}
    for group, values in ARRAYS.items():
        got = found.arrays[group]
        assert {n: v.dtype for n, v in got.items()} == {n: v.dtype for n, v in values.items()}
        assert all(mx.array_equal(got[name], value) for name, value in values.items())


def test_nothing_saved_is_nothing_found(tmp_path: Path) -> None:
    assert folder(tmp_path).load_latest() is None
    assert folder(tmp_path).load_best() is None


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [truncate, flip, empty, Path.unlink])
@pytest.mark.parametrize("name", ["parameters.safetensors", "optimizer.safetensors", STATE_FILE])
def test_a_damaged_newest_one_is_skipped_with_a_warning(
    name: str, damage: object, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    newest = filled(tmp_path).steps()[-1]
    damage(newest / name)  # type: ignore[operator]
    with caplog.at_level(logging.WARNING, "mlx_companion"):
        found = folder(tmp_path).load_latest()
    assert found is not None
    assert found.state["step"] == 1
    assert "damaged" in caplog.text
    assert [path.name for path in folder(tmp_path).steps()] == ["step-00000001"]


def test_when_all_are_damaged_there_is_none(tmp_path: Path) -> None:
    for path in filled(tmp_path).steps():
        flip(path / STATE_FILE)
    assert folder(tmp_path).load_latest() is None


def test_a_changed_state_is_noticed(tmp_path: Path) -> None:
    path = filled(tmp_path).steps()[-1] / STATE_FILE
    body = json.loads(path.read_text())
    body["state"]["step"] = 3
    path.write_text(json.dumps(body))
    found = folder(tmp_path).load_latest()
    assert found is not None
    assert found.state["step"] == 1


def test_another_run_is_refused(tmp_path: Path) -> None:
    filled(tmp_path)
    with pytest.raises(CheckpointError, match=r"another run.*resume=False"):
        folder(tmp_path, "other").load_latest()


def test_the_last_n_stay(tmp_path: Path) -> None:
    checkpoints = folder(tmp_path, keep_last=3)
    for step in (5, 10, 15, 20, 100_000_000):
        checkpoints.save(step, ARRAYS, {})
    names = [path.name for path in checkpoints.steps()]
    assert names == ["step-00000015", "step-00000020", "step-100000000"]
    assert sorted(os.listdir(checkpoints.folder)) == sorted(names)


def test_the_best_is_kept_apart_and_checked(tmp_path: Path) -> None:
    checkpoints = filled(tmp_path)
    checkpoints.save_best(ARRAYS["parameters"], {"step": 1})
    best = checkpoints.load_best()
    assert best is not None
    assert same({"a": best["a.lora_a"]}, {"a": ARRAYS["parameters"]["a.lora_a"]})
    flip(checkpoints.folder / "best" / "parameters.safetensors")
    assert checkpoints.load_best() is None
    checkpoints.clear()
    assert os.listdir(checkpoints.folder) == []


@pytest.mark.parametrize("at", [0, 1])
def test_a_full_disk_leaves_the_last_good_one(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = filled(tmp_path)
    before = {p: p.read_bytes() for p in checkpoints.folder.rglob("*") if p.is_file()}
    write, calls = Path.write_bytes, 0

    def full(path: Path, data: bytes) -> int:
        nonlocal calls
        calls += 1
        if calls > at:
            write(path, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DiskFullError, match="no space left"):
        checkpoints.save(3, ARRAYS, {})
    monkeypatch.undo()
    assert {p: p.read_bytes() for p in checkpoints.folder.rglob("*") if p.is_file()} == before
    found = checkpoints.load_latest()
    assert found is not None
    assert found.state["step"] == 2
