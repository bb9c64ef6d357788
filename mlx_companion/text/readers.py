"""Turn files into rows: the bytes-and-syntax half of reading training data.

A reader yields one `Row` per record of a file: its 1-based line (or item) number and
either the parsed value or the `DataError` that stands in its place. Errors travel as
values because a generator that raises is finished, and a caller that skips bad rows
must be able to read on. `records` gives the rows their meaning.

Streams in constant memory: jsonl and csv. A txt file is one document and a json file is
one value, so each of those is held whole.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_companion.errors import DataError

_BOM = b"\xef\xbb\xbf"
_CSV_FIELD_LIMIT = 64 * 1024 * 1024


@dataclass(frozen=True)
class Row:
    """One record of a file: where it is, and its value or what is wrong with it."""

    line: int
    value: Any


def data_files(path: Path) -> list[Path]:
    """List the data files under `path`, sorted, hidden files and folders left out.

    Args:
        path: a file (returned as is) or a folder (searched recursively).

    Raises:
        DataError: nothing there, an unknown kind of file, or a folder without data.
    """
    if path.is_dir():
        files = [f for f in path.rglob("*") if f.is_file() and _wanted(f.relative_to(path))]
        if not files:
            raise DataError(f"the folder holds no {_kinds()} file; put one there", path=path)
        return sorted(files, key=lambda f: f.relative_to(path).as_posix())
    if not path.is_file():
        raise DataError("no such file or folder; check the path", path=path)
    if path.suffix.lower() not in READERS:
        given = path.suffix or "no suffix"
        raise DataError(f"cannot read this kind of file ({given}); use {_kinds()}", path=path)
    return [path]


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of one file, by the reader that its suffix names."""
    try:
        yield from READERS[path.suffix.lower()](path)
    except OSError as error:
        yield Row(0, DataError(f"cannot be read ({error.strerror or error})", path=path))


def _wanted(relative: Path) -> bool:
    hidden = any(part.startswith(".") for part in relative.parts)
    return not hidden and relative.suffix.lower() in READERS


def _kinds() -> str:
    return ", ".join(sorted(READERS))


def _decoded_lines(path: Path) -> Iterator[tuple[int, str | DataError]]:
    """Yield (line number, text with its line ending, or the error in its place)."""
    offset = 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            start = offset
            offset += len(raw)
            if number == 1 and raw.startswith(_BOM):
                raw, start = raw[len(_BOM) :], len(_BOM)
            yield number, _decode(raw, path, number, start)


def _decode(raw: bytes, path: Path, line: int, start: int) -> str | DataError:
    nul = raw.find(b"\0")
    if nul >= 0:
        problem = f"NUL byte at byte offset {start + nul}; this is not plain UTF-8 text"
        return DataError(problem, path=path, line=line)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = raw[error.start]
        problem = (
            f"not UTF-8: byte 0x{byte:02x} at byte offset {start + error.start} "
            f"({error.reason}); save the file as UTF-8"
        )
        return DataError(problem, path=path, line=line)


def _whole_text(path: Path) -> str:
    """The decoded text of a file.

    Raises:
        DataError: at the first line that is not UTF-8 text.
    """
    lines = []
    for _, text in _decoded_lines(path):
        if isinstance(text, DataError):
            raise text
        lines.append(text)
    return "".join(lines)


def _read_txt(path: Path) -> Iterator[Row]:
    try:
        text = _whole_text(path).replace("\r\n", "\n").strip()
    except DataError as error:
        yield Row(error.line or 1, error)
        return
    if text:
        yield Row(1, {"text": text})


def _read_jsonl(path: Path) -> Iterator[Row]:
    for line, text in _decoded_lines(path):
        if isinstance(text, DataError):
            yield Row(line, text)
        elif text.strip():
            yield Row(line, _parse_json(text.rstrip("\r\n"), path, line))


def _read_json(path: Path) -> Iterator[Row]:
    try:
        text = _whole_text(path)
    except DataError as error:
        yield Row(error.line or 1, error)
        return
    if not text.strip():
        return
    value = _parse_json(text, path, 1)
    if isinstance(value, list):
        for number, item in enumerate(value, start=1):
            yield Row(number, item)
    else:
        yield Row(1, value)


def _parse_json(text: str, path: Path, line: int) -> Any:
    """The parsed value, or a DataError that stands for it."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = line + error.lineno - 1
        return DataError(f"bad JSON at column {error.colno}: {error.msg}", path=path, line=where)
    except RecursionError:
        return DataError("bad JSON: nested too deeply", path=path, line=line)
    except ValueError as error:
        return DataError(f"bad JSON: {error}", path=path, line=line)


def _read_csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(max(csv.field_size_limit(), _CSV_FIELD_LIMIT))
    broken: list[DataError] = []
    reader = csv.reader(_csv_lines(path, broken), strict=True)
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            yield Row(line, DataError(f"bad CSV: {error}", path=path, line=line))
            continue
        if broken:
            yield from (Row(error.line or line, error) for error in broken)
            broken.clear()
        elif not any(cell.strip() for cell in cells):
            continue
        elif header is None:
            header = [cell.strip() for cell in cells]
            if len(set(header)) < len(header):
                problem = f"the header names a column twice: {header}"
                yield Row(line, DataError(problem, path=path, line=line))
                return
        else:
            yield Row(line, _csv_record(header, cells, path, line))


def _csv_lines(path: Path, broken: list[DataError]) -> Iterator[str]:
    """Lines for the csv module; an undecodable one is noted in `broken` and sent empty."""
    for _, text in _decoded_lines(path):
        if isinstance(text, DataError):
            broken.append(text)
            yield "\n"
        else:
            yield text


def _csv_record(header: list[str], cells: list[str], path: Path, line: int) -> Any:
    if len(cells) != len(header):
        problem = f"{len(cells)} cells where the header names {len(header)} columns"
        return DataError(problem, path=path, line=line)
    return dict(zip(header, cells, strict=True))


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".txt": _read_txt,
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
}
