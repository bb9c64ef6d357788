"""The notebook on fine-tuning and fusing runs from end to end, here with a tiny packed model.

Outputs are stored with: python tests/notebook_cells.py examples/finetune_and_fuse.ipynb
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from notebook_cells import PICTURE, code_cells, read_notebook, run_cells

import mlx_companion as mc
from mlx_companion.models.tiny import tiny_model

NOTEBOOK = "finetune_and_fuse.ipynb"


@pytest.fixture(scope="module")
def notebook(repository: Path) -> dict[str, Any]:
    return read_notebook(repository / "examples" / NOTEBOOK)


@pytest.fixture(scope="module")
def ran(
    repository: Path, notebook: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> list[list[dict[str, Any]]]:
    """The outputs of all cells, with a tiny model of 4 bits in place of the default one."""
    tiny = tiny_model(tmp_path_factory.mktemp("model") / "tiny", bits=4)
    load = mc.load

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(mc, "load", lambda _name, **options: load(tiny, **options))
        patched.setenv("TMPDIR", str(tmp_path_factory.mktemp("temporary")))
        return run_cells(notebook, repository / "examples")


def text(outputs: list[dict[str, Any]]) -> str:
    return "".join("".join(output.get("text", ())) for output in outputs)


def pictures(outputs: list[list[dict[str, Any]]]) -> list[str]:
    shown = [output.get("data", {}) for cell in outputs for output in cell]
    return ["".join(data[PICTURE]) for data in shown if PICTURE in data]


def kinds(outputs: list[list[dict[str, Any]]]) -> list[list[list[str]]]:
    return [[sorted(o.get("data", {"printed": ""})) for o in cell] for cell in outputs]


def test_it_runs_and_gives_what_is_stored(
    notebook: dict[str, Any], ran: list[list[dict[str, Any]]]
) -> None:
    cells = code_cells(notebook)
    assert kinds(ran) == kinds([cell["outputs"] for cell in cells])
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    assert "tuning_pictures" not in sys.modules


def test_fine_tuning_helps_and_fusing_keeps_it(ran: list[list[dict[str, Any]]]) -> None:
    lines = text(ran[-1]).splitlines()
    losses = {line[:24].strip(): float(line[24:].split()[0]) for line in lines}
    assert losses["fused, floats"] < losses["before"] - 0.5
    for form in ("fused, bits raised", "4 bits, adapter beside"):
        assert math.isclose(losses[form], losses["fused, floats"], abs_tol=0.05)


@pytest.mark.parametrize("stored", [True, False])
def test_pictures_show_the_loss_and_every_projection(
    notebook: dict[str, Any], ran: list[list[dict[str, Any]]], stored: bool
) -> None:
    outputs = [cell["outputs"] for cell in code_cells(notebook)] if stored else ran
    loss, cosines = pictures(outputs)
    assert {"training", "held out"} <= set(texts(loss))
    kinds = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert kinds <= set(texts(cosines))
    assert "0.9" in texts(cosines)


def texts(picture: str) -> list[str]:
    return [node.text or "" for node in ET.fromstring(picture).iter()]


def test_stored_outputs_are_those_of_the_default_model(notebook: dict[str, Any]) -> None:
    """With it the style is learned, and rounding to 4 bits is seen to lose the update."""
    cells = [text(cell["outputs"]) for cell in code_cells(notebook)]
    told = "\n".join(cells)
    assert "in the keeper's way: 0 before, 4 after, of 4" in told
    assert "fusing would lose the adapter in" in told
    assert "/tmp" not in told
