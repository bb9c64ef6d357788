"""The notebooks run, show pictures, and hold the outputs of the model that is shipped.

Outputs are stored with: python tests/notebook_cells.py examples/blt_one_byte.ipynb
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import mlx.core as mx
import pytest
from notebook_cells import (
    MODEL_KEY,
    PICTURE,
    SHIPPED,
    code_cells,
    model_fingerprint,
    read_notebook,
    refresh,
    run_cells,
)

from mlx_companion import blt

NOTEBOOK = "blt_one_byte.ipynb"
SVG = "{http://www.w3.org/2000/svg}"
needs_model = pytest.mark.skipif(model_fingerprint() is None, reason="no model is shipped")


@pytest.fixture
def notebook(repository: Path) -> dict[str, Any]:
    return read_notebook(repository / "examples" / NOTEBOOK)


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model than the shipped one: other widths, other tables, random weights."""
    mx.random.seed(3)
    model = blt.BltModel(blt.blt_preset("tiny"))
    # Random predictions are all about as open: the threshold has to lie among their entropies.
    middle = float(mx.median(model.entropies(mx.array([list(range(40, 120))]))))
    rule = replace(model.config.patching, threshold=middle)
    model.config = replace(model.config, patching=rule)
    return blt.save(model, tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def default_model(small_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`blt.load()` gives the small model."""
    module = sys.modules["mlx_companion.blt.load"]
    monkeypatch.setattr(module, "default_model_path", lambda: small_model)
    return small_model


def kinds(outputs: list[dict[str, Any]]) -> list[list[str]]:
    """What each output of a cell is."""
    return [sorted(output.get("data", {"printed": ""})) for output in outputs]


def pictures(outputs: list[list[dict[str, Any]]]) -> list[str]:
    shown = [output.get("data", {}) for cell in outputs for output in cell]
    return ["".join(data[PICTURE]) for data in shown if PICTURE in data]


def check_outputs(notebook: dict[str, Any], found: list[list[dict[str, Any]]]) -> None:
    """The same kinds of output as are stored, and every picture has something in it."""
    stored = [cell["outputs"] for cell in code_cells(notebook)]
    assert [kinds(outputs) for outputs in found] == [kinds(outputs) for outputs in stored]
    drawn = pictures(found)
    assert len(drawn) == 12
    for picture in drawn:
        assert len(list(ET.fromstring(picture).iter())) > 20


def test_it_runs_with_any_model(
    repository: Path, notebook: dict[str, Any], default_model: Path
) -> None:
    check_outputs(notebook, run_cells(notebook, repository / "examples"))
    assert "byte_pictures" not in sys.modules


@needs_model
def test_it_runs_with_the_shipped_model(repository: Path, notebook: dict[str, Any]) -> None:
    check_outputs(notebook, run_cells(notebook, repository / "examples"))


@needs_model
def test_its_outputs_are_those_of_the_shipped_model(notebook: dict[str, Any]) -> None:
    expected = model_fingerprint(SHIPPED)
    assert notebook["metadata"].get(MODEL_KEY) == expected, "see the module for what to run"


def test_its_outputs_are_stored(notebook: dict[str, Any]) -> None:
    cells = code_cells(notebook)
    assert all(cell["outputs"] for cell in cells)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])


def test_outputs_are_stored_by_a_refresh(tmp_path: Path) -> None:
    path = tmp_path / "a.ipynb"
    source = ["x = 2\n", "print('two')\n", "x + 1"]
    cells = [{"cell_type": "code", "source": source, "outputs": []}, {"cell_type": "markdown"}]
    cells.append({"cell_type": "code", "source": ["import helper; helper.Shown()"]})
    (tmp_path / "helper.py").write_text("class Shown:\n def _repr_svg_(self): return '<svg/>'")
    path.write_text(json.dumps({"cells": cells, "metadata": {}}))
    refresh(path)
    first, second = code_cells(read_notebook(path))
    assert [output["output_type"] for output in first["outputs"]] == ["stream", "execute_result"]
    assert first["outputs"][0]["text"] == ["two\n"]
    assert first["outputs"][1]["data"] == {"text/plain": ["3"]}
    assert second["outputs"][0]["data"][PICTURE] == ["<svg/>"]
    assert second["execution_count"] == 2


def test_an_error_in_a_cell_names_the_cell(tmp_path: Path) -> None:
    cells = [{"cell_type": "code", "source": [line]} for line in ("1", "1 / 0")]
    with pytest.raises(ZeroDivisionError) as caught:
        run_cells({"cells": cells}, tmp_path)
    assert caught.traceback[-1].path == "<cell 2>"
