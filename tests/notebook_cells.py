"""Runs the code cells of a notebook and gives their outputs, without Jupyter.

    python tests/notebook_cells.py examples/blt_one_byte.ipynb

runs it and stores its outputs in the file (with a line of metadata that says by which model), as
"Run all cells" and "Save" in Jupyter would. Only what our notebooks use is known: printed text, and
the last value of a cell as SVG or as text.
"""

from __future__ import annotations

import ast
import io
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import mlx_companion
from mlx_companion.runtime.files import atomic_write_text, sha256_file

PICTURE = "image/svg+xml"
MODEL_KEY = "mlx_companion_model"
SHIPPED = Path(mlx_companion.__file__).parent / "blt" / "data"


def read_notebook(path: Path) -> dict[str, Any]:
    """A notebook file as it is."""
    return json.loads(path.read_text(encoding="utf-8"))


def code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    """The cells that can be run."""
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def run_cells(notebook: dict[str, Any], folder: Path) -> list[list[dict[str, Any]]]:
    """The outputs of all code cells, in the notebook format.

    Args:
        notebook: its content; not changed.
        folder: where the notebook lies; its modules can be imported.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    with _importing_from(folder):
        return [
            _run("".join(cell["source"]), names, number)
            for number, cell in enumerate(code_cells(notebook), start=1)
        ]


def model_fingerprint(folder: Path = SHIPPED) -> str | None:
    """SHA-256 of the weights in a model's folder; None when there are none."""
    files = sorted(folder.glob("*.safetensors"))
    return "-".join(sha256_file(file) for file in files) or None


def refresh(path: Path) -> None:
    """Run a notebook and store its outputs in it."""
    notebook = read_notebook(path)
    outputs = run_cells(notebook, path.parent)
    for number, (cell, given) in enumerate(
        zip(code_cells(notebook), outputs, strict=True), start=1
    ):
        cell["outputs"], cell["execution_count"] = given, number
    notebook["metadata"][MODEL_KEY] = model_fingerprint()
    atomic_write_text(path, json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


def _run(source: str, names: dict[str, Any], number: int) -> list[dict[str, Any]]:
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed, value = io.StringIO(), None
    with redirect_stdout(printed):
        exec(compile(tree, f"<cell {number}>", "exec"), names)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), f"<cell {number}>", "eval"), names)
    outputs: list[dict[str, Any]] = []
    if text := printed.getvalue():
        outputs.append({"name": "stdout", "output_type": "stream", "text": _lines(text)})
    if value is not None:
        outputs.append(
            {
                "data": _shown(value),
                "execution_count": number,
                "metadata": {},
                "output_type": "execute_result",
            }
        )
    return outputs


def _shown(value: Any) -> dict[str, list[str]]:
    if hasattr(value, "_repr_svg_"):
        # The text is for readers without pictures; an address would change with every run.
        return {PICTURE: _lines(value._repr_svg_()), "text/plain": [f"<{type(value).__name__}>"]}
    return {"text/plain": _lines(repr(value))}


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


@contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    known = set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - known:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(folder)):
                del sys.modules[name]


if __name__ == "__main__":
    for given_path in sys.argv[1:]:
        refresh(Path(given_path))
