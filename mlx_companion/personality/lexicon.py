"""Ordinary words of English and the case that they are written in.

`SO` is a shout because "so" is a word; `NASA` is none because nobody writes "nasa". `lexicon.txt`
holds words with the case that they usually have inside a sentence ("monday" is there as "Monday"),
counted by `build_lexicon` over public-domain prose and public chat data; very short words, among
which acronyms abound, were chosen by hand::

    is_word("AMAZING")          # True
    ordinary_case("MONDAY")     # "Monday"
    ordinary_case("NASA")       # None
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from importlib import resources

_WORD = re.compile(r"[A-Za-z]+(?:'[A-Za-z]+)*")
# Of two and three letters: everything else that short is more often an acronym or a name.
_SHORT = """
    ah am an as at aw be by do go ha he hi if in is it me my no of oh on or so to uh um up us we ya
    yo aha ago all and any are ask ate aww bad bag bed bet big bit bow box boy bug bus but buy bye
    can car cat cry cup cut day did die dog dry due eat egg end era eve eye fan far few fit fix fly
    for fun get god got guy had has hat her hey him his hit hot how hug huh ice ill its jaw job joy
    key kid lay led leg let lie log lot low mad man map may men met mix mom mud nah new nor not now
    nut odd off oil old one ooh our out own pal pay pen per pet pin pop put ran raw red rid row run
    sad sat saw say sea see set she shy sip sir sit six sky son sun tad tea ten the tie tip too top
    toy try two use war was way web wet who why win won woo wow yay yea yep yes yet you yum zip
"""
_CAPITALS = """
    I I'm I've I'll I'd Monday Tuesday Wednesday Thursday Friday Saturday Sunday January February
    April June July August September October November December Christmas Easter Halloween English
    French German Spanish Italian American British European Asian African Indian Chinese Japanese
    Russian Greek Latin Europe Africa Asia America England France Germany Spain Italy London Paris
    Christian Jewish Muslim Mr Mrs
"""
_ENDINGS = frozenset(["s", "ll", "re", "ve", "d", "m", "t"])


def build_lexicon(formal: Iterable[str], casual: Iterable[str], least: int = 4) -> list[str]:
    """Count words over texts; return those that are ordinary, in their ordinary case, sorted.

    Args:
        formal: texts whose capitals can be trusted, such as books.
        casual: texts of chats; a word counts three times here, and one that is written in capitals
            at least as often as in small letters is an acronym and left out.
        least: how often a word must occur.
    """
    small, capital, shouted = Counter[str](), Counter[str](), Counter[str]()
    for weight, texts in ((1, formal), (3, casual)):
        for text in texts:
            _count(text.replace("\u2019", "'"), weight, small, capital, shouted)
    own = {word.lower() for word in _CAPITALS.split()}
    kept = {
        word
        for word in small
        if len(word) > 3
        # A short one that is rare is a foreign word, a name or an acronym.
        and small[word] + capital[word] >= (least if len(word) > 5 else 3 * least)
        and small[word] > shouted[word]
        # Names and the like: more often with a capital in the middle of a sentence.
        and capital[word] <= 2 * small[word]
        and not word.endswith("'s")
    }
    return sorted({*kept - own, *_SHORT.split(), *_CAPITALS.split()})


def _count(
    text: str, weight: int, small: Counter[str], capital: Counter[str], shouted: Counter[str]
) -> None:
    for found in _WORD.finditer(text):
        word = found.group()
        before = text[max(0, found.start() - 2) : found.start()]
        if word.islower():
            small[word] += weight
        elif word.isupper() and len(word) > 1:
            shouted[word.lower()] += weight if weight > 1 else 0
        elif word[1:].islower() and before[1:] == " " and (before[0].islower() or before[0] == ","):
            capital[word.lower()] += 1


@lru_cache(maxsize=1)
def _lexicon() -> dict[str, str]:
    folder = resources.files("mlx_companion.personality")
    words = (folder / "lexicon.txt").read_text(encoding="utf-8").split()
    return {word.lower(): word for word in words}


def is_word(word: str) -> bool:
    """Tell whether `word`, in any case, is an ordinary word of English or a contraction of one."""
    return ordinary_case(word) is not None


def ordinary_case(word: str) -> str | None:
    """Return `word` in the case that it has inside a sentence; None when it is not known."""
    plain = word.replace("\u2019", "'").lower()
    known = _lexicon().get(plain)
    stem, apostrophe, ending = plain.rpartition("'")
    if known is None and apostrophe and ending in _ENDINGS:
        stem = _lexicon().get(stem, "")
        known = f"{stem}'{ending}" if stem else None
    if known is None or "\u2019" not in word:
        return known
    return known.replace("'", "\u2019")
