"""Usable cores: affinity, hyper-threads and container quotas, on recorded-like trees."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mlx_companion.runtime import cores
from mlx_companion.runtime.cores import allowed_cpus, available_cores, cpu_quota, physical_cores


def siblings(root: Path, rows: dict[int, str]) -> Path:
    for cpu, text in rows.items():
        folder = root / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(text + "\n")
    return root


def test_hyper_threads_count_once(tmp_path: Path) -> None:
    root = siblings(tmp_path, {0: "0,4", 1: "1,5", 4: "0,4", 5: "1,5"})
    assert physical_cores([0, 1, 4, 5], root) == 2
    assert physical_cores([0, 4], root) == 1
    assert physical_cores([0, 1], root) == 2


def test_without_topology_every_cpu_counts(tmp_path: Path) -> None:
    assert physical_cores([0, 1, 2], tmp_path) == 3
    assert physical_cores([], tmp_path) == 1


@pytest.mark.parametrize(
    ("text", "quota"),
    [("max 100000\n", None), ("150000 100000\n", 1.5), ("50000 100000\n", 0.5), ("junk", None)],
)
def test_control_group_version_2(tmp_path: Path, text: str, quota: float | None) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert cpu_quota(tmp_path) == quota


@pytest.mark.parametrize(("text", "quota"), [("-1\n", None), ("300000\n", 3.0)])
def test_control_group_version_1(tmp_path: Path, text: str, quota: float | None) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(text)
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert cpu_quota(tmp_path) == quota


@pytest.mark.parametrize(("quota", "expected"), [(None, 8), (2.5, 3), (0.2, 1), (64.0, 8)])
def test_a_quota_caps_the_cores(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, expected: int
) -> None:
    monkeypatch.setattr(cores, "cpu_quota", lambda: quota)
    monkeypatch.setattr(cores, "physical_cores", lambda cpus: 8)
    assert available_cores() == expected


def test_affinity_is_respected() -> None:
    assert 1 <= available_cores() <= len(allowed_cpus()) <= (os.cpu_count() or 1)
