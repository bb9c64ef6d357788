"""Labelled texts that were written for this project, line by line.

Templates give many sentences of few kinds; what people say has many kinds. So the heads are
trained on texts written one by one as well. A file of `data/written` holds one text per line,
"+ " before it when the label is so and "- " when it is not; a line break within a text is written
as \\n. Neighbours often share words on purpose and differ in the label: both of a pair belong in
one fold::

    for text in written("tone"):
        text.text, text.label, text.pair
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from mlx_companion.errors import DataError

_SIGNS = {"+ ": True, "- ": False}


@dataclass(frozen=True)
class Written:
    """One labelled text.

    Attributes:
        text: as written, with its line breaks.
        label: whether it is what the file is about.
        pair: texts with the same number were written beside each other.
    """

    text: str
    label: bool
    pair: int


def written(source: str | Path) -> list[Written]:
    """The texts of a file.

    Args:
        source: the name of one that comes with the package, or the path of another.

    Raises:
        DataError: there is no such file, or a line is not a sign, a space and a text.
    """
    path = Path(source)
    if isinstance(source, str) and not path.suffix:
        path = Path(str(resources.files("mlx_companion.slm"))) / "data" / "written"
        path = path / f"{source}.txt"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot be read ({error})", path=path) from error
    found = []
    for number, line in enumerate(lines, 1):
        text = line[2:].strip().replace("\\n", "\n")
        if line[:2] not in _SIGNS or not text:
            raise DataError("expected '+ ' or '- ' and a text", path=path, line=number)
        found.append(Written(text, _SIGNS[line[:2]], (number - 1) // 2))
    return found
