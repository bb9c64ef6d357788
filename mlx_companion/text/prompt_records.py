"""Prompts in files, with whatever else their rows hold: what reinforcement learning starts from.

    {"prompt": "What is 17 + 25?", "answer": "42"}
    {"messages": [{"role": "user", "content": "..."}], "tests": [...]}

A reward function gets the whole row, so that it can look at the answer or run the tests.

    rows = read_prompts("arithmetic.jsonl")
    rows[0].prompt, rows[0].fields["answer"]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlx_companion.errors import DataError
from mlx_companion.text.readers import data_files, read_rows


@dataclass(frozen=True)
class PromptRow:
    """A prompt and the row it came in.

    Args:
        prompt: a text (one user message) or a list of turns `{"role": ..., "content": ...}`.
        fields: the whole row.
        source: where it came from ("file:line"), for messages to people.
    """

    prompt: str | list[dict[str, str]]
    fields: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""


def read_prompts(path: str | Path) -> list[PromptRow]:
    """Read the prompts of a file or folder.

    Args:
        path: a jsonl, json or csv file, or a folder of them (searched recursively, sorted).

    Raises:
        DataError: names file, line and field of what is wrong; also when there is no row.
    """
    path = Path(path)
    found = []
    for file in data_files(path):
        for row in read_rows(file):
            if isinstance(row.value, DataError):
                raise row.value
            found.append(parse_prompt(row.value, path=file, line=row.line))
    if not found:
        raise DataError("the file is empty; it should hold at least one prompt", path=path)
    return found


def parse_prompt(
    record: Any, *, path: str | Path | None = None, line: int | None = None
) -> PromptRow:
    """Give one parsed row its meaning.

    Raises:
        DataError: no prompt, or one that is empty or neither text nor turns.
    """
    source = "" if path is None else f"{path}:{line or 1}"
    if not isinstance(record, Mapping):
        found = type(record).__name__
        problem = f"expected an object with named fields, got {found}"
        raise DataError(problem, path=path, line=line)
    name = next((name for name in ("prompt", "messages") if name in record), None)
    if name is None:
        found = ", ".join(sorted(map(str, record))) or "none"
        problem = f"is missing (or 'messages'); fields found: {found}"
        raise DataError(problem, path=path, line=line, field="prompt")
    value = record[name]
    if isinstance(value, str) and value.strip():
        return PromptRow(value, dict(record), source)
    if isinstance(value, list) and value and all(map(_is_turn, value)):
        return PromptRow([dict(turn) for turn in value], dict(record), source)
    problem = "expected a text, or a list of turns with a text role and content"
    raise DataError(problem, path=path, line=line, field=name)


def _is_turn(value: Any) -> bool:
    if not isinstance(value, Mapping):
        return False
    return all(isinstance(value.get(key), str) for key in ("role", "content"))
