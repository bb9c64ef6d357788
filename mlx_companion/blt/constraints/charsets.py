"""Sets of Unicode characters as sorted ranges of code points.

A set is a tuple of inclusive (first, last) pairs: sorted, disjoint, never touching, and
without the surrogates, which UTF-8 cannot write. The classes of `re` (`\\d`, `\\w`, `\\s`) and
its case folding are asked of the running Python instead of being kept as tables here, so that
a compiled pattern means what `re` means on the same machine.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache

import numpy as np

Ranges = tuple[tuple[int, int], ...]

LAST = 0x10FFFF
SURROGATES = (0xD800, 0xDFFF)
EVERY: Ranges = ((0, SURROGATES[0] - 1), (SURROGATES[1] + 1, LAST))
NEWLINE: Ranges = ((0x0A, 0x0A),)
# What ends a line in ECMA-262; `.` of that dialect matches none of them.
LINE_ENDS: Ranges = ((0x0A, 0x0A), (0x0D, 0x0D), (0x2028, 0x2029))


def union(*sets: Iterable[tuple[int, int]]) -> Ranges:
    """The characters of any of the sets; also puts loose pairs in order."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted(pair for one in sets for pair in one):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return _without_surrogates(merged)


def _without_surrogates(ranges: list[tuple[int, int]]) -> Ranges:
    kept: list[tuple[int, int]] = []
    for first, last in ranges:
        below = (first, min(last, SURROGATES[0] - 1))
        above = (max(first, SURROGATES[1] + 1), last)
        kept += [pair for pair in (below, above) if pair[0] <= pair[1]]
    return tuple(kept)


def complement(ranges: Ranges) -> Ranges:
    """Every character that is not in the set."""
    gaps, after = [], 0
    for first, last in ranges:
        if after < first:
            gaps.append((after, first - 1))
        after = last + 1
    if after <= LAST:
        gaps.append((after, LAST))
    return union(gaps)


def minus(ranges: Ranges, other: Ranges) -> Ranges:
    """The characters of the first set that are not in the second."""
    return complement(union(complement(ranges), other))


@cache
def category(letter: str, ascii_only: bool = False) -> Ranges:
    """What `\\d`, `\\w` or `\\s` matches in Python's `re`.

    Args:
        letter: "d", "w" or "s".
        ascii_only: as under the flag `re.ASCII`.
    """
    pattern = re.compile(f"\\{letter}+", re.ASCII if ascii_only else re.UNICODE)
    spans: list[tuple[int, int]] = []
    for first, last in ((0, 0x7F),) if ascii_only else EVERY:
        text = np.arange(first, last + 1, dtype="<u4").tobytes().decode("utf-32-le")
        spans += [(first + m.start(), first + m.end() - 1) for m in pattern.finditer(text)]
    return union(spans)


# No character beyond this has a case; a new one would show in the test over all of Unicode.
_LAST_CASED = 0x1EFFF


@cache
def _case_classes() -> dict[int, tuple[int, ...]]:
    """Characters that `re.IGNORECASE` takes for one another, by character.

    `re` compares simple lower cases, and then takes lower-case letters with one upper case
    for equal (s and long s, the two sigmas).
    """
    classes: dict[str, list[int]] = {}
    for code in range(_LAST_CASED + 1):
        character = chr(code)
        lower = character.lower()
        if lower != character or character.upper() != character:
            classes.setdefault(lower[0].upper(), []).append(code)
    return {code: tuple(codes) for codes in classes.values() for code in codes}


@cache
def fold(ranges: Ranges, ascii_only: bool = False) -> Ranges:
    """The set with every character that differs from one of its own only in case.

    Args:
        ranges: the characters.
        ascii_only: only ASCII letters have a case, as under `re.ASCII`.
    """
    classes = _case_classes()
    if sum(last - first + 1 for first, last in ranges) < len(classes):
        members = [c for first, last in ranges for c in range(first, last + 1) if c in classes]
    else:
        cased = np.fromiter(classes, dtype=np.int64)
        bounds = np.array(ranges)
        at = np.searchsorted(bounds[:, 0], cased, side="right") - 1
        members = cased[(at >= 0) & (cased <= bounds[at, 1])].tolist()
    others = {other for code in members for other in classes[code]}
    if ascii_only:
        others = {other for code in members if code < 0x80 for other in classes[code]}
        others = {other for other in others if other < 0x80}
    return union(ranges, ((other, other) for other in others))
