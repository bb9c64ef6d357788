"""What the doctor says: true figures, and a sentence for each thing that is wrong."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mlx_companion.loop import doctor
from mlx_companion.loop.switch import throw
from mlx_companion.runtime.paths import cache_dir, data_dir
from mlx_companion.store import Store
from mlx_companion.store.values import dump_json


@pytest.fixture(autouse=True)
def a_fast_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """`tests/runtime` measures the speed; these tests must not depend on a busy machine."""
    monkeypatch.setattr(doctor, "measure_gflops", lambda: 200.0)


def test_the_facts_are_true() -> None:
    found = doctor.examine()
    assert found["python"] == platform.python_version()
    assert found["packages"]["mlx"] == metadata.version("mlx")
    assert found["folders"]["data"]["path"] == str(data_dir())
    free = shutil.disk_usage(cache_dir()).free / 1e6
    assert found["folders"]["cache"]["free_mb"] == pytest.approx(free, rel=0.05)
    assert found["hardware"]["cores"] >= 1
    assert found["settings"]["batch_tokens"] >= 512
    assert found["blas"]["matmul_gflops"] == 200.0
    assert found["problems"] == []
    assert json.loads(dump_json(found)) == json.loads(json.dumps(found))


def test_looking_makes_no_database() -> None:
    found = doctor.examine()["database"]
    assert found == {"path": str(data_dir() / "companion.db"), "exists": False, "intact": None}
    assert not (data_dir() / "companion.db").exists()


def test_the_database_is_counted() -> None:
    with Store() as store:
        one = store.interactions.add("hello", "there")
        store.feedback.add(one.id, "up")
        store.feedback.add(one.id, "edit", "better")
        store.versions.ensure_base("0" * 64, "tiny")
        store.rounds.begin(seed=1)
    found = doctor.examine()
    assert found["database"]["intact"] is True
    assert found["problems"] == []
    expected = {
        "interactions": 1, "good": 1, "bad": 0, "edited": 1, "samples": 0, "rounds": 1,
        "unfinished_round": 1, "versions": 1, "active_version": "v0001",
    }  # fmt: skip
    assert {name: found["database"][name] for name in expected} == expected
    assert found["database"]["disk_mb"] > 0.1


def test_a_damaged_database_is_a_problem() -> None:
    with Store() as store:
        store.interactions.add("hello", "there")
    path = data_dir() / "companion.db"
    path.write_bytes(b"no database at all" * 1000)
    found = doctor.examine()
    assert found["database"]["intact"] is False
    assert len(found["problems"]) == 1
    assert str(path) in found["problems"][0]


def test_a_changed_adapter_of_the_active_version_is_a_problem() -> None:
    with Store() as store:
        weights = store.adapters_dir / "one" / "adapters.safetensors"
        weights.parent.mkdir()
        weights.write_bytes(b"weights")
        sha256 = hashlib.sha256(b"weights").hexdigest()
        version = store.versions.create(adapter_path=weights.parent, adapter_sha256=sha256)
        store.versions.activate(version.id, "test")
    assert doctor.examine()["problems"] == []
    weights.write_bytes(b"other weights")
    found = doctor.examine()
    assert found["database"]["intact"] is True
    assert "is damaged" in found["problems"][0]


def test_a_thrown_switch_a_full_disk_and_a_slow_blas_are_problems(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    throw()
    monkeypatch.setattr(doctor, "measure_gflops", lambda: 7.5)
    usage = shutil.disk_usage(data_dir())._replace(free=5_000_000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    problems = "\n".join(doctor.examine()["problems"])
    assert "the kill switch is thrown" in problems
    assert "has only 5 MB free" in problems
    if doctor.examine()["device"]["kind"] == "cpu":
        assert "7.5 GFLOP/s" in problems


@pytest.mark.parametrize("problems", [[], ["this is broken; mend it so"]])
def test_people_read_what_was_found(problems: list[str], tmp_path: Path) -> None:
    found: dict[str, Any] = doctor.examine() | {"problems": problems}
    found["hardware"]["battery"] = {"percent": 71.0, "plugged": True}
    file = io.StringIO()
    doctor.print_examination(Console(file=file, width=200), found)
    text = file.getvalue()
    for expected in ("71 %", "200 GFLOP/s", str(data_dir()), metadata.version("mlx"), "float32"):
        assert expected in text
    assert (problems or ["No problem was found."])[0] in text
