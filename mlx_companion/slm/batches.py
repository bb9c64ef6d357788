"""A module over a file of JSON lines: each line comes out as it was, with the module's `result`.

    done = run_file(factory.get_module("research_classifier"), "x.jsonl", "y.jsonl")
    done.rows, done.failed, done.seconds

The file is read and written in batches, so its size does not matter, and the output appears whole
or not at all. A line that is malformed ends the run, with its file, line and field; so does one
with NaN or a number beyond all floats, which could not be written as JSON again. A line on which
the module itself fails is answered by its fallback, or has `result` null and `error` beside it.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple

from mlx_companion.errors import CompanionError, DataError
from mlx_companion.runtime.files import atomic_path
from mlx_companion.runtime.stop import NEVER, StopSwitch
from mlx_companion.slm.module import SLMModule
from mlx_companion.slm.outcomes import NonsenseError, checked
from mlx_companion.slm.results import ModuleResult
from mlx_companion.text.readers import data_files, read_rows

# What each module reads of a line: one of the first, any of the second.
FIELDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "research_classifier": (("query",), ("today", "cutoff")),
    "personality_guard": (("text",), ("user_name", "prompt")),
    "context_tracker": (("turns", "text"), ("now", "known", "conversation")),
    "drift_monitor": (("responses", "text"), ("baseline", "messages", "text")),
}
_KINDS: dict[str, type] = {
    **dict.fromkeys(("turns", "responses", "baseline", "messages"), list),
    "known": dict,
}
_NAMES = {
    str: "a text",
    list: "a list",
    dict: "an object",
    bool: "true or false",
    int: "a number",
    float: "a number",
    type(None): "null",
}


@dataclass(frozen=True)
class FileRun:
    """What came of a file.

    Attributes:
        rows: lines written.
        fallbacks: of them, answered by a fallback.
        failed: of them, without a result.
        seconds: of the module's own work.
    """

    rows: int
    fallbacks: int
    failed: int
    seconds: float


class _Line(NamedTuple):
    """One line of the file: where it is, what it holds, and what the module is to read."""

    number: int
    row: dict[str, Any]
    item: Any


class _Answer(NamedTuple):
    result: ModuleResult | None
    error: str | None = None


def run_file(
    module: SLMModule[Any],
    source: str | Path,
    out: str | Path,
    *,
    batch_size: int | Callable[[], int] = 32,
    progress: Callable[[int], None] | None = None,
    stop: StopSwitch = NEVER,
) -> FileRun:
    """Process every line of a file.

    Args:
        module: what processes them.
        source: .jsonl, .json or .csv with the module's field (see `FIELDS`).
        out: the JSON lines to write; it may be `source` itself.
        batch_size: lines at once; a function is asked before each batch.
        progress: told how many lines are done, after each batch.
        stop: looked at between batches.

    Raises:
        DataError: a line that cannot be read or lacks the field; nothing is written.
        DiskFullError: no space; an older file is untouched.
        Stopped: a stop was asked for; nothing is written.
    """
    source = Path(source)
    lines = _lines(source, module.name)
    rows = fallbacks = failed = 0
    seconds = 0.0
    with atomic_path(out) as temporary, temporary.open("wb") as file:
        while batch := list(islice(lines, _size(batch_size))):
            stop.check()
            began = time.perf_counter()
            answers = answer_all(module, [line.item for line in batch], _locator(source, batch))
            seconds += time.perf_counter() - began
            _write(file, batch, answers)
            rows += len(batch)
            failed += sum(answer.result is None for answer in answers)
            fallbacks += sum(a.result is not None and a.error is not None for a in answers)
            if progress is not None:
                progress(rows)
    return FileRun(rows, fallbacks, failed, seconds)


def answer_all(
    module: SLMModule[Any], items: Sequence[Any], located: Callable[[int, DataError], DataError]
) -> list[_Answer]:
    """A module's answer to each item; those on which it fails alone get its fallback's.

    Args:
        module: what answers.
        items: inputs.
        located: gives an input's error its place.

    Raises:
        DataError: an item is not what the module reads.
    """
    try:
        return [_Answer(result) for result in _whole(module, items)]
    except Exception:
        # Which of them it was is found out one by one.
        return [_answer_one(module, item, at, located) for at, item in enumerate(items)]


def item_of(name: str, row: dict[str, Any]) -> Any:
    """What a module reads of a row; a bare text where that is all there is.

    Raises:
        DataError: the field is missing or of the wrong type; names the field.
    """
    needed, optional = FIELDS.get(name, (("text",), ()))
    key = next((one for one in needed if row.get(one) is not None), None)
    if key is None:
        told = " or ".join(f"'{one}'" for one in needed)
        lacks = "null" if needed[0] in row else "missing"
        raise DataError(f"it is {lacks}; {name} reads {told}", field=needed[0])
    found = {one: row[one] for one in (key, *optional) if row.get(one) is not None}
    for one, value in found.items():
        kind = _KINDS.get(one, str)
        if not isinstance(value, kind):
            raise DataError(f"it is {_named(value)}; expected {_NAMES[kind]}", field=one)
    if len(found) == 1 and key in ("query", "text", "turns") and name != "drift_monitor":
        return found[key]
    return found


def check_numbers(row: dict[str, Any]) -> None:
    """Refuse what Python reads as a number and JSON has none for.

    Raises:
        DataError: NaN, an infinity, or a number such as 1e400; names the field.
    """
    for name, held in row.items():
        # A list of what is left to look at: a line may be nested as deeply as JSON is read.
        rest = [held]
        while rest:
            value = rest.pop()
            if isinstance(value, dict):
                rest.extend(value.values())
            elif isinstance(value, list):
                rest.extend(value)
            elif isinstance(value, float) and not math.isfinite(value):
                told = "it is" if value is held else "it holds"
                problem = f"{told} NaN or beyond the largest float (1.8e308); write null"
                raise DataError(problem, field=name)


def _lines(source: Path, name: str) -> Iterator[_Line]:
    if source.is_dir():
        raise DataError("it is a folder; give one file of JSON lines", path=source)
    data_files(source)
    for row in read_rows(source):
        if isinstance(row.value, DataError):
            raise row.value
        if not isinstance(row.value, dict):
            problem = f"it is {_named(row.value)}; expected an object {{...}} on each line"
            raise DataError(problem, path=source, line=row.line)
        try:
            check_numbers(row.value)
            item = item_of(name, row.value)
        except DataError as error:
            raise _at(source, row.line, error) from error
        yield _Line(row.line, row.value, item)


def _locator(path: Path, batch: Sequence[_Line]) -> Callable[[int, DataError], DataError]:
    return lambda at, error: _at(path, batch[at].number, error)


def _at(path: Path, number: int, error: DataError) -> DataError:
    """The error with its place in the file, in the stead of the one that it names itself."""
    problem = str(error)
    if error.field is not None:
        problem = problem.partition(f"field '{error.field}': ")[2] or problem
    elif error.line is not None:
        problem = problem.partition(f":{error.line}: ")[2] or problem
    return DataError(problem, path=path, line=number, field=error.field)


def _named(value: Any) -> str:
    """What JSON calls a value."""
    return _NAMES.get(type(value), type(value).__name__)


def _whole(module: SLMModule[Any], items: Sequence[Any]) -> list[ModuleResult]:
    results = list(module.process_batch(items))
    if len(results) != len(items):
        raise NonsenseError(f"{module.name} gave {len(results)} results for {len(items)} inputs")
    return [checked(module.name, one) for one in results]


def _answer_one(
    module: SLMModule[Any], item: Any, at: int, located: Callable[[int, DataError], DataError]
) -> _Answer:
    try:
        return _Answer(_whole(module, [item])[0])
    except DataError as error:
        raise located(at, error) from error
    except Exception as error:
        told = (
            str(error) if isinstance(error, CompanionError) else f"{type(error).__name__}: {error}"
        )
    try:
        instead = module.fallback(item)
        return _Answer(None if instead is None else checked(module.name, instead), told)
    except Exception:
        return _Answer(None, told)


def _write(file: IO[bytes], batch: Iterable[_Line], answers: Iterable[_Answer]) -> None:
    for line, answer in zip(batch, answers, strict=True):
        result = None if answer.result is None else answer.result.to_dict()
        row = line.row | {"result": result}
        if answer.error is not None:
            row["error"] = answer.error
        file.write(_encoded(row) + b"\n")


def _encoded(row: dict[str, Any]) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        # Half of a surrogate pair came in as an escape, and can go out only as one.
        return json.dumps(row).encode()


def _size(batch_size: int | Callable[[], int]) -> int:
    return max(1, batch_size() if callable(batch_size) else batch_size)
