"""What scripts share: options, the order of settings, and ends that are sentences."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mlx_companion.errors import ConfigError, DataError
from mlx_companion.runtime.script import needed, script_options, script_settings, script_work


@dataclass(frozen=True)
class Inner:
    size: int = 1
    rate: float = 0.5


@dataclass(frozen=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    name: str = "default"


def settings(*arguments: str, smoke: dict[str, object] | None = None) -> Outer:
    options = script_options("A script.\n\nMore.", out="runs/x").parse_args(arguments)
    return script_settings(Outer, options, smoke)


def test_later_settings_win(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("inner: {size: 2, rate: 0.25}\nname: file\n")
    smoke: dict[str, object] = {"inner.size": 3}
    assert settings() == Outer()
    assert settings("--config", str(file)) == Outer(Inner(2, 0.25), "file")
    assert settings("--config", str(file), smoke=smoke).inner.size == 2
    assert settings("--config", str(file), "--smoke", smoke=smoke).inner == Inner(3, 0.25)
    set_ = ["--set", "inner.size=4", "--set", "inner.rate=1e-4"]
    assert settings("--config", str(file), "--smoke", *set_, smoke=smoke).inner == Inner(4, 1e-4)


def test_a_script_may_bring_its_own_file(tmp_path: Path) -> None:
    file = tmp_path / "preset.yaml"
    file.write_text("name: preset\n")
    parser = script_options(None, out="runs/x", config=file)
    assert script_settings(Outer, parser.parse_args([])).name == "preset"


@pytest.mark.parametrize("wrong", ["inner.sise=2", "inner.size=two", "inner.size"])
def test_a_wrong_setting_is_told(wrong: str) -> None:
    with pytest.raises(ConfigError):
        settings("--set", wrong)


def test_help_shows_the_first_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        settings("--help")
    told = capsys.readouterr().out
    assert "A script." in told
    assert "More." not in told


def test_a_file_may_be_left_out_in_a_smoke_run_only() -> None:
    parser = script_options(None, out="runs/x")
    parser.add_argument("--held-out", type=Path)
    smoke = Path("smoke.jsonl")
    assert needed(parser.parse_args(["--smoke"]), "held_out", smoke) == smoke
    given = parser.parse_args(["--smoke", "--held-out", "mine.jsonl"])
    assert needed(given, "held_out", smoke) == Path("mine.jsonl")
    with pytest.raises(ConfigError, match="--held-out is missing"):
        needed(parser.parse_args([]), "held_out", smoke)


def test_an_error_of_ours_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"error: a\.jsonl:3: is empty"), script_work(tmp_path):
        raise DataError("is empty", path="a.jsonl", line=3)


def test_other_errors_are_not_hidden(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), script_work(tmp_path):
        raise ZeroDivisionError


def test_a_stop_says_how_to_go_on(tmp_path: Path) -> None:
    with (
        pytest.raises(SystemExit, match=r"STOP exists; the same command"),
        script_work(tmp_path) as stop,
    ):
        (tmp_path / "STOP").touch()
        stop.check()


def test_ctrl_c_waits_for_a_safe_point(tmp_path: Path) -> None:
    passed = []
    with pytest.raises(SystemExit, match="SIGINT"), script_work(tmp_path) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        passed.append("work goes on")
        stop.check()
    assert passed
