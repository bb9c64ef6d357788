"""The data that comes with the package: prompts, question-answer pairs and general text.

A newcomer has no interactions yet, so the first round uses packaged prompts; the split into train
and gate prompts is fixed in the file and never mixes. The pairs set the relevance threshold: it
must tell written answers from shuffled ones. The general text and the general prompts watch that a
new version keeps what the base can do, outside of the companion's own style. All of it is written
for this project::

    train = load_prompts("train")      # generation and training see these only
    gate = load_prompts("gate")        # the test of a new version sees these only
    pairs = load_qa_pairs()            # the relevance judges calibrate on them
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from mlx_companion.errors import DataError
from mlx_companion.runtime.config import nearest

Split = Literal["train", "gate"]
SPLITS: tuple[str, ...] = get_args(Split)


@dataclass(frozen=True)
class PackagedPrompt:
    """One prompt as a person might type it.

    Attributes:
        id: unique and stable; starts with the topic.
        topic: the group by which results are clustered and no topic may vanish.
        split: "train" or "gate"; a gate prompt is never trained on.
        prompt: the text.
    """

    id: str
    topic: str
    split: str
    prompt: str


@dataclass(frozen=True)
class QAPair:
    """A question with a written answer of at most two sentences that keeps the default profile."""

    id: str
    topic: str
    question: str
    answer: str


@dataclass(frozen=True)
class GeneralPrompt:
    """An instruction without the companion's profile; `kind` names the ability that it touches."""

    id: str
    kind: str
    prompt: str


_Row = TypeVar("_Row", PackagedPrompt, QAPair, GeneralPrompt)


def load_prompts(
    split: Split | None = None, path: str | Path | None = None
) -> tuple[PackagedPrompt, ...]:
    """Load the prompts, in the order of the file.

    Args:
        split: "train", "gate", or None for both.
        path: a JSONL file of your own in the same form, instead of the packaged one.

    Raises:
        DataError: a malformed row (names file, line and field), a repeated id or prompt, or an
            unknown split.
    """
    if split is not None:
        _check_split(split)
    rows = _load(PackagedPrompt, "prompts.jsonl", path, unique="prompt")
    return tuple(row for row in rows if split in (None, row.split))


def load_qa_pairs(path: str | Path | None = None) -> tuple[QAPair, ...]:
    """Load the question-answer pairs; `path` and errors as in `load_prompts`."""
    return _load(QAPair, "qa_pairs.jsonl", path, unique="question")


def general_prompts(path: str | Path | None = None) -> tuple[GeneralPrompt, ...]:
    """Load the general prompts; `path` and errors as in `load_prompts`."""
    return _load(GeneralPrompt, "general_prompts.jsonl", path, unique="prompt")


def general_text() -> str:
    """Return the frozen prose on which perplexity is measured; blank lines part paragraphs."""
    return _packaged("general_text.txt").decode("utf-8")


def prompts_sha256(split: Split | None = None, path: str | Path | None = None) -> str:
    """Return the SHA-256 (64 hexadecimal digits) of the ids and texts of a split.

    The order and layout of the file do not matter; every change of a prompt does. The gate's
    error ledger is keyed to it.
    """
    rows = sorted((row.id, row.topic, row.prompt) for row in load_prompts(split, path))
    return hashlib.sha256(json.dumps(rows).encode("ascii")).hexdigest()


def _packaged(name: str) -> bytes:
    return (resources.files("mlx_companion.loop") / "data" / name).read_bytes()


def _load(kind: type[_Row], name: str, path: str | Path | None, unique: str) -> tuple[_Row, ...]:
    where = Path(path or name)
    try:
        raw = _packaged(name) if path is None else where.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}; check the path", path=where) from error
    rows = tuple(_parse(kind, raw, where))
    if not rows:
        raise DataError("holds no rows; expected one JSON object per line", path=where)
    return _without_repeats(rows, unique, where)


def _parse(kind: type[_Row], raw: bytes, where: Path) -> Iterator[_Row]:
    # Split at line feeds only: a text may hold other separators that `splitlines` would cut at.
    for number, line in enumerate(raw.removesuffix(b"\n").split(b"\n"), start=1):
        yield _row(kind, _json(line, where, number), where, number)


def _json(line: bytes, where: Path, number: int) -> dict[str, Any]:
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError("not UTF-8; save the file as UTF-8", path=where, line=number) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON: {error}", path=where, line=number) from error
    if not isinstance(value, dict):
        problem = f"expected a JSON object, got {type(value).__name__}"
        raise DataError(problem, path=where, line=number)
    return value


def _row(kind: type[_Row], value: dict[str, Any], where: Path, number: int) -> _Row:
    names = [field.name for field in fields(kind)]
    for key in value:
        if key not in names:
            problem = f"unknown field{nearest(key, names)}"
            raise DataError(problem, path=where, line=number, field=key)
    for name in names:
        given = value.get(name)
        if not isinstance(given, str) or not given.strip():
            problem = f"is {given!r}; expected a non-empty text"
            raise DataError(problem, path=where, line=number, field=name)
    if "split" in value:
        _check_split(value["split"], where, number)
    return kind(**value)


def _check_split(split: str, where: Path | None = None, number: int | None = None) -> None:
    if split not in SPLITS:
        problem = f"is {split!r}; expected {' or '.join(SPLITS)}"
        raise DataError(problem, path=where, line=number, field="split")


def _without_repeats(rows: tuple[_Row, ...], unique: str, where: Path) -> tuple[_Row, ...]:
    for name in ("id", unique):
        seen: dict[str, int] = {}
        for number, row in enumerate(rows, start=1):
            value = " ".join(getattr(row, name).lower().split())
            if value in seen:
                problem = f"repeats line {seen[value]}; every row must differ"
                raise DataError(problem, path=where, line=number, field=name)
            seen[value] = number
    return rows
