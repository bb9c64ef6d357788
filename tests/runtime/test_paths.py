"""The data and cache folders follow the environment, then the platform's custom."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest

from mlx_companion.errors import ConfigError
from mlx_companion.runtime.paths import cache_dir, data_dir


@pytest.mark.parametrize(
    ("function", "variable"),
    [(data_dir, "MLX_COMPANION_HOME"), (cache_dir, "MLX_COMPANION_CACHE")],
)
def test_the_environment_decides(function, variable, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv(variable, str(tmp_path / "a" / "b"))
    assert function() == tmp_path / "a" / "b"
    assert (tmp_path / "a" / "b").is_dir()


@pytest.mark.parametrize(
    ("platform", "data", "cache"),
    [
        ("linux", ".local/share/mlx-companion", ".cache/mlx-companion"),
        ("darwin", "Library/Application Support/mlx-companion", "Library/Caches/mlx-companion"),
    ],
)
def test_platform_folders(platform, data, cache, tmp_path, monkeypatch) -> None:
    for name in ("MLX_COMPANION_HOME", "MLX_COMPANION_CACHE", "XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", platform)
    assert data_dir() == tmp_path / data
    assert cache_dir() == tmp_path / cache


def test_xdg_folders_count_when_absolute(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("MLX_COMPANION_CACHE")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "mlx-companion"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_dir() == tmp_path / ".cache" / "mlx-companion"


def test_only_the_owner_reads_the_data(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("MLX_COMPANION_HOME", str(tmp_path / "home"))
    assert stat.S_IMODE(data_dir().stat().st_mode) == 0o700


def test_a_file_in_the_way_is_explained(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MLX_COMPANION_HOME", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match="set MLX_COMPANION_HOME to a folder"):
        data_dir()
