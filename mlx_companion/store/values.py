"""Values as the database keeps them: ids, times, JSON and text.

Why: every table needs the same four conversions, and a mistake in one of them (a clock that
went back, a NaN inside JSON, half of a surrogate pair) is found years later. They live here
once and every part of the store uses them.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import hashlib
import json
import math
import secrets
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx_companion.errors import DataError

EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
MAX_INT = 2**63 - 1

_clock = threading.Lock()
_last_microsecond = 0


def new_id() -> str:
    """A fresh row id: 32 hex digits in the layout of UUID version 7, so ids sort by time.

    Source: RFC 9562, section 5.7 (48 bits of milliseconds, 12 bits below, 62 random bits).
    """
    milliseconds, microseconds = divmod(_tick(), 1000)
    fraction = microseconds * 4096 // 1000
    high = (milliseconds & (2**48 - 1)) << 16 | 0x7 << 12 | fraction
    low = 0b10 << 62 | secrets.randbits(62)
    return f"{high:016x}{low:016x}"


def now() -> str:
    """The present in ISO 8601, UTC, with microseconds."""
    return format_time(EPOCH + dt.timedelta(microseconds=_tick()))


def _tick() -> int:
    """Microseconds since 1970, strictly increasing within a process.

    Two turns of one conversation therefore sort as they happened even when the system clock
    is set back between them.
    """
    global _last_microsecond
    with _clock:
        _last_microsecond = max(time.time_ns() // 1000, _last_microsecond + 1)
        return _last_microsecond


def format_time(moment: dt.datetime) -> str:
    """`moment` (aware) as text of fixed width, which therefore sorts by time."""
    return moment.astimezone(dt.UTC).isoformat(timespec="microseconds")


def canonical_time(text: str, field: str = "created_at") -> str:
    """`text` (ISO 8601; without an offset it is read as UTC) in the form of `now`.

    Raises:
        DataError: `text` is not a time.
    """
    try:
        moment = dt.datetime.fromisoformat(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=dt.UTC)
        return format_time(moment)
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(
            f"{text!r} is not a time; expected ISO 8601 such as 2026-01-31T09:00:00+00:00",
            field=field,
        ) from error


def sha256_text(*parts: str | None) -> str:
    """SHA-256 (hex) over `parts`, told apart from every other split of the same characters.

    A lone surrogate, which UTF-8 cannot hold, raises DataError as everywhere in the store.
    """
    text = json.dumps(parts, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(check_text(text).encode()).hexdigest()


def check_text(text: str, field: str | None = None) -> str:
    """`text` itself when UTF-8 can hold it.

    Raises:
        DataError: it is not a string, or holds a lone surrogate.
    """
    if not isinstance(text, str):
        raise DataError(f"expected text, got {type(text).__name__}", field=field)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(surrogate_problem(error), field=field) from error
    return text


def surrogate_problem(error: UnicodeEncodeError) -> str:
    """What to tell a person about text that cannot be written as UTF-8."""
    return (
        f"the text holds a lone surrogate {error.object[error.start]!a} at character "
        f"{error.start + 1}, half of a UTF-16 pair, which is no character; remove it or "
        'decode the source with errors="replace"'
    )


def check_prompt(text: str, field: str = "prompt") -> str:
    """`text` itself when it says something.

    Raises:
        DataError: it is empty, only white space, or cannot be stored.
    """
    if not check_text(text, field).strip():
        raise DataError("it is empty; give at least one visible character", field=field)
    return text


def dump_json(value: Any, field: str | None = None) -> str:
    """`value` as strict JSON text.

    Paths, dataclasses, sets, tuples and NumPy or MLX values become their plain counterparts.
    A number that JSON cannot hold (NaN, infinity) becomes null: a broken measurement must not
    keep the rest of the record from being stored.

    Raises:
        DataError: something in `value` has no JSON form, or its text cannot be stored.
    """
    try:
        text = json.dumps(_plain(value), ensure_ascii=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"this has no JSON form: {error}", field=field) from error
    return check_text(text, field)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(_plain(item) for item in value)
    if isinstance(value, Path):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(dataclasses.asdict(value))
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return value
