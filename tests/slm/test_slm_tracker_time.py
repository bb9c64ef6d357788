"""Times in messages, against moments reckoned by hand."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_companion.slm.tracker_time import part_of_day, time_markers

NOW = datetime(2026, 3, 4, 9, 30)  # a Wednesday


@pytest.mark.parametrize(
    ("text", "start", "kind"),
    [
        ("call mum tomorrow at 5pm", "2026-03-05T17:00:00", "point"),
        ("tomorrow, 10am, please", "2026-03-05T10:00:00", "point"),
        ("at 6 on friday", "2026-03-06T18:00:00", "point"),
        ("last week was rough", "2026-02-23T00:00:00", "range"),
        ("next monday morning", "2026-03-09T06:00:00", "range"),
        ("last friday", "2026-02-27T00:00:00", "day"),
        ("in two hours", "2026-03-04T11:30:00", "point"),
        ("3 days ago", "2026-03-01T00:00:00", "day"),
        ("on May 12, 2025", "2025-05-12T00:00:00", "day"),
        ("the 5th of may", "2026-05-05T00:00:00", "day"),
        ("december 30", "2025-12-30T00:00:00", "day"),
        ("tonight at 9", "2026-03-04T21:00:00", "point"),
        ("last night", "2026-03-03T20:00:00", "range"),
        ("next month", "2026-04-01T00:00:00", "range"),
        ("due 2026-04-01", "2026-04-01T00:00:00", "day"),
        ("lunch at noon", "2026-03-04T12:00:00", "point"),
        ("at 8am", "2026-03-05T08:00:00", "point"),
    ],
)
def test_times_are_resolved(text, start, kind):
    (found,) = time_markers(text, NOW)
    assert (found["start"], found["kind"]) == (start, kind)
    assert text[slice(*found["span"])] == found["text"]


@pytest.mark.parametrize(
    "text",
    ["I have 5 apples and 12 eggs", "the sun sat on the wed hill", "may I ask", "at 50% off",
     "march 45", "2026-13-45", "room 101", "a 9 to 5 job"],
)  # fmt: skip
def test_what_is_no_time_is_left(text):
    assert time_markers(text, NOW) == []


def test_an_hour_without_half_is_told_as_assumed():
    assert time_markers("tomorrow at 5", NOW)[0]["assumed"]
    assert not time_markers("tomorrow at 17:00", NOW)[0]["assumed"]


@given(st.text(max_size=60), st.datetimes(datetime(1990, 1, 1), datetime(2090, 1, 1)))
def test_any_text_at_any_moment_has_an_answer(text, now):
    for found in time_markers(f"{text} tomorrow", now):
        assert text is not None
        assert found["start"] <= found["end"]


@given(st.datetimes(datetime(1990, 1, 1), datetime(2090, 1, 1)))
def test_tomorrow_is_the_day_after(now):
    (found,) = time_markers("tomorrow", now)
    assert found["start"][:10] == (now + timedelta(days=1)).date().isoformat()


def test_parts_of_the_day():
    hours = {3: "night", 8: "morning", 13: "afternoon", 19: "evening", 23: "night"}
    assert {h: part_of_day(NOW.replace(hour=h)) for h in hours} == hours
