"""Sets of characters written as bytes: in UTF-8, or inside a JSON string.

A set of characters becomes a small automaton that reads one character of it, byte by byte.
Inside a JSON string each character has ONE spelling, that of `json.dumps(ensure_ascii=False)`:
raw UTF-8 where JSON allows it, else the two-byte escape, else `\\u00xx`. One spelling keeps the
automata small and costs nothing: every string can be written.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Literal

from mlx_companion.blt.constraints.charsets import Ranges, complement, minus, union

Encoding = Literal["utf8", "json"]
# One way to write a character: per byte, the inclusive range it may lie in.
Sequence8 = tuple[tuple[int, int], ...]
# Per state of the automaton: (first byte, last byte, next state); the start is state 0.
Rows = tuple[tuple[tuple[int, int, int], ...], ...]
FINAL = -1

_UTF8_LENGTHS = ((0, 0x7F), (0x80, 0x7FF), (0x800, 0xFFFF), (0x10000, 0x10FFFF))
_ESCAPED: Ranges = ((0x00, 0x1F), (0x22, 0x22), (0x5C, 0x5C))


def split_range(first: Sequence[int], last: Sequence[int], low: int, high: int) -> list[Sequence8]:
    """Cut a range of equally long digit strings into products of digit ranges.

    Args:
        first: the smallest digit string, most significant digit first.
        last: the largest.
        low: the smallest digit of every place but the first.
        high: the largest digit of every place but the first.

    Returns:
        Sequences whose products are disjoint and cover exactly first..last.
    """
    if not first:
        return [()]
    if first[0] == last[0]:
        return [
            ((first[0], first[0]), *tail) for tail in split_range(first[1:], last[1:], low, high)
        ]
    width = len(first) - 1
    begin, end, head, foot = first[0], last[0], [], []
    if any(digit != low for digit in first[1:]):
        tails = split_range(first[1:], [high] * width, low, high)
        head, begin = [((begin, begin), *tail) for tail in tails], begin + 1
    if any(digit != high for digit in last[1:]):
        tails = split_range([low] * width, last[1:], low, high)
        foot, end = [((end, end), *tail) for tail in tails], end - 1
    middle = [((begin, end), *[(low, high)] * width)] if begin <= end else []
    return head + middle + foot


def utf8_sequences(ranges: Ranges) -> list[Sequence8]:
    """Every way to write a character of the set in UTF-8."""
    found: list[Sequence8] = []
    for shortest, longest in _UTF8_LENGTHS:
        for first, last in ranges:
            a, b = max(first, shortest), min(last, longest)
            if a <= b:
                found += split_range(chr(a).encode(), chr(b).encode(), 0x80, 0xBF)
    return found


def json_sequences(ranges: Ranges) -> list[Sequence8]:
    """The one way to write each character of the set inside a JSON string."""
    escaped = minus(_ESCAPED, complement(ranges))
    spelled = [json.dumps(chr(c))[1:-1].encode() for a, b in escaped for c in range(a, b + 1)]
    return utf8_sequences(minus(ranges, _ESCAPED)) + [
        tuple((byte, byte) for byte in text) for text in spelled
    ]


_SEQUENCES: dict[str, Callable[[Ranges], list[Sequence8]]] = {
    "utf8": utf8_sequences,
    "json": json_sequences,
}


@cache
def character_rows(ranges: Ranges, encoding: Encoding) -> Rows:
    """The smallest automaton that reads one character of the set.

    Args:
        ranges: the characters.
        encoding: how they are written.
    """
    return _trie(_SEQUENCES[encoding](ranges))


def _trie(sequences: Iterable[Sequence8]) -> Rows:
    """A trie in which equal sub-tries are one state."""
    numbers: dict[frozenset[Sequence8], int] = {}
    rows: list[tuple[tuple[int, int, int], ...]] = []

    def visit(tails: frozenset[Sequence8]) -> int:
        if () in tails:
            return FINAL
        if tails not in numbers:
            numbers[tails] = len(rows)
            rows.append(())
            rows[numbers[tails]] = tuple(
                (first, last, visit(rest)) for first, last, rest in _heads(tails)
            )
        return numbers[tails]

    visit(frozenset(sequences))
    return tuple(rows)


def _heads(tails: frozenset[Sequence8]) -> list[tuple[int, int, frozenset[Sequence8]]]:
    """Ranges of first bytes, each with what may follow it."""
    after: dict[int, set[Sequence8]] = {}
    for (first, last), *rest in tails:
        for byte in range(first, last + 1):
            after.setdefault(byte, set()).add(tuple(rest))
    heads: list[tuple[int, int, frozenset[Sequence8]]] = []
    for byte in sorted(after):
        rest_set = frozenset(after[byte])
        if heads and heads[-1][1] == byte - 1 and heads[-1][2] == rest_set:
            heads[-1] = (heads[-1][0], byte, rest_set)
        else:
            heads.append((byte, byte, rest_set))
    return heads


def json_string(text: str) -> bytes:
    """A JSON string with its quotes, spelled as the automata spell it."""
    return json.dumps(text, ensure_ascii=False).encode()


def characters(text: str) -> Ranges:
    """The set of the characters of a text."""
    return union((ord(c), ord(c)) for c in text)
