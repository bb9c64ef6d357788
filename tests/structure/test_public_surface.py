"""What the package offers is what it says: `__all__`, docstrings, lightness, file sizes."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mlx_companion

LONGEST = 500
CODE = ("mlx_companion", "kernels", "recipes", "benchmarks", "examples", "tests")
PACKAGES = sorted(
    path.parent.name for path in Path(mlx_companion.__file__).parent.glob("*/__init__.py")
)
PROMISED = {
    "Profile",
    "Store",
    "__version__",
    "batch_generate",
    "errors",
    "finetune",
    "generate",
    "improve",
    "load",
    "load_encoder",
    "stream_generate",
}


def python_files(repository: Path) -> list[Path]:
    return [path for folder in CODE for path in sorted((repository / folder).rglob("*.py"))]


def bound_names(source: str) -> set[str]:
    """Public names that a package's `__init__` defines, or imports from the package itself."""
    names = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mlx_companion"):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {t.id for t in node.targets if isinstance(t, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return {name for name in names if not name.startswith("_")}


def test_the_promised_names_are_there() -> None:
    assert set(mlx_companion.__all__) >= PROMISED


@pytest.mark.parametrize("name", mlx_companion.__all__)
def test_every_name_of_the_package_resolves(name: str) -> None:
    value = getattr(mlx_companion, name)
    assert name in dir(mlx_companion)
    if name in mlx_companion._LAZY:
        module, _, attribute = mlx_companion._LAZY[name].partition(":")
        assert value is getattr(importlib.import_module(module), attribute)


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(mlx_companion.__file__).read_text(encoding="utf-8"))
    seen = {
        alias.asname: f"{node.module}:{alias.name}"
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == mlx_companion._LAZY


def test_the_package_offers_nothing_else() -> None:
    source = Path(mlx_companion.__file__).read_text(encoding="utf-8")
    assert bound_names(source) | set(mlx_companion._LAZY) | {"__version__"} == set(
        mlx_companion.__all__
    )
    assert len(mlx_companion.__all__) == len(set(mlx_companion.__all__))
    with pytest.raises(AttributeError, match="has no attribute 'no_such_name'"):
        _ = mlx_companion.no_such_name


@pytest.mark.parametrize("package", PACKAGES)
def test_all_of_a_sub_package_is_what_it_binds(package: str) -> None:
    module = importlib.import_module(f"mlx_companion.{package}")
    assert module.__file__ is not None
    bound = bound_names(Path(module.__file__).read_text(encoding="utf-8"))
    lazy = set(getattr(module, "_LAZY", ()))
    assert sorted(module.__all__) == sorted(bound | lazy)
    for name in module.__all__:
        assert getattr(module, name) is not None


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_package_imports_nothing_heavy() -> None:
    heavy = ("mlx", "numpy", "scipy", "transformers", "mlx_lm", "typer", "rich", "yaml", "psutil")
    code = f"import sys, mlx_companion; print([m for m in {heavy} if m in sys.modules])"
    assert run(code) == "[]"


def test_a_star_import_gives_the_surface() -> None:
    code = "from mlx_companion import *; print(errors.DataError.__name__, Store.__name__)"
    assert run(code) == "DataError Store"


def test_the_version_is_a_release_number() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", mlx_companion.__version__)


def test_every_module_says_what_it_is(repository: Path) -> None:
    silent = [
        str(path.relative_to(repository))
        for path in python_files(repository)
        if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert silent == []


def test_no_file_is_too_long(repository: Path) -> None:
    lengths = {
        str(path.relative_to(repository)): len(path.read_text(encoding="utf-8").splitlines())
        for path in python_files(repository)
    }
    assert {name: n for name, n in lengths.items() if n > LONGEST} == {}


def test_test_files_have_names_of_their_own(repository: Path) -> None:
    names = [path.name for path in (repository / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
