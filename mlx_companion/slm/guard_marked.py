"""Pieces between marks, `*so*`, `(so)`, `~so~`, and where in its sentence each of them stands.

What a piece is shows first in its place: emphasis belongs to a sentence, and an action stands
beside it. `pieces` finds them; `guard_actions` and `guard_directions` judge them::

    for piece in pieces(Draft("*grins* Sure.")):
        piece.content, piece.place.before, piece.place.after     # "grins", True, True
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from mlx_companion.slm.guard_text import NOT_OWN, Draft

_MARKED = re.compile(
    r"(?<![*\\])(\*{1,3})(?![\s*])([^*\n]{1,400})(?<![\s\\])\1(?!\*)"
    r"|(?<![\w~])(~)(?![\s~])([^~\n]{1,80})(?<!\s)~(?![\w~])"
    r"|(?<![\w*\\])(\* )(?=[a-z])([^*\n]{3,60}) \*(?![\w*])"
    r"|(?<![\w\]])([(\[])([^()\[\]\n]{2,90})[)\]](?!\()"
    r"|(\\\*)(?!\s)([^*\n\\]{2,200})\\\*"
    # "*leans **very** close*"
    r"|(?<![\w*\\])(\*)(?![\s*])([^*\n]{0,200}\*\*[^*\n]{1,200}\*\*[^*\n]{0,200})(?<!\s)\*(?!\*)"
)
_KINDS = range(1, 12, 2)
_WORD = re.compile(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*")
_CLOSES = '.!?,;:\u2026\u2014\u2013"\u201d)]*~-'
_HEARD = (
    "hm hmm hmmm well oh ah um okay yes no ok aw so hey look right sure now yeah ooh mm ha haha see"
)
INTERJECTIONS = frozenset(_HEARD.split())


@dataclass(frozen=True)
class Place:
    """Where a marked piece stands: does a sentence or line end before it, and after it?

    `loose`: no punctuation ties it to what follows; `comma`: one does. `left` and `right` are the
    line's text on either side, without list marks.
    """

    before: bool
    after: bool
    loose: bool
    comma: bool
    listed: bool
    glued: bool
    previous: str
    following: str
    left: str
    right: str


@dataclass(frozen=True)
class Piece:
    """What stands between two marks.

    Attributes:
        draft: the reply.
        start, end: its span, marks included.
        mark: the opening mark.
        content: what is between the marks.
    """

    draft: Draft
    start: int
    end: int
    mark: str
    content: str

    @cached_property
    def words(self) -> list[str]:
        """The words of the content, in lower case."""
        return words_of(self.content)

    @cached_property
    def place(self) -> Place:
        """Where it stands."""
        return _place(self.draft, self.start, self.end, self.mark)


def words_of(content: str) -> list[str]:
    """The words of a text in lower case, with straight apostrophes."""
    return [word.lower() for word in _WORD.findall(content.replace("\u2019", "'"))]


def pieces(draft: Draft) -> Iterator[Piece]:
    """Every marked piece of the companion's own prose, in order."""
    at, text = 0, draft.text
    if not any(mark in text for mark in "*~(["):
        return
    while found := _MARKED.search(text, at):
        mark = next(found[index] for index in _KINDS if found[index])
        content = next(found[index + 1] for index in _KINDS if found[index])
        blocked = draft.markup.touches(found.start(), found.start() + 1, NOT_OWN)
        inner = content.lstrip(".\u2026 ")
        if not blocked and inner and inner[0] not in ",;":
            start, end = found.span()
            if text[start - 1 : start] == text[end : end + 1] == "_":
                # "_**waves**_": the emphasis around it goes with it.
                start, end = start - 1, end + 1
            yield Piece(draft, start, end, mark.lstrip("\\"), inner)
        # A star that opens nothing may be the end of nothing, too: go on right after it, so that
        # an odd star in front does not turn the following pairs inside out.
        skip = found.end() if content[0].isalpha() else found.start() + len(mark)
        at = max(skip, found.start() + 1)


def _place(draft: Draft, start: int, end: int, mark: str) -> Place:
    line_start, line_end = draft.line(start)
    text = draft.text
    left = text[max(line_start, start - 200) : start]
    right = text[end : min(line_end, end + 200)]
    bare = re.sub(r"^[\s>]*(?:[-*+\u2022]|\d{1,3}[.)])?\s*", "", left).rstrip()
    bare = bare.rstrip("_*") if bare.strip("_*") == "" else bare
    previous = (draft.words_before(start, 1) or [""])[-1]
    following = (draft.words_after(end, 1) or [""])[0]
    rest = (right.lstrip("_*") if mark[0] in "*_" else right).strip()
    before = not bare or not bare[-1].isalnum() or previous in INTERJECTIONS
    after = not rest or rest[0] in _CLOSES or not rest[0].isalnum() or rest[0].isupper()
    loose = not rest or rest[0].isupper()
    listed = left.strip() != "" and not bare
    near = (text[start - 1 : start], text[end : end + 1])
    glued = mark[0] == "*" and any(one.isalnum() for one in near)
    comma = rest.startswith(",")
    return Place(
        before, after, loose, comma, listed, glued, previous, following, bare[-80:], rest[:80]
    )
