"""A text cut into patches, as characters that can be shown.

A patch may tear a character, a text may hold bytes that are no UTF-8, and some characters cannot be
seen or would command a terminal. So each piece says what it stands for: a character as it is, a
mark for one that has no shape (`↵` for a line feed), or a byte in hexadecimal (`\\xc3`).

    for shown in visible_characters(found):
        print(shown.text, shown.start, shown.end)
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from mlx_companion.blt.text_patches import TextPatches

Kind = Literal["plain", "mark", "byte"]

_MARKS = {"\n": "↵", "\t": "⇥", "\r": "␍", "\x7f": "␡"}
# Characters without a shape of their own, and spaces that look like the plain one.
_HIDDEN = {"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp", "Zs"}
# Shows a mark that would sit on the character before it.
_CARRIER = "◌"


@dataclass(frozen=True)
class Shown:
    """What stands for some bytes of one patch.

    Attributes:
        text: what is shown.
        kind: "plain" for the character itself, "mark" for what stands for one, "byte" for one byte
            in hexadecimal.
        start, end: places of the bytes in the text.
        patch: that they belong to.
        breaks: a line ends here.
    """

    text: str
    kind: Kind
    start: int
    end: int
    patch: int
    breaks: bool = False


def visible_characters(patches: TextPatches, most: int | None = None) -> Iterator[Shown]:
    """What to show for a text, in its order.

    Args:
        patches: of the text.
        most: bytes to show, about; None for all.
    """
    data, owners = patches.data if most is None else patches.data[:most], patches.owners
    at = before = 0
    for character in data.decode("utf-8", "surrogateescape"):
        size = 1 if _is_byte(character) else len(character.encode("utf-8"))
        patch = int(owners[at])
        if _is_byte(character) or patch != owners[at + size - 1]:
            for place in range(at, at + size):
                text = f"\\x{data[place]:02x}"
                yield Shown(text, "byte", place, place + 1, int(owners[place]))
        else:
            text, kind = visible(character, alone=at == 0 or patch != before)
            yield Shown(text, kind, at, at + size, patch, character == "\n")
        at += size
        before = int(owners[at - 1])


def visible(character: str, *, alone: bool = False) -> tuple[str, Kind]:
    """What stands for one character, and whether it is the character itself.

    Args:
        character: one code point.
        alone: nothing is in front of it that it could be put on.
    """
    category = unicodedata.category(character)
    if character in _MARKS:
        return _MARKS[character], "mark"
    if character == " " or category not in _HIDDEN:
        return (_CARRIER + character if alone and category[0] == "M" else character), "plain"
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code), "mark"  # the control pictures, in the same order
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}", "mark"


def _is_byte(character: str) -> bool:
    """Whether it stands for a byte that is no UTF-8 (see "surrogateescape")."""
    return "\udc80" <= character <= "\udcff"
