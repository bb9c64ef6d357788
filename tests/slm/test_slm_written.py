"""Written training texts: they can be read, and both labels are there."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlx_companion.errors import DataError
from mlx_companion.slm.research_sources import WRITTEN
from mlx_companion.slm.written import Written, written


def test_lines_become_labelled_texts(tmp_path: Path) -> None:
    path = tmp_path / "own.txt"
    path.write_text("+ yes - indeed\n- no\\n- nor this\n+ ünïcode\n")
    assert written(path) == [
        Written("yes - indeed", True, 0),
        Written("no\n- nor this", False, 0),
        Written("ünïcode", True, 1),
    ]


@pytest.mark.parametrize("line", ["", "+", "+ ", "* text", "+text", "- \u00a0"])
def test_other_lines_are_refused(line: str, tmp_path: Path) -> None:
    path = tmp_path / "own.txt"
    path.write_text(f"+ fine\n{line}\n- fine\n")
    with pytest.raises(DataError, match=r"own\.txt:2: expected '\+ ' or '- ' and a text"):
        written(path)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(DataError, match=r"nothing\.txt: cannot be read"):
        written("nothing")


@pytest.mark.parametrize(
    "name", ["tone", "attached_user", "attached_assistant", "boundary", *WRITTEN]
)
def test_what_ships_is_balanced_and_without_repeats(name: str) -> None:
    found = written(name)
    share = sum(one.label for one in found) / len(found)
    assert len(found) >= 500
    assert 0.4 < share < 0.6
    assert len({one.text.lower() for one in found}) == len(found)
