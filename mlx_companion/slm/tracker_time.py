"""Times that a message speaks of, resolved against a given moment.

Deterministic: what a person means by "tomorrow at 5" does not depend on a model::

    now = datetime(2026, 3, 4, 9, 30)                    # a Wednesday
    time_markers("call mum tomorrow at 5pm", now)
    # [{"text": "tomorrow at 5pm", "kind": "point", "start": "2026-03-05T17:00:00",
    #   "end": "2026-03-05T17:00:00", "span": [9, 24]}]

An hour without "am" or "pm" is read as of the day (1 to 6 mean the afternoon), and says so by
`"assumed": true`. Months and days without a year are those nearest to now.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

_DAYS = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
_MONTHS = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
]
_NUMBERS = {
    w: n
    for n, w in enumerate(
        [
            "zero",
            "one",
            "two",
            "three",
            "four",
            "five",
            "six",
            "seven",
            "eight",
            "nine",
            "ten",
            "eleven",
            "twelve",
        ]
    )
} | {"a": 1, "an": 1, "a few": 3, "a couple of": 2, "a couple": 2}
_PARTS = {"morning": (6, 12), "afternoon": (12, 18), "evening": (18, 22), "night": (20, 24)}
_UNITS = {"minute": 1, "min": 1, "hour": 60, "hr": 60, "day": 1440, "week": 10080}
_COUNT = rf"\d{{1,3}}|{'|'.join(sorted(_NUMBERS, key=len, reverse=True))}"
_DAY = rf"(?:{'|'.join(_DAYS)}|mon|tues?|wed|thurs?|fri|sat|sun)"
_CLOCK = (
    r"(?P<hour>\d{1,2})(?:[:.](?P<minute>\d{2}))?\s?(?P<half>a\.?m\.?|p\.?m\.?)?(?:\s?o['’]?clock)?"
)
_PART = "|".join(_PARTS)
_RELATIVE = rf"""
 (?P<near>today|tonight|tonite|tomorrow|tmrw|tmr|2moro|yesterday)
 (?:\s(?P<part>{_PART}))?
 |(?P<this>this)\s(?P<part2>{_PART})
 |last\s(?P<lastnight>night)
 |(?P<which>this|next|last|on|every)?\s?\b(?P<weekday>{_DAY})\b(?:\s(?P<part3>{_PART}))?
 |(?P<which2>this|next|last)\s(?P<unit>week|weekend|month|year)
 |in\s(?P<ahead>{_COUNT})\s(?P<ahead_unit>minutes?|mins?|hours?|hrs?|days?|weeks?|months?|years?)
 |(?P<back>{_COUNT})\s(?P<back_unit>minutes?|mins?|hours?|hrs?|days?|weeks?|months?|years?)\sago
 |(?P<month>{"|".join(_MONTHS)})\s(?P<day>\d{{1,2}})(?:st|nd|rd|th)?\b(?:,?\s(?P<year>\d{{4}}))?
 |(?P<day2>\d{{1,2}})(?:st|nd|rd|th)?\s(?:of\s)?(?P<month2>{"|".join(_MONTHS)})(?:\s(?P<year2>\d{{4}}))?
 |(?P<iso>\d{{4}}-\d\d-\d\d)
