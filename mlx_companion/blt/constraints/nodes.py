"""Regular expressions as trees: what the parsers build and `automaton.compile_dfa` reads.

`Chars` is a set of characters, written in whatever encoding the automaton is compiled for;
`Bytes` is a range of raw bytes, the same in every encoding (the quotes around a JSON string).
The empty `Cat` matches the empty text, the empty `Alt` nothing at all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mlx_companion.blt.constraints.charsets import EVERY, Ranges


@dataclass(frozen=True)
class Chars:
    """One character of a set."""

    ranges: Ranges


@dataclass(frozen=True)
class Bytes:
    """One byte from first to last, both included."""

    first: int
    last: int


@dataclass(frozen=True)
class Cat:
    """All parts, one after the other."""

    parts: tuple[Node, ...] = ()


@dataclass(frozen=True)
class Alt:
    """Any one of the options."""

    options: tuple[Node, ...] = ()


@dataclass(frozen=True)
class Repeat:
    """The inner node, `least` to `most` times (None: without end)."""

    inner: Node
    least: int
    most: int | None = None


@dataclass(frozen=True)
class Anchor:
    """The start or the end of the text; removed before anything is compiled."""

    end: bool


Node = Chars | Bytes | Cat | Alt | Repeat | Anchor

ANY_TEXT = Repeat(Chars(EVERY), 0)


def literal(data: bytes) -> Node:
    """These bytes and no others."""
    return Cat(tuple(Bytes(byte, byte) for byte in data))


def either(words: Iterable[bytes]) -> Node:
    """Any one of these byte strings."""
    return Alt(tuple(literal(word) for word in words))


def digits(first: int = 0, last: int = 9) -> Node:
    """One decimal digit from first to last."""
    return Bytes(ord("0") + first, ord("0") + last)


def optional(node: Node) -> Node:
    """The node or nothing."""
    return Repeat(node, 0, 1)
