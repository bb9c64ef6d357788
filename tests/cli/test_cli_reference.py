"""docs/cli.md is what the program says of itself today."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import cli_reference
import pytest
import typer

from mlx_companion.cli import app
from mlx_companion.models import Sampling, stream_generate

VERBS = {
    "chat", "generate", "improve", "finetune", "versions", "promote", "rollback", "diff",
    "data export", "data import", "data delete", "data stats", "doctor", "models", "fetch",
    "plan", "quantize", "stop", "resume", "blt train", "blt generate", "blt patch", "blt eval",
    "blt convert", "blt calibrate", "tune", "classify", "runs list", "runs show", "runs compare",
    "runs plot", "runs add", "runs forget", "sou pack", "sou inspect", "sou verify", "sou unpack",
    "sou diff", "slm run", "slm bench", "slm versions", "slm status", "slm register", "slm shadow",
    "slm activate", "slm rollback",
}  # fmt: skip


def test_the_reference_is_up_to_date(repository: Path) -> None:
    written = (repository / "docs" / "cli.md").read_text(encoding="utf-8")
    assert written == cli_reference.reference(app), (
        "run: python tests/cli_reference.py > docs/cli.md"
    )


def test_every_verb_is_in_it() -> None:
    text = cli_reference.reference(app)
    assert set(re.findall(r"^## `mlx-companion ([a-z ]+[a-z])", text, re.MULTILINE)) == VERBS


def test_a_command_is_described() -> None:
    small = typer.Typer()

    @small.command()
    def paint(
        wall: str = typer.Argument(help="Which wall."),
        colour: str = typer.Option("red", metavar="NAME", help="Which colour."),
        twice: bool = typer.Option(False, "--twice", help="Two coats."),
    ) -> None:
        """Paint a wall."""

    @small.command()
    def other() -> None:
        """Nothing."""

    assert cli_reference.reference(small).endswith(
        "## `mlx-companion paint WALL`\n\nPaint a wall.\n\n| | |\n|---|---|\n"
        "| `WALL` | Which wall. |\n| `--colour NAME` | Which colour. |\n"
        "| `--twice` | Two coats. |\n"
        "\n## `mlx-companion other`\n\nNothing.\n"
    )


@pytest.mark.parametrize("name", sorted(VERBS))
def test_every_option_has_a_help_text_and_a_name_for_its_value(name: str) -> None:
    verbs = dict(cli_reference.commands(typer.main.get_command(app), ()))
    command = verbs[tuple(name.split())]
    assert command.help
    for parameter in command.params:
        assert parameter.help, parameter.name
        if parameter.param_type_name == "option":
            assert parameter.is_flag or parameter.metavar, parameter.name


def test_defaults_that_help_texts_mention_are_true() -> None:
    verbs = dict(cli_reference.commands(typer.main.get_command(app), ()))
    helps = {p.name: p.help for p in verbs["generate",].params}
    most = inspect.signature(stream_generate).parameters["max_tokens"].default
    assert f"({most})" in helps["max_tokens"]
    assert helps["temperature"].startswith(f"{Sampling().temperature:g}, the default")
