"""Numbers are written for people, and what is not a number is a dash."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_companion.loop import formats

SPACE = "\u00a0"
NOTHING = [None, float("nan"), math.inf, -math.inf, "0.5", True, [], {}]


def spaced(text: str) -> str:
    return text.replace(SPACE, " ")


@pytest.mark.parametrize("value", NOTHING, ids=str)
@pytest.mark.parametrize(
    "write",
    [
        formats.number, formats.share, formats.points, formats.change, formats.p_value,
        formats.count, formats.seconds, formats.megabytes,
    ],
    ids=lambda write: write.__name__,
)  # fmt: skip
def test_what_is_not_a_number_is_a_dash(write: Any, value: Any) -> None:
    assert write(value) == formats.DASH


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 %"), (1, "100 %"), (0.706, "71 %"), (0.994, "99 %"), (0.9951, "99.5 %"),
        (0.9999, "99.9 %"), (0.004, "0.4 %"), (0.005, "0.5 %"), (0.0004, "< 0.1 %"),
        (0.995, "99.5 %"), (-0.12, "−12 %"), (np.float32(0.25), "25 %"),
    ],
)  # fmt: skip
def test_shares(value: float, text: str) -> None:
    assert spaced(formats.share(value)) == text


@given(st.floats(0, 1, exclude_min=True, exclude_max=True))
def test_only_all_and_none_are_written_so(value: float) -> None:
    assert spaced(formats.share(value)) not in {"0 %", "0.0 %", "100 %", "100.0 %"}


@pytest.mark.parametrize(
    ("value", "text"), [(0.512, "+51"), (-0.03, "−3"), (0, "±0"), (0.001, "±0"), (-0.001, "±0")]
)
def test_changes(value: float, text: str) -> None:
    assert formats.change(value) == text
    assert spaced(formats.points(value)) == f"{text} points"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.5, "0.50"), (0.034, "0.034"), (0.001, "0.001"), (3.14e-20, "3.1 × 10⁻²⁰"), (0, "0"),
        (1, "1.00"), (0.00099, "9.9 × 10⁻⁴"),
    ],
)  # fmt: skip
def test_probabilities(value: float, text: str) -> None:
    assert spaced(formats.p_value(value)) == text


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (20.123, 1, "20.1"), (-0.001, 2, "0.00"), (-1.5, 1, "−1.5"), (2.97e7, 1, "3.0 × 10⁷"),
        (-3e5, 2, "−3.0 × 10⁵"), (np.float64(2), 0, "2"),
    ],
)  # fmt: skip
def test_numbers(value: float, digits: int, text: str) -> None:
    assert spaced(formats.number(value, digits)) == text


def test_a_signed_number_has_its_sign() -> None:
    assert formats.number(0.021, 3, signed=True) == "+0.021"
    assert formats.number(-0.03, 3, signed=True) == "−0.030"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.24, "0.2 s"), (9.96, "10 s"), (59.4, "59 s"), (59.6, "1 min 0 s"),
        (655.1, "10 min 55 s"), (3599.6, "1 h 0 min"), (7500, "2 h 5 min"), (-1, "–"),
    ],
)  # fmt: skip
def test_durations(value: float, text: str) -> None:
    assert spaced(formats.seconds(value)) == text


def test_sizes_and_counts() -> None:
    assert spaced(formats.megabytes(850)) == "850 MB"
    assert spaced(formats.megabytes(2912)) == "2.9 GB"
    assert formats.count(12345) == "12,345"
    assert spaced(formats.plural(1, "rule")) == "1 rule"
    assert spaced(formats.plural(0, "reply", "replies")) == "0 replies"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("2025-10-03T14:02:11+00:00", "3 October 2025, 14:02 UTC"),
        ("2025-10-03T14:02:11", "3 October 2025, 14:02"),
        ("yesterday", "yesterday"), ("", "–"), (None, "–"),
    ],
)  # fmt: skip
def test_times(value: Any, text: str) -> None:
    assert formats.when(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3e-4, "0.0003"), (16.0, "16"), (True, "yes"), (False, "no"), (None, "–"), ("", "–"),
        (["q_proj", 2, None], "q_proj, 2, –"), ([], "–"),
    ],
)  # fmt: skip
def test_settings_are_exact(value: Any, text: str) -> None:
    assert formats.setting(value) == text


@pytest.mark.parametrize("bounds", [None, [], [1], ["a", 2], [None, 0.1], 3])
def test_an_interval_needs_both_ends(bounds: Any) -> None:
    assert formats.interval(bounds) == formats.DASH


def test_an_interval() -> None:
    assert spaced(formats.interval([-0.12, 0.02])) == "−12 to +2 points"
