"""docs/plan.md shows what the program prints."""

from __future__ import annotations

import re
from pathlib import Path

from typer.testing import CliRunner

from mlx_companion.cli import app


def test_the_example_is_what_is_printed(repository: Path) -> None:
    text = (repository / "docs" / "plan.md").read_text(encoding="utf-8")
    found = re.search(r"```console\n\$ mlx-companion (.*)\n((?:.|\n)*?)```", text)
    assert found is not None
    result = CliRunner().invoke(app, found[1].split())
    printed = [line.rstrip() for line in result.output.splitlines()]
    assert printed == found[2].splitlines()
