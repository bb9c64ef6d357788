"""Where in a reply is code, a link, a quotation, a heading: regions of Markdown text, in one pass.

A style rule that does not know code from prose is wrong more often than right: `!=` is no
exclamation, `MAX_SIZE` no shout, and what somebody else said is not the companion's own voice.
`scan` marks every character of a text with what it belongs to, and rules ask::

    markup = scan("Use `a != b`. See https://x.org/!")
    markup.inside(7, "code")                   # True
    markup.touches(0, 5, PROTECTED)            # False: "Use `" reaches no protected character

This is not a Markdown parser: it finds the regions that matter to rules of style, errs on the side
of protecting code, and is linear in the length of any text. The constructs follow CommonMark 0.31
(https://spec.commonmark.org/0.31.2/), with tables and `$` mathematics as GitHub has them.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator

KINDS = ("code", "link", "image", "html", "math", "quote", "block_quote", "heading", "table")
# What no edit may change, whatever rule asks for it.
PROTECTED = ("code", "link", "image", "html", "math")
# The words of others.
QUOTED = ("quote", "block_quote")

_FENCE = re.compile(r"^ {0,3}(?:>\s?)*(?:[-*+]\s+|\d{1,3}[.)]\s+)?\s*(`{3,}|~{3,})(.*)$")
_HEADING = re.compile(r"^ {0,3}#{1,6}(?:\s|$)")
_UNDERLINE = re.compile(r"^ {0,3}(?:=+|-{2,})\s*$")
_LIST_ITEM = re.compile(r"^\s{0,12}(?:[-*+\u2022]|\d{1,3}[.)])\s")
_TABLE_RULE = re.compile(r"^\s{0,3}\|?\s*:?-{2,}:?\s*(?:\|\s*:?-{2,}:?\s*)*\|?\s*$")
_PROMPT = re.compile(r"^\s*(?:\$|>>>|\.\.\.|PS [A-Z]:\\[^>\n]*>|[A-Z]:\\[^>\n]*>|#!)(?:\s|/|$)")
_QUOTE_LINE = re.compile(r"^ {0,3}>")
_TICKS = re.compile(r"(?<!\\)`+")
_ADDRESS = re.compile(
    r"(?:https?|ftp|file|ssh|git|mailto)://?[^\s<>\"`]+|\bwww\.[^\s<>\"`]+|mailto:[^\s<>\"`]+"
    r"|(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63})+"
    r"|(?<![\w./@-])(?:[a-z0-9-]{1,63}\.){1,4}(?:com|org|net|edu|gov|io|dev|app|co|ai|me|uk|de)"
    r"(?:/[^\s<>\"`]*)?(?![\w.-]*\w)",
    re.IGNORECASE,
)
_INLINE = {
    "image": re.compile(r"!\[[^\[\]\n]{0,300}\](?:\([^()\n]{0,500}\)|\[[^\[\]\n]{0,100}\])?"),
    "link": re.compile(
        r"(?<=\])\([^()\s]{1,500}(?:\([^()\s]{0,100}\))?[^()\n]{0,200}\)|^\[[^\]\n]{1,100}\]:[^\n]+",
        re.MULTILINE,
    ),
    "html": re.compile(
        r"<!--(?:[^-]|-(?!->)){0,2000}-->|<!DOCTYPE[^<>\n]{0,200}>"
        r"|</?[a-zA-Z][\w-]{0,30}(?:\s[^<>\n]{0,300})?/?>"
    ),
    "math": re.compile(
        r"\$\$[^$]{1,2000}\$\$|(?<![\w$\\])\$(?=[^\s$\d])[^$\n]{1,300}(?<=\S)\$(?![\w$])"
        r"|(?<![\w$\\])\$\d[^$\n]{0,200}[=^_\\+][^$\n]{0,200}(?<=\S)\$(?![\w$])"
        r"|\\\([^\n]{1,300}?\\\)|\\\[[^\[\]]{1,1000}?\\\]"
    ),
}
_PATHS = re.compile(
    r"(?<![\w.])(?:~|\.{1,2})?/[\w.-]+(?:/[\w.*-]+)+/?|\b[A-Za-z]:\\[^\s]+"
    r"|(?<![\w-])--?[a-zA-Z][\w-]*=\S+|(?<![\w-])--[a-zA-Z][\w-]+"
    r"|\b\w{1,60}\.(?:py|js|ts|md|txt|json|yaml|yml|csv|sh|html|css|cpp|java|rs|go|sql|toml|png)\b"
)
_DOUBLE = re.compile(r"[\"\u201c\u201d\u00ab\u00bb\u201e]|\n[ \t]*\n")
_SINGLE = re.compile(
    r"(?<![\w\d])['\u2018](?=[^\s'\u2019])[^'\u2018\u2019\n]{1,160}"
    r"(?:['\u2019](?=\w)[^'\u2018\u2019\n]{1,160}){0,6}['\u2019](?![\w])"
)


class Markup:
    """Which characters of a text belong to which kind of region.

    Attributes:
        text: the text that was scanned.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._marks = {kind: bytearray(len(text)) for kind in KINDS}

    def mark(self, kind: str, start: int, end: int) -> None:
        """Mark characters `start` to `end` as `kind`."""
        self._marks[kind][start:end] = b"\x01" * (end - start)

    def clear(self, kind: str) -> None:
        """Take back every mark of `kind`."""
        self._marks[kind] = bytearray(len(self.text))

    def inside(self, position: int, kinds: str | Iterable[str]) -> bool:
        """Tell whether the character at `position` is in a region of one of `kinds`."""
        return self.touches(position, position + 1, kinds)

    def touches(self, start: int, end: int, kinds: str | Iterable[str]) -> bool:
        """Tell whether a character of `start` to `end` is in a region of one of `kinds`."""
        names = (kinds,) if isinstance(kinds, str) else kinds
        return any(self._marks[kind].find(1, start, end) >= 0 for kind in names)

    def holds(self, kind: str) -> bool:
        """Tell whether there is any region of `kind`."""
        return 1 in self._marks[kind]

    def spans(self, kinds: str | Iterable[str]) -> Iterator[tuple[int, int]]:
        """Yield the maximal runs [start, end) of characters in a region of one of `kinds`."""
        names = (kinds,) if isinstance(kinds, str) else tuple(kinds)
        merged = bytes(map(any, zip(*(self._marks[kind] for kind in names), strict=True)))
        start = merged.find(1)
        while start >= 0:
            end = merged.find(0, start)
            end = len(merged) if end < 0 else end
            yield start, end
            start = merged.find(1, end)

    def prose(self, kinds: Iterable[str] = PROTECTED) -> str:
        """The text with the regions of `kinds` blanked out; every offset stays the same."""
        pieces, last = [], 0
        for start, end in self.spans(kinds):
            pieces += [self.text[last:start], _blank(self.text[start:end])]
            last = end
        return "".join([*pieces, self.text[last:]])


