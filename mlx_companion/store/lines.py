"""Reading an import file line by line: decoding, checking, and planning the rows to write.

Why two passes: the first finds every mistake before anything is written, the second hands over
the rows; a file of any length is thus read in bounded memory (only ids are kept).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlx_companion.errors import DataError, StoreError
from mlx_companion.store.chatlines import read_chat
from mlx_companion.store.database import Database
from mlx_companion.store.kinds import HEADER, KINDS, Kind, check_fields, columns_of

FORMAT = "mlx-companion"
FORMAT_VERSION = 1

Planned = tuple[Kind, dict[str, Any]]


class Lines:
    """The lines of one file to import.

    Args:
        database: gives the columns, and the rows that lines may refer to.
        path: the file.
    """

    def __init__(self, database: Database, path: Path) -> None:
        self._db = database
        self._path = path
        self._columns = {kind.name: columns_of(database, kind) for kind in KINDS.values()}

    def check(self) -> int:
        """Check every line and every reference; the number of rows.

        Raises:
            DataError: something is wrong; names file, line and field.
            StoreError: the file cannot be read.
        """
        ids: set[tuple[str, str]] = set()
        wanted: dict[tuple[str, str], tuple[int, str]] = {}
        count = 0
        for number, (kind, values) in self.planned():
            count += 1
            if kind.key == ("id",):
                ids.add((kind.name, values["id"]))
            for name, other in kind.refs.items():
                if values.get(name) is not None:
                    wanted.setdefault((other, values[name]), (number, name))
        for (name, row_id), (number, column) in wanted.items():
            if (name, row_id) not in ids and not self._stored(name, row_id):
                raise DataError(
                    f"there is no {name} '{row_id}' in the file or in the store",
                    path=self._path,
                    line=number,
                    field=column,
                )
        return count

    def planned(self) -> Iterator[tuple[int, Planned]]:
        """Each row to write with the number of its line."""
        try:
            with self._path.open("rb") as file:
                for number, raw in enumerate(file, start=1):
                    if raw.strip():
                        for planned in self._plan(raw, number):
                            yield number, planned
        except OSError as error:
            raise StoreError(f"cannot read {self._path}: {error.strerror}") from error

    def _plan(self, raw: bytes, number: int) -> list[Planned]:
        try:
            item = _decode(raw)
            if "kind" not in item:
                return [(KINDS[name], values) for name, values in read_chat(item)]
            if item["kind"] == HEADER:
                return _check_header(item)
            return [self._row(item)]
        except DataError as error:
            raise DataError(
                _problem(error), path=self._path, line=number, field=error.field
            ) from error

    def _row(self, item: dict[str, Any]) -> Planned:
        name, row = item["kind"], item.get("row")
        if not isinstance(name, str) or name not in KINDS:
            raise DataError(f"{name!r} is none of {', '.join(KINDS)}", field="kind")
        if not isinstance(row, dict):
            raise DataError("expected an object with the row's columns", field="row")
        return KINDS[name], check_fields(KINDS[name], self._columns[name], row)

    def _stored(self, kind: str, row_id: str) -> bool:
        return bool(
            self._db.value(
                f"SELECT EXISTS (SELECT 1 FROM {KINDS[kind].table} WHERE id = ?)", (row_id,)
            )
        )


def _decode(raw: bytes) -> dict[str, Any]:
    try:
        item = json.loads(raw.decode("utf-8-sig"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise DataError(
            f"it is not UTF-8 (byte {error.start + 1} of the line); save the file as UTF-8"
        ) from error
    except RecursionError as error:
        raise DataError("it is nested too deeply") from error
    except json.JSONDecodeError as error:
        raise DataError(f"it is not JSON: {error.msg} at character {error.colno}") from error
    except ValueError as error:
        raise DataError(f"it holds a number that cannot be read: {error}") from error
    if not isinstance(item, dict):
        raise DataError('expected one JSON object per line, such as {"prompt": ..., ...}')
    return item


def _refuse_constant(name: str) -> None:
    raise DataError(f"{name} is not JSON; write null instead")


def _check_header(item: dict[str, Any]) -> list[Planned]:
    row = item.get("row")
    if not isinstance(row, dict) or row.get("format") != FORMAT:
        raise DataError(f"expected the format '{FORMAT}'", field="format")
    version = row.get("version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise DataError(
            f"the file has format version {version!r}, but this mlx-companion reads only up to "
            f"{FORMAT_VERSION}; upgrade it (pip install -U mlx-companion)",
            field="version",
        )
    return []


def _problem(error: DataError) -> str:
    """The message of `error` without the place, which is about to be written anew."""
    return str(error).partition(": ")[2] if error.field else str(error)
