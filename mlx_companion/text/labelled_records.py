"""Labelled texts: JSONL, JSON or CSV rows with a text and its label.

    texts, labels = read_labelled("intents.jsonl")

A row is {"text": ..., "label": ...}; "query" or "sentence" may stand for "text", "intent" or
"category" for "label".
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mlx_companion.errors import DataError
from mlx_companion.text.readers import data_files, read_rows

TEXT_KEYS = ("text", "query", "sentence", "utterance")
LABEL_KEYS = ("label", "intent", "category")


class Labelled(NamedTuple):
    """Texts and their labels, of the same length."""

    texts: list[str]
    labels: list[str]


def read_labelled(path: str | Path) -> Labelled:
    """Read labelled texts from a file or every file of a folder.

    Raises:
        DataError: a row without a text or a label; names file, line and field.
    """
    found = Labelled([], [])
    for place, line, value in _rows(Path(path)):
        found.texts.append(_field(value, TEXT_KEYS, place, line))
        found.labels.append(_field(value, LABEL_KEYS, place, line))
    if not found.texts:
        raise DataError("it holds no row; give at least one text with a label", path=path)
    return found


def read_texts(path: str | Path) -> tuple[list[str], list[str | None]]:
    """Read texts whose labels may be missing, as `read_labelled`; None for a missing label."""
    texts: list[str] = []
    labels: list[str | None] = []
    for place, line, value in _rows(Path(path)):
        texts.append(_field(value, TEXT_KEYS, place, line))
        known = any(value.get(key) is not None for key in LABEL_KEYS)
        labels.append(_field(value, LABEL_KEYS, place, line) if known else None)
    return texts, labels


def _rows(path: Path) -> list[tuple[Path, int, dict[str, Any]]]:
    found = []
    for file in data_files(path):
        for row in read_rows(file):
            if isinstance(row.value, DataError):
                raise row.value
            if not isinstance(row.value, dict):
                raise DataError(
                    f"a row is {type(row.value).__name__}; expected text and label",
                    path=file,
                    line=row.line,
                )
            found.append((file, row.line, row.value))
    return found


def _field(value: dict[str, Any], keys: Sequence[str], path: Path, line: int) -> str:
    for key in keys:
        if value.get(key) is None:
            continue
        text = value[key]
        if not isinstance(text, str | int) or isinstance(text, bool):
            raise DataError(f"is {text!r:.60}; expected a text", path=path, line=line, field=key)
        return str(text)
    others = ", ".join(keys[1:])
    raise DataError(
        f"is missing; give it (or one of {others})", path=path, line=line, field=keys[0]
    )
