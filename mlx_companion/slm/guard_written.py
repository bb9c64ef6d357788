"""Words in capitals that are pressed, typed or written on a thing, and names that are given so.

"Choose FILE, then EXPORT", "Reply with YES", "LOVE tattooed on one hand", "the Big Five, or OCEAN":
whatever the word is, here it is the name of itself. `guard_shouts` asks::

    entered(draft, start, end)           # True for the first three
    also_called(draft, start, end)       # True for the last one
"""

from __future__ import annotations

import re

from mlx_companion.personality.lexicon import is_word
from mlx_companion.slm.guard_labels import SAYERS
from mlx_companion.slm.guard_stage import verb_form
from mlx_companion.slm.guard_text import Draft

# What is pressed, chosen or typed: "Choose FILE, then EXPORT", "Reply with YES or NO".
_ORDER = (
    r"(?:^|[.!?:;,(*\-\u2022\d] |"
    r"\b(?:to|then|and|or|can|must|please|just|you|you'll|now|but) )"
)
_PRESSED = (
    r"(?:[Cc]lick|[Pp]ress|[Tt]ap|[Cc]hoose|[Ss]elect|[Pp]ick|[Hh]old|[Tt]oggle|[Hh]it|"
    r"[Ss]croll to|[Ll]ook for|[Uu]nder|[Ss]et (?:it|the \w+) to|[Ss]witch (?:it )?to|"
    r"[Ll]eave (?:it )?on)"
)
_TYPED = r"(?:[Tt]ype|[Rr]eply|[Tt]ext|[Ss]end|[Ee]nter|[Ss]ay|[Aa]nswer)"
_CHOSEN = re.compile(
    rf"{_ORDER}(?:{_PRESSED}(?: on| the)?|{_TYPED}(?: back| with| only| the word| just)*)"
    r"(?: [A-Z]{2,}[^.!?\n]{0,40}(?:,|\bthen|\band|\bor|\bto)"
    r"(?: then)?(?: on| to| press| choose| tap| click)?)? (?:[A-Z]{2,} )*$"
)
_CHOSEN_ENDS = re.compile(
    r"(?: [A-Z]{2,})*(?:$|\s*[.,;:)\n]|"
    r" (?:to|and|or|then|in|on|for|from|as|at|if|when|with|until|by|again|twice)\b)"
)
# "Press HARD on the lid" says how.
_HOW = frozenset(["hard", "fast", "slow", "long", "first", "soft", "now", "here", "again", "twice"])
_PARTICLES = frozenset(["up", "on", "out", "down", "back", "off"])
_PHRASAL = re.compile(r"\b(?:[Pp]ick|[Hh]old|[Ss]et|[Ll]eave)(?: \w+)? $")
_SET_TO = re.compile(r"\b(?:[Ss]et|[Rr]ename|[Cc]hange)  to ")
# What is written on a thing: "KEEP CALM in white letters", "LOVE tattooed on one hand".
_LETTERED = re.compile(
    r"(?:\s[A-Z]+){0,5} (?:is |was )?(?:tattooed|stencill?ed|engraved|embroidered|printed|stamped|"
    r"painted|written|carved|scrawled|sprayed|spelled out|spelt out)"
    r" (?:on|in|across|over|above|along|into|down)\b"
    r"|(?:\s[A-Z]+){0,5} in (?:\w+ ){0,3}(?:letters|lettering|neon|chalk|capitals)\b"
)
_ON_THING = re.compile(
    r"(?:\s[A-Z]+){0,5} (?:on|above|across|over)"
    r" (?:it|its|the|a|an|one|his|her|your|my|each|every|them)\b"
)
_WITH = re.compile(
    rf"\b{SAYERS}\b (?:with|has|that has|had|bearing|saying) (?:the (?:word|words) )?(?:[A-Z]+ )*$"
    r"|\b(?:[Ss]tencil|[Pp]rint|[Ww]rite|[Pp]aint|[Ee]ngrave|[Ss]tamp|[Cc]arve|[Ee]mbroider|[Ss]pray|"
    r"[Ss]ays?) (?:[A-Z]+ )*$",
)
_TITLED_SO = re.compile(
    r"\b(?:headline|slogan|motto|inscription|caption|subject line|password|passphrase|code ?word)\b"
    r" (?:was|is|were|read|reads)(?: not)? (?:[A-Z]+ )*$"
)
# "EXPLAIN shows the plan": a verb in capitals that is itself what does something.
_DOES = re.compile(r"(?: and [A-Z]+)? (?:enters|exits|exeunt|crosses|([a-z]{3,}))\b")
# "The Big Five, or OCEAN, ..."; "the wagon, known as RUMBLE"
_ALSO_CALLED = re.compile(
    r"(?:, or|known as|a\.?k\.?a\.?|abbreviated(?: to| as)?|short for|acronym) $"
)


