"""Style rules about the shape of a reply: length, sentences, lists, markup, repetition.

Each rule is a function `(text, **parameters) -> str | None`: `None` when the text keeps the rule,
else the reason with the offending piece. Its keyword parameters are the ones a profile may set.
`rules.RULES` names them all. Patterns are written so that a match can begin at few places and
never backtracks over a long run: cost stays linear for any text.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

from mlx_companion.personality.words import fold, sentences, words

_BULLET_LINE = re.compile(r"^[ \t]{0,8}(?:[-*+\u2013\u2014]|[•‣◦▪●○■·]\s?)(?=\s|\w)", re.MULTILINE)
_DASH_LINE = re.compile(r"^[ \t]{0,8}[-*+\u2013\u2014•‣◦▪●○■·]", re.MULTILINE)
_NUMBER_LINE = re.compile(r"^[ \t]{0,8}\(?(?:\d{1,2}|[a-hA-H]|[ivx]{1,4})[.)]\s", re.MULTILINE)
_BRACKETED = re.compile(r"\([^()]*+\)")
_MARKERS = (
    re.compile(r"\((\d{1,2}|[a-h])\)\s"),
    re.compile(r"(?<![^\s:;,.])(\d{1,2}|[a-h])\)\s"),
    re.compile(r"(?:(?<![^\n])|(?<=[.:;?!,] ))(\d{1,2})\.\s"),
    re.compile(r"\bstep (\d{1,2})\b", re.IGNORECASE),
)
_SPACED_DASH = re.compile(r"(?<=\s)[-*•·](?=\s)")
_COLON_DASH = re.compile(r":\s[-*•·]\s")
_MARKDOWN = {
    "heading": re.compile(r"^ {0,3}#{1,6}\s", re.MULTILINE),
    "bold": re.compile(r"\*\*(?=\S)[^*\n]++\*\*"),
    "code": re.compile(r"`[^`\n]*+`|```"),
    "emphasis": re.compile(r"(?<![\w*])\*(?![\s*])[^*\n]++\*(?![\w*])"),
    "link": re.compile(r"\]\([^()\s]++\)"),
    "table": re.compile(r"^ {0,3}\|[^\n]*+$", re.MULTILINE),
    "rule": re.compile(r"^ {0,3}(?:-{3,}+|\*{3,}+|={3,}+)$", re.MULTILINE),
    "tag": re.compile(
        r"</?(?:b|i|u|br|p|div|span|ul|ol|li|h[1-6]|strong|em|table|tr|td|code|pre|a)\b[^<>]*+>",
        re.IGNORECASE,
    ),
}
_EMOJI = re.compile("[\U0001f000-\U0001faff\u2600-\u27bf\u2b50\u2b55\ufe0f\u20e3]")
_EMOTICON = re.compile(r"(?<!\S)[:;]-?[)(DPp](?=[\s.?,!]|$)")
_CLOSERS = "\"')]"
_DANGLING = frozenset(["the", "an", "and", "but", "because", "your", "my"])
_LONGEST_LOOP = 8
# Control, surrogate, private-use and unassigned characters.
_UNREADABLE = frozenset(["Cc", "Cs", "Co", "Cn"])


def clip(piece: str, length: int = 40) -> str:
    """Return `piece` on one line, at most `length` characters, for use in a reason."""
    flat = " ".join(piece[: 4 * length].split())
    return flat if len(flat) <= length else flat[: length - 3] + "..."


def max_words(text: str, *, limit: int = 40) -> str | None:
    """Keep to at most `limit` words."""
    count = len(words(text))
    return f"{count} words, at most {limit}" if count > limit else None


def min_words(text: str, *, limit: int = 3) -> str | None:
    """Say at least `limit` words."""
    count = len(words(text))
    return f"{count} words, at least {limit}" if count < limit else None


def complete_sentences(text: str) -> str | None:
    """Begin like a sentence and end like one: nothing cut off, nothing left open."""
    stripped = fold(text).strip()
    if not stripped:
        return "the text is empty"
    return _bad_start(stripped) or _bad_end(stripped) or _left_open(stripped)


def _bad_start(text: str) -> str | None:
    first = text.lstrip("\"'(")[:1]
    begins = first.isupper() or first.isdigit() or (first.isalpha() and not first.islower())
    # A currency or a minus sign is part of the number that it introduces.
    begins = begins or (text[:1] in "$€£¥-" and text[1:2].isdigit())
    return None if begins else f"begins with '{clip(text, 12)}', not like a sentence"


def _bad_end(text: str) -> str | None:
    bare = text.rstrip(_CLOSERS)
    if bare.endswith(".."):
        return f"trails off in '{clip(text[-20:])}'"
    if not bare.endswith((".", "?", "!")):
        return f"ends in '{clip(text[-20:])}' without a full stop or question mark"
    last = bare[-24:].rstrip(".?!").split(" ")[-1]
    return f"stops short after '{last}'" if last in _DANGLING else None


def _left_open(text: str) -> str | None:
    if text.count("(") > text.count(")") or text.count("[") > text.count("]"):
        return "a bracket is left open"
    inches = sum(text[at - 1].isdigit() for at in range(1, len(text)) if text[at] == '"')
    if text.count('"') % 2 and not inches:
        return "a quotation is left open"
    return None


def no_exclamation(text: str) -> str | None:
    """Use no exclamation mark of any script or width."""
    for mark in "!¡‼⁉❗❕﹗":
        at = fold(text).find(mark)
        if at >= 0:
            return f"exclamation mark after '{clip(fold(text)[max(0, at - 20) : at])}'"
    return None


def no_lists(text: str) -> str | None:
    """Write prose: no bullets, no numbering (also inline), no stack of short lines."""
    folded = fold(text).strip()
    line = _NUMBER_LINE.search(folded) or _bullet(folded)
    if line:
        return f"list item '{clip(folded[line.start() : line.start() + 40])}'"
    return _inline_list(folded) or _stacked_lines(folded)


def _bullet(text: str) -> re.Match[str] | None:
    found = _BULLET_LINE.search(text)
    # "-5 degrees" opens with a minus; a dash glued to a word is a bullet only when lines repeat it.
    if found and not text[found.end() : found.end() + 1].isspace():
        glued = [match for match in _DASH_LINE.finditer(text)]
        return found if len(glued) > 1 or found.group().strip() in "•‣◦▪●○■·" else None
    return found


def _inline_list(text: str) -> str | None:
    without_asides = _BRACKETED.sub(" ", text)
    for index, pattern in enumerate(_MARKERS):
        # A closing bracket numbers an item only when it closes nothing: "(page 1)" does not.
        where = without_asides if index == 1 else text
        marks = {mark.lower() for mark in pattern.findall(where)}
        if {"1", "2"} <= marks or {"a", "b"} <= marks:
            return f"inline numbering in '{clip(text)}'"
    dashes = len(_SPACED_DASH.findall(text))
    if dashes > 2 or _COLON_DASH.search(text):
        return f"inline bullets in '{clip(text)}'"
    return None


def _stacked_lines(text: str) -> str | None:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    open_ended = [line for line in lines if line[-1] not in ".?!\"'"]
    if len(lines) > 2 and len(open_ended) > 1:
        return f"{len(lines)} lines that read as items, such as '{clip(open_ended[0])}'"
    return None


def no_markdown(text: str) -> str | None:
    """Use no headings, bold, emphasis, code, links, tables, rules or HTML tags."""
    folded = fold(text)
    for kind, pattern in _MARKDOWN.items():
        found = pattern.search(folded)
        if found:
            return f"markdown {kind} '{clip(found.group())}'"
    return None


def no_emoji(text: str) -> str | None:
    """Use no emoji and no emoticon such as `:)`."""
    found = _EMOJI.search(text) or _EMOTICON.search(fold(text))
    return f"emoji '{found.group()}'" if found else None


def single_paragraph(text: str) -> str | None:
    """Stay on one line: no line break inside the reply."""
    lines = text.strip().splitlines()
    return f"{len(lines)} lines, expected one paragraph" if len(lines) > 1 else None


def no_repetition(text: str, *, ngram: int = 4, times: int = 2) -> str | None:
    """Say nothing twice: no sentence again, no `ngram` words more than `times`, no loop."""
    spoken = words(text)
    again = _repeated_sentence(text)
    if again:
        return f"says '{clip(again)}' twice"
    grams = Counter(zip(*(spoken[offset:] for offset in range(ngram)), strict=False))
    gram, count = max(grams.items(), key=lambda item: item[1], default=((), 0))
    if count > times:
        return f"says '{clip(' '.join(gram))}' {count} times"
    return _loop(spoken)


def _repeated_sentence(text: str) -> str | None:
    seen = set()
    for sentence in sentences(text):
        key = tuple(words(sentence))
        if len(key) > 1 and key in seen:
            return sentence
        seen.add(key)
    return None


def _loop(spoken: list[str]) -> str | None:
    for period in range(1, _LONGEST_LOOP + 1):
        run = 0
        for at in range(period, len(spoken)):
            run = run + 1 if spoken[at] == spoken[at - period] else 0
            if run >= max(4, period):
                return f"loops over '{clip(' '.join(spoken[at - period + 1 : at + 1]))}'"
    return None


def no_bare_question(text: str) -> str | None:
    """State something: a reply made only of questions answers nothing."""
    found = sentences(text)
    asks = bool(found) and all(one.rstrip(_CLOSERS).endswith("?") for one in found)
    return f"only asks: '{clip(found[0])}'" if asks else None


def readable(text: str, *, letters_percent: int = 60) -> str | None:
    """Be text: no control or replacement characters, mostly letters (percent of non-spaces)."""
    for character in sorted(set(text) - set("\n\r\t")):
        if character == "\ufffd" or unicodedata.category(character) in _UNREADABLE:
            return f"unreadable character U+{ord(character):04X}"
    solid = [character for character in text if not character.isspace()]
    letters = sum(character.isalnum() for character in solid)
    if 100 * letters < letters_percent * len(solid):
        return f"{letters} of {len(solid)} characters are letters or digits"
    return None
