"""The planner knows budgets of bits, and what a quantized folder really takes."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from mlx_companion.cli import app
from mlx_companion.errors import ConfigError
from mlx_companion.models import load
from mlx_companion.models.tiny import tiny_model
from mlx_companion.quant import quantize
from mlx_companion.quant.plan import plan


def test_a_budget_lies_between_its_neighbours() -> None:
    low, mixed, high = (
        plan("llama3.1-8b", "m4-pro-48", bits=bits).parts["weights"] for bits in (3, "4bpw", 4)
    )
    assert low < mixed < high
    assert mixed == pytest.approx(8.03e9 * 4 / 8, rel=0.01)


def test_a_bad_budget_is_an_error() -> None:
    with pytest.raises(ConfigError, match="more than 2"):
        plan("llama3.1-8b", "m4-pro-48", bits="1bpw")


def test_a_mixed_folder_is_planned_by_its_layers(tmp_path: Path) -> None:
    lm = load(tiny_model(tmp_path / "tiny"))
    found = quantize(lm, "4.5bpw", distil_tokens=0)
    folder = found.save(tmp_path / "mixed")
    planned = plan(folder, "m4-pro-48")
    assert planned.parts["weights"] == pytest.approx(found.report.bytes, rel=0.02)


def test_the_command_line_takes_one() -> None:
    done = CliRunner().invoke(
        app, ["plan", "llama3.1-8b", "--bits", "4.5bpw", "--machine", "m4-pro-48"]
    )
    assert done.exit_code == 0, done.output
    assert "4.5 bits per weight" in done.output