def entered(draft: Draft, start: int, end: int) -> bool:
    """Tell whether the word is to be pressed, chosen or typed, or stands written on a thing.

    Such words may be any: "Reply with YES or NO", "LOVE tattooed on one hand".
    """
    first, last = draft.sentence(start)
    right = draft.own[end : min(last, end + 60)]
    if right.startswith("!"):
        return False
    left = draft.own[max(first, start - 100) : start]
    if _CHOSEN.search(left) and _CHOSEN_ENDS.match(right) and not _manner(draft, left, start, end):
        return True
    # "SETTINGS > NETWORK", "Set VERBOSE to 1"
    if right.startswith(" > ") or left.endswith(" > ") or _SET_TO.search(left + right[:4]):
        return True
    if _LETTERED.match(right):
        return True
    if _TITLED_SO.search(left):
        return True
    return _ON_THING.match(right) is not None and _WITH.search(left) is not None


# "Copy this onto the box:", and the lines that follow.
_TO_COPY = re.compile(
    r"\b(?:copy|cop(?:ies|ied)|prints?|printed|writes?|written|paint(?:s|ed)?|pastes?|sticks?|stencil\w*|"
    r"puts?|letter(?:s|ing)|label\w*|signs?|says?|reads?|texts?|wording|words|notices?|posters?|banners?|"
    r"plates?|engrav\w+|stamps?|stickers?|headlines?|captions?|inscriptions?)\b[^\n]*:[*_ ]*\Z",
    re.IGNORECASE,
)
_MOST_LINES = 12


def copied(draft: Draft, start: int) -> bool:
    """Tell whether the line is one of those in capitals that a sentence gives to be copied."""
    first, last = draft.line(start)
    if last - first > 80 or not draft.text[first:last].isupper():
        return False
    above = draft.text[max(0, first - 1000) : first].split("\n")[:-1]
    for line in reversed(above[-_MOST_LINES:]):
        if line.strip() and not line.isupper():
            return _TO_COPY.search(line) is not None
    return False


def also_called(draft: Draft, start: int, end: int) -> bool:
    """Tell whether the word is given as another name: "the Big Five, or OCEAN, ..."."""
    closes = draft.text[end : end + 1] in (",", ".", ")", ";", "")
    return closes and _ALSO_CALLED.search(draft.own, max(0, start - 20), start) is not None


def is_doer(draft: Draft, start: int, end: int, word: str) -> bool:
    """Tell whether a verb in capitals opens a sentence and does something: "BLAST compares"."""
    found = _DOES.match(draft.own, end)
    if found is None or draft.own[draft.sentence(start)[0] : start].strip():
        return False
    verb = found[1]
    return not verb or (verb_form(verb) == "s" and is_word(word.removesuffix("e") + "ing"))


def _manner(draft: Draft, left: str, start: int, end: int) -> bool:
    """ "Press HARD", "pick it UP": how it is done, or the particle of a verb."""
    word = draft.text[start:end].lower()
    return word in _HOW or (word in _PARTICLES and _PHRASAL.search(left) is not None)
