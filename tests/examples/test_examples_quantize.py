"""The notebook on quantization runs from end to end, here with a tiny model.

Outputs are stored with: python tests/notebook_cells.py examples/quantize_and_pack.ipynb
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from notebook_cells import PICTURE, code_cells, read_notebook, run_cells

import mlx_companion as mc
from mlx_companion.models.tiny import tiny_model

NOTEBOOK = "quantize_and_pack.ipynb"


@pytest.fixture(scope="module")
def notebook(repository: Path) -> dict[str, Any]:
    return read_notebook(repository / "examples" / NOTEBOOK)


@pytest.fixture(scope="module")
def ran(
    repository: Path, notebook: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> list[list[dict[str, Any]]]:
    """The outputs of all cells, with a tiny model in place of the default one."""
    tiny = tiny_model(tmp_path_factory.mktemp("model") / "tiny")
    load = mc.load

    with pytest.MonkeyPatch.context() as patched:
        named = lambda x, **options: load(tiny if x == "smollm2-135m" else x, **options)  # noqa: E731
        patched.setattr(mc, "load", named)
        patched.setenv("TMPDIR", str(tmp_path_factory.mktemp("temporary")))
        return run_cells(notebook, repository / "examples")


def text(outputs: list[dict[str, Any]]) -> str:
    return "".join("".join(output.get("text", ())) for output in outputs)


def test_it_runs_and_gives_what_is_stored(
    notebook: dict[str, Any], ran: list[list[dict[str, Any]]]
) -> None:
    cells = code_cells(notebook)
    kinds = [[sorted(o.get("data", {"printed": ""})) for o in cell] for cell in ran]
    stored = [[sorted(o.get("data", {"printed": ""})) for o in cell["outputs"]] for cell in cells]
    assert kinds == stored
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))


def test_what_was_packed_comes_back(ran: list[list[dict[str, Any]]]) -> None:
    assert "every byte checked: True" in text(ran[-1])
    assert text(ran[-1]).endswith("True\n")


def test_the_report_is_shown(ran: list[list[dict[str, Any]]]) -> None:
    told = [text(cell) for cell in ran]
    assert sum("bits per weight: 4.5" in one for one in told) == 2
    (picture,) = [
        "".join(o["data"][PICTURE]) for c in ran for o in c if PICTURE in o.get("data", {})
    ]
    assert ET.fromstring(picture).tag.endswith("svg")


def test_stored_outputs_are_those_of_the_default_model(notebook: dict[str, Any]) -> None:
    """With it spending the same bits where they help diverges less than half as far."""
    told = "\n".join(text(cell["outputs"]) for cell in code_cells(notebook))
    share = float(told.split("divergence: ")[1].split()[0])
    assert 0 < share < 0.5
    assert "/tmp" not in told
