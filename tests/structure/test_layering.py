"""Imports go one way through the layers, and scripts use public names only.

    errors, runtime < kernels < text < models, blt < quant < lora < training < store
        < slm, personality, memory < loop < serve, cli

Left may not import right; `store` imports only `errors` and `runtime`.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = "mlx_companion"
LAYERS = [
    {"errors"},
    {"runtime"},
    {"kernels"},
    {"text"},
    {"models", "blt"},
    {"quant"},
    {"lora"},
    {"training"},
    {"store"},
    {"slm", "personality", "memory"},
    {"loop"},
    {
        "serve",
        "cli",
        "cli_blt",
        "cli_learn",
        "cli_parts",
        "cli_plan",
        "cli_quant",
        "cli_runs",
        "cli_slm",
        "cli_slm_versions",
        "cli_sou",
        "cli_talk",
    },
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
# The two doors of the package: the lazy surface, which names every layer, and `python -m`.
DOORS = {"__init__", "__main__"}
SCRIPTS = ("recipes", "benchmarks", "examples")


@dataclass(frozen=True)
class Import:
    """One imported dotted name of the package, e.g. `mlx_companion.text.batches.Batch`."""

    path: Path
    line: int
    name: str

    @property
    def layer(self) -> str:
        """The layer it reaches into; empty for the package's own door."""
        parts = self.name.split(".")
        return parts[1] if len(parts) > 1 else ""


def imports(source: str, path: Path, module: str) -> Iterator[Import]:
    """Every import of the package in a module, inside functions too.

    Args:
        source: the module's text.
        path: for messages.
        module: its dotted name, for relative imports; a package's ends with `.__init__`.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == PACKAGE:
                    yield Import(path, node.lineno, alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[: -node.level]
                base = ".".join([*parents, base]).rstrip(".")
            if base.split(".")[0] == PACKAGE:
                for alias in node.names:
                    yield Import(path, node.lineno, f"{base}.{alias.name}")


def layer_of(path: Path, root: Path) -> str:
    """The layer a file belongs to: its sub-package, or the module itself at the top."""
    relative = path.relative_to(root)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def modules(root: Path) -> list[Path]:
    """Every module under the package folder `root`; linked folders, which `rglob` skips, too."""
    linked = [path for path in root.iterdir() if path.is_symlink()]
    return sorted(path for folder in (root, *linked) for path in folder.rglob("*.py"))


def violations(root: Path) -> list[str]:
    """Every import under the package folder `root` that goes the wrong way."""
    wrong = []
    for path in modules(root):
        own = layer_of(path, root)
        if own in DOORS:
            continue
        module = ".".join([PACKAGE, *path.relative_to(root).with_suffix("").parts])
        for found in imports(path.read_text(encoding="utf-8"), path, module):
            reason = refusal(own, found.layer)
            if reason:
                wrong.append(f"{path.relative_to(root)}:{found.line}: {found.name}: {reason}")
    return wrong


def refusal(own: str, other: str) -> str | None:
    """Why the layer `own` may not import from `other`; None when it may."""
    if own not in RANK:
        return f"'{own}' has no place in the order of layers; give it one in this test"
    if other == own or other in {"", "__version__"}:
        return None
    if other not in RANK:
        return f"inside the package, import '{other}' from the module that defines it"
    if own == "store" and other not in {"errors", "runtime"}:
        return "store imports only errors and runtime"
    return None if RANK[other] <= RANK[own] else f"{own} may not import {other}"


def test_imports_go_one_way(repository: Path) -> None:
    assert violations(repository / PACKAGE) == []


def test_kernels_are_looked_at_too(repository: Path) -> None:
    seen = {layer_of(path, repository / PACKAGE) for path in modules(repository / PACKAGE)}
    assert {"kernels", "blt", "errors"} <= seen


@pytest.mark.parametrize(
    ("path", "source", "expected"),
    [
        ("text/a.py", "from mlx_companion.lora import attach", "text may not import lora"),
        ("text/a.py", "def f():\n    import mlx_companion.models.load", "may not import models"),
        ("text/a.py", "from ..models import load", "text may not import models"),
        ("text/__init__.py", "from ..models import load", "text may not import models"),
        ("runtime/a.py", "from mlx_companion import cli", "runtime may not import cli"),
        ("errors.py", "from .runtime import paths", "errors may not import runtime"),
        ("store/a.py", "from mlx_companion.text.records import Sample", "store imports only"),
        ("loop/a.py", "from mlx_companion import load", "from the module that defines it"),
        ("stray/a.py", "import mlx_companion.errors", "no place in the order"),
    ],
)
def test_a_wrong_import_is_found(path: str, source: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / path).parent.mkdir(exist_ok=True)
    (tmp_path / path).write_text(source)
    (wrong,) = violations(tmp_path)
    assert expected in wrong


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("lora/a.py", "from mlx_companion.text.batches import Batch\nimport numpy"),
        ("lora/a.py", "from .layers import LoRALinear\nfrom . import io\nfrom .. import errors"),
        ("cli.py", "from mlx_companion.loop import improve"),
        ("runtime/a.py", "from mlx_companion import __version__"),
        ("__init__.py", "from mlx_companion.cli import main"),
    ],
)
def test_a_right_import_is_allowed(path: str, source: str, tmp_path: Path) -> None:
    (tmp_path / path).parent.mkdir(exist_ok=True)
    (tmp_path / path).write_text(source)
    assert violations(tmp_path) == []


def private_use(found: Import) -> str | None:
    """Why a script may not use this name; None when the name is public."""
    parts = found.name.split(".")
    if any(part.startswith("_") and part != "__version__" for part in parts):
        return "private"
    for length in range(len(parts), 0, -1):
        try:
            owner = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        rest = parts[length:]
        if not rest:
            return None
        public = getattr(owner, "__all__", vars(owner))
        return None if rest[0] in public else f"not in {owner.__name__}.__all__"
    return "not found"


def test_scripts_import_public_names_only(repository: Path) -> None:
    wrong = []
    for folder in SCRIPTS:
        for path in sorted((repository / folder).rglob("*.py")):
            for found in imports(path.read_text(encoding="utf-8"), path, path.stem):
                reason = private_use(found)
                if reason:
                    wrong.append(f"{path.relative_to(repository)}:{found.line}: {reason}")
    assert wrong == []


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("mlx_companion.errors.DataError", None),
        ("mlx_companion.runtime.files", None),
        ("mlx_companion.load_config", None),
        ("mlx_companion.import_module", "not in mlx_companion.__all__"),
        ("mlx_companion.runtime.files._sweep", "private"),
        ("mlx_companion.no_such_name", "not in mlx_companion.__all__"),
    ],
)
def test_private_names_are_told_from_public_ones(name: str, reason: str | None) -> None:
    assert private_use(Import(Path("x"), 1, name)) == reason