"""
_DATE = re.compile(rf"\b(?:{_RELATIVE})\b", re.IGNORECASE | re.VERBOSE)
_AT = re.compile(
    rf"\b(?:(?P<at>at|by|around|until|till|from|@)\s?{_CLOCK}(?![\d/%$€£])"
    r"|(?P<noon>noon|midnight|midday))(?!\w)",
    re.IGNORECASE,
)
_BARE = re.compile(
    r"\b(?P<hour>\d{1,2})(?:[:.](?P<minute>\d{2}))?\s?(?P<half>a\.?m\.?|p\.?m\.?)(?!\w)"
    r"|\b(?P<hour2>[01]?\d|2[0-3]):(?P<minute2>[0-5]\d)\b",
    re.IGNORECASE,
)


def time_markers(text: str, now: datetime) -> list[dict[str, Any]]:
    """Times in `text`, in order of place.

    Args:
        text: a message.
        now: the moment it was said, in the person's own time.

    Returns:
        Items with `text`, `span` [start, end), `kind` ("point", "day" or "range"), `start` and
        `end` in ISO 8601 without a zone (that of `now`), and `assumed`.
    """
    found: list[dict[str, Any]] = []
    used = 0
    for match in _DATE.finditer(text):
        period = _period(match, now)
        if period is None or match.start() < used:
            continue
        clock = _clock_after(text, match.end()) or _clock_before(text, match.start())
        item = _joined(text, match, period, clock)
        found.append(item)
        used = item["span"][1]
    found += _clocks_alone(text, found, now)
    return sorted(found, key=lambda item: item["span"])


def part_of_day(now: datetime) -> str:
    """ "night", "morning", "afternoon" or "evening"."""
    for name, (first, last) in _PARTS.items():
        if first <= now.hour < last and name != "night":
            return name
    return "night"


def _clock_after(text: str, at: int) -> re.Match[str] | None:
    gap = re.match(r"[\s,]*", text[at:])
    start = at + (gap.end() if gap else 0)
    return _AT.match(text, start) or _BARE.match(text, start)


def _clock_before(text: str, at: int) -> re.Match[str] | None:
    for pattern in (_AT, _BARE):
        for match in pattern.finditer(text, max(0, at - 24), at):
            if not text[match.end() : at].strip(" ,") or text[match.end() : at].strip() == "on":
                return match
    return None


def _joined(
    text: str,
    match: re.Match[str],
    period: tuple[datetime, datetime],
    clock: re.Match[str] | None,
) -> dict[str, Any]:
    time = None if clock is None else _clock(clock, match.groupdict())
    if clock is None or time is None:
        kind = "day" if period[1] - period[0] == timedelta(days=1) else "range"
        kind = "point" if period[0] == period[1] else kind
        return _item(text, match.start(), match.end(), kind, period, assumed=False)
    hour, minute, assumed = time
    point = period[0].replace(hour=hour, minute=minute, second=0)
    start, end = min(match.start(), clock.start()), max(match.end(), clock.end())
    return _item(text, start, end, "point", (point, point), assumed=assumed)


def _clocks_alone(text: str, taken: list[dict[str, Any]], now: datetime) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for pattern in (_AT, _BARE):
        for match in pattern.finditer(text):
            inside = [i for i in (*taken, *found) if i["span"][0] < match.end()]
            time = _clock(match, {})
            if time is None or any(i["span"][1] > match.start() for i in inside):
                continue
            point = now.replace(hour=time[0], minute=time[1], second=0, microsecond=0)
            point += timedelta(days=int(point < now))
            span = (match.start(), match.end())
            found.append(_item(text, *span, "point", (point, point), assumed=time[2]))
    return found


def _clock(match: re.Match[str], date: dict[str, str | None]) -> tuple[int, int, bool] | None:
    """Hour, minute, and whether the half of the day was assumed; None for no time of day."""
    groups = match.groupdict()
    if groups.get("noon"):
        return (0, 0, False) if groups["noon"].lower() == "midnight" else (12, 0, False)
    if groups.get("hour2"):
        return int(groups["hour2"]), int(groups["minute2"]), False
    hour, minute = int(groups["hour"]), int(groups.get("minute") or 0)
    half = (groups.get("half") or "").lower()[:1]
    if hour > (12 if half else 23) or minute > 59:
        return None
    if half:
        return hour % 12 + 12 * (half == "p"), minute, False
    part = date.get("part") or date.get("part2") or date.get("part3")
    late = part in ("evening", "night", "afternoon") or date.get("near") in ("tonight", "tonite")
    if hour <= 12 and (late or (1 <= hour <= 6 and part != "morning")):
        return hour % 12 + 12, minute, not late
    return hour, minute, hour <= 12 and part is None


def _period(match: re.Match[str], now: datetime) -> tuple[datetime, datetime] | None:
    groups = {k: v.lower() for k, v in match.groupdict().items() if v}
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    for name, read in _READERS.items():
        if name in groups:
            try:
                return read(groups, now, midnight)
            except (ValueError, OverflowError):
                return None
    return None


Period = tuple[datetime, datetime]
Groups = dict[str, str]


def _near(groups: Groups, now: datetime, midnight: datetime) -> Period:
    offset = {"yesterday": -1, "today": 0, "tonight": 0, "tonite": 0}.get(groups["near"], 1)
    part = "night" if groups["near"].startswith("toni") else groups.get("part")
    return _hours(midnight + timedelta(days=offset), part)


def _hours(day: datetime, part: str | None) -> Period:
    first, last = _PARTS.get(part or "", (0, 24))
    return day + timedelta(hours=first), day + timedelta(hours=last)


def _weekday(groups: Groups, now: datetime, midnight: datetime) -> Period | None:
    which, name = groups.get("which"), groups["weekday"]
    # "sun", "sat" and "wed" are words as well: alone they are no day.
    if which is None and name not in _DAYS:
        return None
    wanted = next(n for n, day in enumerate(_DAYS) if day.startswith(name[:3]))
    ahead = (wanted - now.weekday()) % 7
    if which == "last":
        ahead = ahead - 7
    elif which == "next":
        # Of the coming week: seven days after this week's.
        ahead = wanted - now.weekday() + 7
    return _hours(midnight + timedelta(days=ahead), groups.get("part3"))


def _unit(groups: Groups, now: datetime, midnight: datetime) -> Period:
    step = {"this": 0, "next": 1, "last": -1}[groups["which2"]]
    unit = groups["unit"]
    if unit == "year":
        year = midnight.replace(month=1, day=1, year=now.year + step)
        return year, year.replace(year=year.year + 1)
    if unit == "month":
        first = _month_later(midnight.replace(day=1), step)
        return first, _month_later(first, 1)
    monday = midnight - timedelta(days=now.weekday()) + timedelta(weeks=step)
    if unit == "weekend":
        return monday + timedelta(days=5), monday + timedelta(days=7)
    return monday, monday + timedelta(weeks=1)


def _month_later(day: datetime, months: int) -> datetime:
    at = day.year * 12 + day.month - 1 + months
    return day.replace(year=at // 12, month=at % 12 + 1, day=min(day.day, 28))


def _ahead(groups: Groups, now: datetime, midnight: datetime) -> Period:
    return _moved(groups["ahead"], groups["ahead_unit"], now, midnight, 1)


def _back(groups: Groups, now: datetime, midnight: datetime) -> Period:
    return _moved(groups["back"], groups["back_unit"], now, midnight, -1)


def _moved(count: str, unit: str, now: datetime, midnight: datetime, sign: int) -> Period:
    number = int(count) if count.isdigit() else _NUMBERS[count]
    unit = unit.rstrip("s")
    if unit in ("month", "year"):
        day = _month_later(midnight, sign * number * (12 if unit == "year" else 1))
        return day, day + timedelta(days=1)
    moment = now + sign * number * timedelta(minutes=_UNITS[unit])
    if unit in ("day", "week"):
        day = moment.replace(hour=0, minute=0, second=0, microsecond=0)
        return day, day + timedelta(days=1)
    return moment, moment


def _dated(groups: Groups, now: datetime, midnight: datetime) -> Period:
    month = _MONTHS.index(groups.get("month") or groups["month2"]) + 1
    day = int(groups.get("day") or groups["day2"])
    year = groups.get("year") or groups.get("year2")
    if year:
        found = midnight.replace(year=int(year), month=month, day=day)
    else:
        near = [midnight.replace(year=now.year + n, month=month, day=day) for n in (-1, 0, 1)]
        found = min(near, key=lambda d: abs(d - midnight))
    return found, found + timedelta(days=1)


def _iso(groups: Groups, now: datetime, midnight: datetime) -> Period:
    day = datetime.fromisoformat(groups["iso"]).replace(tzinfo=now.tzinfo)
    return day, day + timedelta(days=1)


_READERS: dict[str, Callable[[Groups, datetime, datetime], Period | None]] = {
    "near": _near,
    "this": lambda g, now, midnight: _hours(midnight, g["part2"]),
    "lastnight": lambda g, now, midnight: _hours(midnight - timedelta(days=1), "night"),
    "weekday": _weekday,
    "unit": _unit,
    "ahead": _ahead,
    "back": _back,
    "month": _dated,
    "month2": _dated,
    "iso": _iso,
}


def _item(
    text: str, start: int, end: int, kind: str, period: Period, *, assumed: bool
) -> dict[str, Any]:
    return {
        "text": text[start:end].strip(),
        "span": [start + len(text[start:end]) - len(text[start:end].lstrip()), end],
        "kind": kind,
        "start": period[0].isoformat(timespec="seconds"),
        "end": period[1].isoformat(timespec="seconds"),
        "assumed": assumed,
    }
