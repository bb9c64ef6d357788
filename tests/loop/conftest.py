"""Worlds of tiny models (see `loop_world.py`), before and after a first round that was deployed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from loop_world import TALKATIVE, build, one_round

from mlx_companion.loop import RoundResult
from mlx_companion.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty store."""
    with Store(tmp_path / "companion.db") as opened:
        yield opened


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world before its first round. Copy it before writing."""
    folder = tmp_path_factory.mktemp("fresh")
    build(folder, ending=TALKATIVE)
    return folder


@pytest.fixture(scope="session")
def finished(fresh: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RoundResult]:
    """A world after one round that was deployed, and that round. Copy it before writing."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(fresh, folder, dirs_exist_ok=True)
    return folder, one_round(folder)


@pytest.fixture
def world(fresh: Path, finished: tuple[Path, RoundResult], tmp_path: Path) -> Path:
    """A world before its first round, its thresholds measured, to do anything with."""
    shutil.copytree(fresh, tmp_path / "world")
    with (
        Store(finished[0] / "companion.db") as measured,
        Store(tmp_path / "world" / "companion.db") as store,
    ):
        for key, value in measured.settings.all().items():
            store.settings.set(key, value)
    return tmp_path / "world"


@pytest.fixture
def deployed(finished: tuple[Path, RoundResult], tmp_path: Path) -> Path:
    """A world after its first round, to do anything with."""
    return shutil.copytree(finished[0], tmp_path / "deployed")
