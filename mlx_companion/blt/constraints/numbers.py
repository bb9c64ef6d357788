"""JSON numbers within bounds, as trees of `nodes`.

A range of equally long digit strings is a short list of products of digit ranges (the same cut
as for UTF-8), so the numbers of a range are exactly an automaton's language. Lengths are bounded,
because `json.loads` refuses integers of more than 4300 digits and turns large exponents into
infinity: integers have at most 19 digits (or as many as a bound has), and numbers without bounds
19 digits, 17 decimals and a two-digit exponent. Numbers with a bound are written without exponent.
"""

from __future__ import annotations

import math
from decimal import Decimal

from mlx_companion.blt.constraints.encodings import Sequence8, split_range
from mlx_companion.blt.constraints.nodes import (
    Alt,
    Bytes,
    Cat,
    Node,
    Repeat,
    digits,
    literal,
    optional,
)

Bound = int | float
_INTEGER_DIGITS = 19
_DECIMALS = 6
_MOST_DECIMALS = 17

_WHOLE = Alt((literal(b"0"), Cat((digits(1), Repeat(digits(), 0, _INTEGER_DIGITS - 1)))))
_FRACTION = Cat((literal(b"."), Repeat(digits(), 1, _MOST_DECIMALS)))
_EXPONENT = Cat(
    (
        Alt((literal(b"e"), literal(b"E"))),
        optional(Alt((literal(b"+"), literal(b"-")))),
        Repeat(digits(), 1, 2),
    )
)
ANY_NUMBER: Node = Cat((optional(literal(b"-")), _WHOLE, optional(_FRACTION), optional(_EXPONENT)))


def integer(
    least: Bound | None, most: Bound | None, above: Bound | None = None, below: Bound | None = None
) -> Node:
    """Integers within bounds; the arguments are those of `number`."""
    low = _limit(least, above, 0, upwards=True)
    high = _limit(most, below, 0, upwards=False)
    return _scaled(low, high, decimals=0)


def number(
    least: Bound | None, most: Bound | None, above: Bound | None = None, below: Bound | None = None
) -> Node:
    """Numbers within bounds, with up to six decimals (or as many as a bound has).

    Args:
        least: the smallest, included; None for no bound, as for the others.
        most: the largest, included.
        above: every number is greater than this.
        below: every number is less than this.
    """
    bounds = [_exact(bound) for bound in (least, most, above, below) if bound is not None]
    if not bounds:
        return ANY_NUMBER
    wanted = max(_DECIMALS, *(-_places(bound) for bound in bounds))
    options = []
    for decimals in range(min(wanted, _MOST_DECIMALS) + 1):
        low = _limit(least, above, decimals, upwards=True)
        high = _limit(most, below, decimals, upwards=False)
        options.append(_scaled(low, high, decimals))
    return Alt(tuple(options))


def _exact(bound: Bound) -> Decimal:
    """The number that people read: 0.1 is a tenth."""
    return Decimal(repr(bound))


def _places(value: Decimal) -> int:
    exponent = value.normalize().as_tuple().exponent
    assert isinstance(exponent, int)  # bounds are finite
    return exponent


def _limit(
    included: Bound | None, excluded: Bound | None, decimals: int, upwards: bool
) -> int | None:
    """The first number within a bound, in units of the last decimal.

    Args:
        included: the bound if it belongs to the range.
        excluded: the bound if it does not.
        decimals: digits after the point.
        upwards: whether the range lies above the bound.
    """
    found = []
    rounding, step = (math.ceil, 1) if upwards else (math.floor, -1)
    if included is not None:
        found.append(rounding(_exact(included).scaleb(decimals)))
    if excluded is not None:
        first = rounding(_exact(excluded).scaleb(decimals))
        # What is written is read as a float, which may be the excluded bound itself.
        while not _beyond(first, decimals, excluded, upwards):
            first += step * max(1, abs(first) >> 50)
        found.append(first)
    return (max(found) if upwards else min(found)) if found else None


def _beyond(units: int, decimals: int, bound: Bound, upwards: bool) -> bool:
    value = units if not decimals else float(Decimal(units).scaleb(-decimals))
    return value > bound if upwards else value < bound


def _scaled(low: int | None, high: int | None, decimals: int) -> Node:
    """Decimal numbers from low to high, both in units of the last decimal."""
    longest = max(
        max(_INTEGER_DIGITS - 2 * decimals, 1) + decimals,
        *(len(str(abs(bound))) + 1 for bound in (low, high) if bound is not None),
        decimals + 1,
    )
    if low is None and high is None:
        longest = _INTEGER_DIGITS
    top = 10**longest - 1
    low, high = -top if low is None else low, top if high is None else high
    options = [_unsigned(max(low, 0), high, decimals)]
    if low < 0:
        options.append(Cat((literal(b"-"), _unsigned(max(1, -high), -low, decimals))))
    return Alt(tuple(options))


def _unsigned(low: int, high: int, decimals: int) -> Node:
    options: list[Node] = []
    for length in range(decimals + 1, max(len(str(high)), decimals + 1) + 1):
        # Only the shortest length may begin with 0: it is the one digit before the point.
        first = max(low, 10 ** (length - 1) if length > decimals + 1 else 0)
        last = min(high, 10**length - 1)
        if first <= last:
            places = split_range(_figures(first, length), _figures(last, length), 0, 9)
            options += [_pointed(sequence, decimals) for sequence in places]
    return Alt(tuple(options))


def _figures(value: int, length: int) -> list[int]:
    return [int(figure) for figure in str(value).zfill(length)]


def _pointed(sequence: Sequence8, decimals: int) -> Node:
    parts: list[Node] = [digits(first, last) for first, last in sequence]
    if decimals:
        parts.insert(len(parts) - decimals, Bytes(ord("."), ord(".")))
    return Cat(tuple(parts))
