"""How the loop writes numbers for people: once, here, for the report and the terminal alike.

Every function takes whatever a report dictionary may hold. What is missing, is not a number,
or is not finite becomes a dash, so that no caller has to ask first::

    share(0.706)          "71 %"
    points(0.512)         "+51 points"
    p_value(3.1e-20)      "3.1 x 10^-20", with raised digits
    share(None)           "–"
"""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any

__all__ = [
    "ARROW",
    "DASH",
    "SPACE",
    "change",
    "count",
    "ends",
    "interval",
    "megabytes",
    "number",
    "p_value",
    "plural",
    "points",
    "real",
    "seconds",
    "setting",
    "share",
    "when",
    "words",
]

DASH = "–"
MINUS = "\N{MINUS SIGN}"
ARROW = "\N{NO-BREAK SPACE}→\N{NO-BREAK SPACE}"
# Keeps a number and its unit on one line.
SPACE = "\N{NO-BREAK SPACE}"
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_MANY = 1e5


def real(value: Any) -> float | None:
    """The finite number that `value` is; None for anything else, a bool included."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return None
    try:
        converted = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return converted if math.isfinite(converted) else None


def number(value: Any, digits: int = 2, *, signed: bool = False) -> str:
    """With `digits` decimals; from 100,000 on as a power of ten."""
    found = real(value)
    if found is None:
        return DASH
    if abs(found) >= _MANY:
        return _power_of_ten(found)
    return _typographic(f"{found:{'+' if signed else ''}.{digits}f}")


def share(value: Any) -> str:
    """A share in 0..1 as a percentage.

    Only what is exactly none or all is written as 0 % or 100 %.
    """
    found = real(value)
    if found is None:
        return DASH
    percent = 100 * found
    if 0 < percent < 0.1:
        return f"<{SPACE}0.1{SPACE}%"
    # A half is rounded to the even number: to 0, and to 100.
    nearly = 0 < percent <= 0.5 or 99.5 <= percent < 100
    return _typographic(f"{min(percent, 99.9) if nearly else percent:.{nearly:d}f}{SPACE}%")


def points(value: Any) -> str:
    """A difference of two shares, in percentage points, with its sign."""
    found = real(value)
    return DASH if found is None else f"{change(found)}{SPACE}points"


def change(value: Any) -> str:
    """A difference of two shares, in percentage points, with its sign and no unit."""
    found = real(value)
    if found is None:
        return DASH
    text = f"{100 * found:+.0f}"
    return "±0" if text in {"+0", "-0"} else _typographic(text)


def interval(bounds: Any) -> str:
    """The two ends of an interval of a difference of shares."""
    low, high = ends(bounds)
    if low is None or high is None:
        return DASH
    return f"{change(low)} to {change(high)}{SPACE}points"


def ends(bounds: Any) -> tuple[float | None, float | None]:
    """The two finite ends of an interval; None for what is missing."""
    if not isinstance(bounds, list | tuple) or len(bounds) != 2:
        return None, None
    return real(bounds[0]), real(bounds[1])


def p_value(value: Any) -> str:
    """A probability with two significant digits; below 0.001 as a power of ten."""
    found = real(value)
    if found is None:
        return DASH
    if found == 0:
        return "0"
    if found < 0.001:
        return _power_of_ten(found)
    return f"{found:.2g}" if found < 0.1 else f"{found:.2f}"


def count(value: Any) -> str:
    """A whole number, its thousands set apart."""
    found = real(value)
    return DASH if found is None else _typographic(f"{found:,.0f}")


def plural(value: Any, singular: str, many: str | None = None) -> str:
    """A count and its noun: "1 rule", "12 rules"."""
    noun = singular if real(value) == 1 else many or f"{singular}s"
    return f"{count(value)}{SPACE}{noun}"


def seconds(value: Any) -> str:
    """A duration, given in seconds."""
    found = real(value)
    if found is None or found < 0:
        return DASH
    if found < 59.5:
        return f"{found:.{1 if found < 9.95 else 0}f}{SPACE}s"
    minutes, rest = divmod(round(found), 60)
    if minutes < 60:
        return f"{minutes}{SPACE}min {rest}{SPACE}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}{SPACE}h {minutes}{SPACE}min"


def megabytes(value: Any) -> str:
    """A size, given in MB (10^6 bytes)."""
    found = real(value)
    if found is None:
        return DASH
    return f"{found:.0f}{SPACE}MB" if found < 999.5 else f"{found / 1000:.1f}{SPACE}GB"


def when(value: Any) -> str:
    """An ISO 8601 time as "3 October 2025, 14:02 UTC"; other text as it is."""
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return str(value) if value else DASH
    zone = moment.tzname()
    return f"{moment.day} {moment:%B %Y, %H:%M}" + (f" {zone}" if zone else "")


def words(name: Any) -> str:
    """An identifier as words: "no_self_reference" is "no self reference"."""
    return DASH if name is None else str(name).replace("_", " ").strip() or DASH


def setting(value: Any) -> str:
    """A value of the configuration or of the machine, exactly."""
    if value is None or value == "":
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(setting(item) for item in value) or DASH
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def _typographic(text: str) -> str:
    rounded_away = text.startswith("-") and not any(digit in text for digit in "123456789")
    return text[1:] if rounded_away else text.replace("-", MINUS)


def _power_of_ten(value: float) -> str:
    mantissa, exponent = f"{value:.1e}".split("e")
    power = str(int(exponent)).translate(_RAISED)
    return f"{_typographic(mantissa)}{SPACE}×{SPACE}10{power}"
