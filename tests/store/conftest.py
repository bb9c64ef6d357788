"""An open store in a folder of its own, for the tests of this layer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mlx_companion.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty store."""
    with Store(tmp_path / "home" / "companion.db") as opened:
        yield opened
