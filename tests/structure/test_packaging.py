"""What a wheel holds is what the checkout holds: `kernels/` is part of the package in both."""

from __future__ import annotations

import tomllib
from pathlib import Path

import mlx_companion.kernels


def declared(repository: Path) -> dict[str, object]:
    text = (repository / "pyproject.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)["tool"]["setuptools"]


def packages_of(folder: Path, name: str) -> set[str]:
    """Dotted names of every package in `folder`, which is the package `name`."""
    return {
        ".".join([name, *path.parent.relative_to(folder).parts])
        for path in folder.rglob("__init__.py")
    }


def test_every_package_is_declared(repository: Path) -> None:
    found = packages_of(repository / "mlx_companion", "mlx_companion")
    found |= packages_of(repository / "kernels", "mlx_companion.kernels")
    assert sorted(found) == sorted(declared(repository)["packages"])


def test_kernels_are_a_package_of_ours_and_a_folder_beside_it(repository: Path) -> None:
    assert declared(repository)["package-dir"] == {"mlx_companion.kernels": "kernels"}
    found = Path(mlx_companion.kernels.__file__).resolve()
    assert found == repository / "kernels" / "__init__.py"


def test_nothing_imports_the_folder_by_its_bare_name(repository: Path) -> None:
    wrong = [
        str(path.relative_to(repository))
        for folder in ("mlx_companion", "kernels", "benchmarks", "tests", "recipes", "examples")
        for path in (repository / folder).rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.startswith(("import kernels", "from kernels"))
    ]
    assert wrong == []
