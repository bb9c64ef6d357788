"""The example in docs/metal_bench.md gives what the document says."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

import mlx_companion  # noqa: F401


@pytest.mark.usefixtures("kernel_bench")
def test_the_documents_example(repository: Path) -> None:
    results = doctest.testfile(str(repository / "docs" / "metal_bench.md"), module_relative=False)
    assert results.attempted > 10
    assert results.failed == 0