def scan(text: str) -> Markup:
    """Find the regions of `text`, in time linear in its length.

    Quotation marks around the whole text, or around all of it but stage directions between
    asterisks, are not a quotation of others and are left unmarked.
    """
    markup = Markup(text)
    _mark_blocks(markup)
    _mark_code_spans(markup)
    for kind, pattern in _INLINE.items():
        _mark_all(markup, kind, pattern)
    _mark_all(markup, "link", _ADDRESS, trim=".,;:!?'\")]}*_")
    _mark_all(markup, "code", _PATHS)
    _mark_quotations(markup)
    return markup


def _blank(piece: str) -> str:
    return "".join("\n" if character == "\n" else " " for character in piece)


def _lines(text: str) -> Iterator[tuple[int, str]]:
    start = 0
    for line in text.split("\n"):
        yield start, line
        start += len(line) + 1


def _mark_blocks(markup: Markup) -> None:
    fence = ""
    before, before_at, listed = "", 0, False
    code_open = False
    for at, line in _lines(markup.text):
        end = at + len(line)
        found = _FENCE.match(line)
        if fence:
            markup.mark("code", at, min(end + 1, len(markup.text)))
            closes = found and found[1].startswith(fence) and not found[2].strip()
            fence = "" if closes else fence
            before = ""
            continue
        if found and "`" not in found[2]:
            fence = found[1]
            markup.mark("code", at, min(end + 1, len(markup.text)))
            continue
        indented = line.startswith(("    ", "\t")) and not listed
        code_open = bool(line.strip()) and indented and (not before.strip() or code_open)
        if code_open or _PROMPT.match(line):
            markup.mark("code", at, end)
        else:
            listed = bool(_LIST_ITEM.match(line)) or (listed and _continues(line))
            _mark_line(markup, at, line, before_at, before)
        before, before_at = line, at


