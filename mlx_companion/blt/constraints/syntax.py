"""Patterns in the syntax of Python's `re`, parsed into trees of `nodes`.

`re.compile` looks at every pattern first, so that what Python calls a syntax error is one here;
this parser then only meets valid patterns. What an automaton cannot do (back-references,
look-around, atomic groups, word boundaries) or what has no meaning for a text that is being
written (multi-line anchors) is refused with a `ConfigError` that shows where.

Two dialects. "python" means exactly what `re` means. "json" is for JSON Schema, whose patterns
are ECMA-262 while the validators of Python read them with `re`: where the two differ (`\\d`,
`\\w`, `\\s` and `.`), only what both accept is kept, so the text is valid for either.
"""

from __future__ import annotations

import re
import unicodedata
import warnings
from dataclasses import dataclass, replace
from typing import Literal, NoReturn

from mlx_companion.blt.constraints.charsets import (
    EVERY,
    LINE_ENDS,
    NEWLINE,
    Ranges,
    category,
    complement,
    fold,
    union,
)
from mlx_companion.blt.constraints.nodes import Alt, Anchor, Cat, Chars, Node, Repeat
from mlx_companion.errors import ConfigError

Dialect = Literal["python", "json"]

_COUNTED = re.compile(r"\{(\d*)(?:(,)(\d*))?\}")
_CONTROL = {"n": 10, "t": 9, "r": 13, "f": 12, "v": 11, "a": 7}
_HEX_LENGTH = {"x": 2, "u": 4, "U": 8}
_SIMPLE_REPEATS = {"*": (0, None), "+": (1, None), "?": (0, 1)}
_REFUSED_GROUPS = {
    "?=": "look-ahead",
    "?!": "negative look-ahead",
    "?<=": "look-behind",
    "?<!": "negative look-behind",
    "?P=": "back-references",
    "?(": "conditional groups",
    "?>": "atomic groups",
}
_BYTE_ORDER_MARK = (0xFEFF, 0xFEFF)


@dataclass(frozen=True)
class Flags:
    """What is switched on: (?i), (?a) and (?s)."""

    fold: bool = False
    ascii: bool = False
    dot_all: bool = False


_FLAG_NAMES = {"i": "fold", "a": "ascii", "s": "dot_all", "u": ""}


