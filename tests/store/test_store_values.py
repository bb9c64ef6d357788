"""Ids, times, JSON and text as the database keeps them."""

from __future__ import annotations

import dataclasses
import json
import math
import uuid
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_companion.errors import DataError
from mlx_companion.store import values


def test_ids_are_version_7_and_sort_by_creation() -> None:
    ids = [values.new_id() for _ in range(2000)]
    assert ids == sorted(set(ids))
    assert {uuid.UUID(hex=one).version for one in ids} == {7}
    assert {uuid.UUID(hex=one).variant for one in ids} == {uuid.RFC_4122}


def test_time_never_stands_still_or_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    first = values.now()
    monkeypatch.setattr(values.time, "time_ns", lambda: 1_000_000_000)  # 1970
    assert first < values.now() < values.now()


@pytest.mark.parametrize(
    ("given_time", "stored"),
    [
        ("2026-01-31T09:00:00Z", "2026-01-31T09:00:00.000000+00:00"),
        ("2026-01-31T09:00:00.5+02:00", "2026-01-31T07:00:00.500000+00:00"),
        ("2026-01-31 09:00:00", "2026-01-31T09:00:00.000000+00:00"),
        ("2026-01-31", "2026-01-31T00:00:00.000000+00:00"),
    ],
)
def test_times_become_utc_of_one_width(given_time: str, stored: str) -> None:
    assert values.canonical_time(given_time) == stored


@pytest.mark.parametrize("wrong", ["", "yesterday", "2026-13-01", 7, "0001-01-01T00:00+14:00"])
def test_what_is_no_time_is_refused(wrong: object) -> None:
    with pytest.raises(DataError, match=r"field 'created_at'.*is not a time"):
        values.canonical_time(wrong)  # type: ignore[arg-type]


def test_json_takes_what_numbers_and_paths_come_as() -> None:
    @dataclasses.dataclass
    class Settings:
        rate: float
        folder: Path

    text = values.dump_json(
        {
            "settings": Settings(0.5, Path("a/b")),
            "scalar": np.float32(1.5),
            "array": np.arange(3),
            "tuple": (1, "two"),
            "set": {2, 1},
            "broken": [math.nan, math.inf, -math.inf],
            7: "number as key",
        }
    )
    assert json.loads(text) == {
        "settings": {"rate": 0.5, "folder": "a/b"},
        "scalar": 1.5,
        "array": [0, 1, 2],
        "tuple": [1, "two"],
        "set": [1, 2],
        "broken": [None, None, None],
        "7": "number as key",
    }


def test_json_refuses_what_has_no_form() -> None:
    loop: list[object] = []
    loop.append(loop)
    for wrong in (object(), {"a": b"bytes"}, loop):
        with pytest.raises(DataError, match=r"field 'meta'.*no JSON form"):
            values.dump_json(wrong, "meta")


def test_a_lone_surrogate_is_refused_with_its_place() -> None:
    with pytest.raises(DataError, match=r"'\\ud83d' at character 4.*half of a UTF-16 pair"):
        values.check_text("abc\ud83d")
    with pytest.raises(DataError, match="surrogate"):
        values.dump_json({"deep": ["\udc00"]})
    with pytest.raises(DataError, match="surrogate"):
        values.sha256_text("\udc00")


@given(st.lists(st.text(), max_size=4), st.lists(st.text(), max_size=4))
def test_the_hash_tells_every_split_apart(first: list[str], second: list[str]) -> None:
    assert (values.sha256_text(*first) == values.sha256_text(*second)) == (first == second)


def test_an_empty_prompt_is_refused() -> None:
    for empty in ("", " \n\t", "\u2003"):
        with pytest.raises(DataError, match=r"field 'prompt'.*it is empty"):
            values.check_prompt(empty)