def _continues(line: str) -> bool:
    # A list goes on over blank lines and over lines that are set in.
    return not line.strip() or line.startswith(("  ", "\t"))


def _mark_line(markup: Markup, at: int, line: str, before_at: int, before: str) -> None:
    end = at + len(line)
    if _HEADING.match(line):
        markup.mark("heading", at, end)
    elif _UNDERLINE.match(line) and before.strip() and len(before) < 100:
        if not markup.touches(before_at, before_at + len(before), ("code", "table")):
            markup.mark("heading", before_at, end)
    elif _QUOTE_LINE.match(line):
        markup.mark("block_quote", at, end)
    if line.count("|") >= 2 or ("|" in line and _TABLE_RULE.match(line)):
        markup.mark("table", at, end)


def _mark_code_spans(markup: Markup) -> None:
    text = markup.text
    runs: dict[int, list[int]] = {}
    ticks = [m.span() for m in _TICKS.finditer(text) if not markup.inside(m.start(), "code")]
    for start, end in ticks:
        runs.setdefault(end - start, []).append(start)
    paragraphs = [m.start() for m in re.finditer(r"\n[ \t]*\n", text)] + [len(text)]
    done = 0
    for start, end in ticks:
        same = runs[end - start]
        at = bisect_left(same, end)
        stop = paragraphs[bisect_left(paragraphs, start)]
        if start >= done and at < len(same) and same[at] < stop:
            done = same[at] + end - start
            markup.mark("code", start, done)


def _mark_all(markup: Markup, kind: str, pattern: re.Pattern[str], trim: str = "") -> None:
    for found in pattern.finditer(markup.text):
        end = found.start() + len(found.group().rstrip(trim))
        if end > found.start() and not markup.inside(found.start(), "code"):
            markup.mark(kind, found.start(), end)


def _mark_quotations(markup: Markup) -> None:
    for start, end in [*_double_quoted(markup), *_single_quoted(markup)]:
        markup.mark("quote", start, end)
    if markup.holds("quote") and _own_speech(markup):
        markup.clear("quote")


def _double_quoted(markup: Markup) -> Iterator[tuple[int, int]]:
    text, opened = markup.text, -1
    for found in _DOUBLE.finditer(text):
        at, sign = found.start(), found.group()
        if sign[0] == "\n":
            opened = -1
        elif markup.inside(at, PROTECTED):
            continue
        elif opened < 0:
            # After a digit it stands for inches, after a letter it closes what was never opened.
            before, after = text[at - 1 : at], text[at + 1 : at + 2]
            straight = sign == '"' and not before.isalnum() and after.strip()
            opened = at if straight or sign in "\u201c\u201e\u00ab" else -1
        elif sign in '"\u201d\u00bb' or (sign == "\u201c" and text[opened] == "\u201e"):
            yield opened, at + 1
            opened = -1


def _single_quoted(markup: Markup) -> Iterator[tuple[int, int]]:
    for found in _SINGLE.finditer(markup.text):
        if not markup.touches(found.start(), found.start() + 1, PROTECTED):
            yield found.span()


_STAGE = re.compile(r"\*{1,3}[^*\n]{1,400}\*{1,3}|_[^_\n]{1,400}_")


def _own_speech(markup: Markup) -> bool:
    rest = markup.prose(("quote",))
    return not any(character.isalpha() for character in _STAGE.sub(" ", rest))