def parse(pattern: str, dialect: Dialect = "python") -> Node:
    """Parse a pattern; anchors are still in the tree.

    Args:
        pattern: in the syntax of `re`.
        dialect: what the classes mean (see above).

    Raises:
        ConfigError: not a valid pattern, or one that uses what is refused.
    """
    if not isinstance(pattern, str):
        raise ConfigError(f"a pattern is a str, not {type(pattern).__name__}: {pattern!r}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ConfigError(f"not a valid regular expression: {pattern!r}: {error}") from error
    return _Parser(pattern, dialect).whole()


class _Parser:
    """Recursive descent over one valid pattern."""

    def __init__(self, pattern: str, dialect: Dialect) -> None:
        self.text = pattern
        self.at = 0
        self.dialect = dialect
        self.flags = Flags()

    def refuse(self, what: str) -> NoReturn:
        raise ConfigError(
            f"{what} cannot be used in a constraint: pattern {self.text!r}, position {self.at}"
        )

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def take(self) -> str:
        self.at += 1
        return self.text[self.at - 1]

    def follows(self, word: str) -> bool:
        """Whether the word comes next; it is taken if so."""
        found = self.text.startswith(word, self.at)
        self.at += len(word) if found else 0
        return found

    def whole(self) -> Node:
        return self.alternatives()

    def alternatives(self) -> Node:
        options = [self.sequence()]
        while self.follows("|"):
            options.append(self.sequence())
        return options[0] if len(options) == 1 else Alt(tuple(options))

    def sequence(self) -> Node:
        parts: list[Node] = []
        while self.peek() and self.peek() not in "|)":
            part = self.atom()
            if part is not None:
                parts.append(self.repeated(part))
        return parts[0] if len(parts) == 1 else Cat(tuple(parts))

    def repeated(self, node: Node) -> Node:
        """The atom just read with the quantifier that follows it, if one does."""
        bounds = self.quantifier()
        if bounds is None:
            return node
        if isinstance(node, Anchor):
            self.refuse("a repeated anchor")
        if self.follows("+"):
            self.refuse("a possessive quantifier")
        self.follows("?")
        return Repeat(node, *bounds)

    def quantifier(self) -> tuple[int, int | None] | None:
        while self.follows("(?#"):
            self.at = self.text.index(")", self.at) + 1
        simple = _SIMPLE_REPEATS.get(self.peek())
        if simple is not None:
            self.at += 1
            return simple
        counted = _COUNTED.match(self.text, self.at)
        if counted is None or counted.group() == "{}":
            return None
        self.at = counted.end()
        least, comma, most = counted.groups()
        if not comma:
            return int(least), int(least)
        return int(least or 0), int(most) if most else None

    def atom(self) -> Node | None:
        """One atom; None for a comment or for flags."""
        letter = self.take()
        if letter == "(":
            return self.group()
        if letter == "[":
            return Chars(self.char_class())
        if letter == ".":
            return Chars(self.dot())
        if letter in "^$":
            return Anchor(end=letter == "$")
        if letter == "\\":
            return self.escape()
        return self.chars(((ord(letter), ord(letter)),))

    def chars(self, ranges: Ranges) -> Chars:
        return Chars(self.folded(union(ranges)))

    def folded(self, ranges: Ranges) -> Ranges:
        return fold(ranges, self.flags.ascii) if self.flags.fold else ranges

    def dot(self) -> Ranges:
        if self.flags.dot_all:
            return EVERY
        return complement(LINE_ENDS if self.dialect == "json" else NEWLINE)

    def group(self) -> Node | None:
        outer = self.flags
        if self.follows("?#"):
            self.at = self.text.index(")", self.at) + 1
            return None
        for start, name in _REFUSED_GROUPS.items():
            if self.text.startswith(start, self.at):
                self.refuse(name)
        if self.follows("?P<"):
            self.at = self.text.index(">", self.at) + 1
        elif self.follows("?"):
            self.read_flags()
            if self.take() == ")":
                return None
        inner = self.alternatives()
        self.take()
        self.flags = outer
        return inner

    def read_flags(self) -> None:
        value = True
        while self.peek() not in ":)":
            letter = self.take()
            if letter == "-":
                value = False
            elif letter not in _FLAG_NAMES:
                self.refuse(f"the flag (?{letter})")
            elif _FLAG_NAMES[letter]:
                self.flags = replace(self.flags, **{_FLAG_NAMES[letter]: value})
            else:
                self.flags = replace(self.flags, ascii=False)

    def escape(self) -> Node:
        """An escape outside a class; its backslash is taken."""
        letter = self.peek()
        if letter in "AZ":
            self.at += 1
            return Anchor(end=letter == "Z")
        if letter in "bB":
            self.refuse(f"the word boundary \\{letter}")
        if letter in "123456789" and not re.match(r"[0-3][0-7]{2}", self.text[self.at :]):
            self.refuse("a back-reference")
        if letter.lower() in "dws":
            return Chars(self.class_escape(self.take(), inside_negation=False))
        code = self.character_escape()
        return self.chars(((code, code),))

    def character_escape(self) -> int:
        """The code point of an escaped character; the backslash is taken."""
        letter = self.take()
        if letter in _HEX_LENGTH:
            digits = self.text[self.at : self.at + _HEX_LENGTH[letter]]
            self.at += len(digits)
            return int(digits, 16)
        if letter == "N":
            end = self.text.index("}", self.at)
            name, self.at = self.text[self.at + 1 : end], end + 1
            return ord(unicodedata.lookup(name))
        if letter.isdigit():
            octal = re.compile("[0-7]{1,3}").match(self.text, self.at - 1)
            assert octal is not None  # re.compile has seen it
            self.at = octal.end()
            return int(octal.group(), 8)
        return _CONTROL.get(letter, ord(letter))

    def class_escape(self, letter: str, inside_negation: bool) -> Ranges:
        """`\\d` and its kin.

        In the "json" dialect the narrow reading is taken where the class adds to what is
        allowed and the wide one where it takes away.
        """
        lower, negative = letter.lower(), letter.isupper()
        if self.dialect == "python":
            found = category(lower, self.flags.ascii)
        elif negative == inside_negation:
            found = category(lower, ascii_only=True)
        else:
            extra = (_BYTE_ORDER_MARK,) if lower == "s" else ()
            found = union(category(lower), extra)
        return complement(found) if negative else found

    def char_class(self) -> Ranges:
        """A class in brackets; the opening one is taken."""
        negated = self.follows("^")
        found: list[tuple[int, int]] = []
        classes: list[Ranges] = []  # `re` does not fold these
        first = True
        while first or self.peek() != "]":
            first = False
            member = self.member(negated)
            if isinstance(member, tuple):
                classes.append(member)
            else:
                found.append((member, self.range_end(member, negated)))
        self.take()
        ranges = union(self.folded(union(found)), *classes)
        return complement(ranges) if negated else ranges

    def range_end(self, start: int, negated: bool) -> int:
        """The last character of `a-z` when a range follows its first one, else the first."""
        if self.peek() != "-" or self.text[self.at + 1 : self.at + 2] == "]":
            return start
        self.take()
        end = self.member(negated)
        assert isinstance(end, int)  # re.compile refuses a class as an end
        return end

    def member(self, negated: bool) -> Ranges | int:
        """One member of a class: a set, or the code point of a character."""
        letter = self.take()
        if letter != "\\":
            return ord(letter)
        if self.peek().lower() in "dws":
            return self.class_escape(self.take(), negated)
        if self.follows("b"):
            return 8
        return self.character_escape()
