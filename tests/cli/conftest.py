"""A person's terminal of 80 columns without colours, and a runner of command lines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from mlx_companion.cli import app

Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Output that does not depend on where the tests run."""
    for name in ("FORCE_COLOR", "CLICOLOR_FORCE", "GITHUB_ACTIONS", "TERMINAL_WIDTH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")


@pytest.fixture
def run() -> Run:
    """Runs `mlx-companion` in this process: `run("data", "stats", input="")`."""
    runner = CliRunner()

    def invoke(*words: str | Path, input: str | bytes | None = None) -> Result:
        return runner.invoke(app, list(map(str, words)), input=input)

    return invoke
