"""The slang lexicon: terms, their senses, and how far each may be trusted.

Entries are of two tiers. Those of the first are slang wherever they stand ("ngl", "no cap");
those of the second are everyday words with a slang sense ("fire", "tea"), which another part has
to check in its sentence (`slang_sense.py`). The lexicon is one text, in a pack's `rules.yaml`::

    lexicon = Lexicon.parse("no cap, nocap | u | no lie\\nslap | av | is excellent")
    lexicon.matches(tokens("this slaps, no cap"))

Words in parentheses set a term in its place and are no part of it: `(absolute) fire` is found in
"absolute fire" as "fire", without a sense check. Its head says what counts as slang and what does
not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mlx_companion.errors import SLMError
from mlx_companion.slm.tracker_words import Token, tokens, unstretched

_FLAGS = frozenset("uaolCvnpxmst")
_PADDED = re.compile(r"(?:\((?P<before>[^()]+)\) )?(?P<term>[^()]+?)(?: \((?P<after>[^()]+)\))?")
_IRREGULAR = {
    "blow": "blew blown", "bite": "bit bitten", "catch": "caught", "cut": "", "do": "did done",
    "drive": "drove", "eat": "ate eaten", "fall": "fell", "freak": "freaked", "get": "got gotten",
    "give": "gave given", "go": "went gone", "hang": "hung", "have": "had", "hit": "",
    "hold": "held", "lose": "lost", "make": "made", "put": "",
    "ride": "rode", "rip": "ripped", "run": "ran",
    "see": "saw seen", "send": "sent", "shoot": "shot", "sleep": "slept", "slide": "slid",
    "spill": "spilled spilt", "spin": "spun", "spit": "spat", "stand": "stood", "take": "took",
    "tear": "tore torn", "throw": "threw thrown", "wind": "wound", "write": "wrote",
}  # fmt: skip
_LONGEST = 8
_VOWELS = "aeiou"


@dataclass(frozen=True)
class Entry:
    """One term.

    Attributes:
        term: as the lexicon has it.
        sense: what it means.
        flags: see the head of the lexicon.
        origin: section of the lexicon, such as "gaming".
        before: words that stand before it and are no part of it.
        after: the same after it.
    """

    term: str
    sense: str
    flags: str
    origin: str
    before: str = ""
    after: str = ""

    @property
    def whole(self) -> str:
        """The term and the words that set it in its place."""
        return " ".join(filter(None, (self.before, self.term, self.after)))

    @property
    def spelling(self) -> bool:
        """A reduced spelling ("u", "thx"): casual, but no slang."""
        return "s" in self.flags

    @property
    def plain(self) -> bool:
        """A phrase that is no slang, though a word in it may be ("serves him right")."""
        return "t" in self.flags

    @property
    def ambiguous(self) -> bool:
        """It needs a sense check."""
        return "a" in self.flags


class Match(NamedTuple):
    """An entry found at tokens [first, last)."""

    entry: Entry
    first: int
    last: int


class _Phrase(NamedTuple):
    """Words to match, of which [first, last) are the term."""

    parts: tuple[str, ...]
    first: int
    last: int
    entry: Entry


class Lexicon:
    """Terms by their first word.

    Args:
        entries: in order; of two for the same term, the first counts, and a term that is listed
            counts before the form of another.
    """

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = tuple(entries)
        self._words: dict[str, Entry] = {}
        self._phrases: dict[str, list[_Phrase]] = {}
        # "pissed" has a sense of its own, whatever the forms of "piss" are.
        for entry in self.entries:
            self._add(entry.term, entry)
        for entry in self.entries:
            for form in _forms(entry):
                self._add(form, entry)
        for longer in self._phrases.values():
            longer.sort(key=lambda phrase: -len(phrase.parts))

    def _add(self, form: str, entry: Entry) -> None:
        before, parts, after = (_words(text) for text in (entry.before, form, entry.after))
        whole = (*before, *parts, *after)
        if len(whole) == 1:
            self._words.setdefault(whole[0], entry)
        elif parts:
            phrase = _Phrase(whole, len(before), len(before) + len(parts), entry)
            self._phrases.setdefault(whole[0], []).append(phrase)
            if parts == whole and all(part.isalnum() for part in parts):
                self._words.setdefault("-".join(parts), entry)

    @classmethod
    def parse(cls, text: str) -> Lexicon:
        """Read the lexicon's text.

        Raises:
            SLMError: a line that is no entry.
        """
        return cls(list(_entries(text)))

    def get(self, word: str) -> Entry | None:
        """The entry of one word, in small letters, stretched or not, or with "'s" at its end."""
        found = self._words.get(word)
        if found is None and word.endswith("in'"):
            found = self._words.get(f"{word[:-1]}g")
        if found is None and word.endswith("'s"):
            found = self._words.get(word[:-2])
        if found is None:
            for plain in unstretched(word):
                found = found or self._words.get(plain)
        return found

    def matches(self, found: Sequence[Token]) -> Iterator[Match]:
        """Entries in a text, the longest at each place, none over another."""
        at = 0
        while at < len(found):
            match = self._phrase(found, at) or self._word(found, at)
            if match is None:
                at += 1
                continue
            yield from self._inside(found, at, match.first)
            yield match
            at = match.last

    def _inside(self, found: Sequence[Token], first: int, last: int) -> Iterator[Match]:
        """Words before a term that are slang by themselves: "hella" in "hella fine"."""
        for at in range(first, last):
            match = self._word(found, at)
            if match is not None and not match.entry.ambiguous:
                yield match

    def _phrase(self, found: Sequence[Token], at: int) -> Match | None:
        for phrase in self._phrases.get(found[at].low, ()):
            here = found[at : at + len(phrase.parts)]
            if len(here) == len(phrase.parts) and all(map(_is_form, here, phrase.parts)):
                return Match(phrase.entry, at + phrase.first, at + phrase.last)
        return None

    def _word(self, found: Sequence[Token], at: int) -> Match | None:
        entry = self.get(found[at].low)
        return None if entry is None else Match(entry, at, at + 1)


def _words(text: str) -> tuple[str, ...]:
    return tuple(token.low for token in tokens(text))


def _is_form(token: Token, part: str) -> bool:
    return token.low == part or part in unstretched(token.low)


def _entries(text: str) -> Iterator[Entry]:
    origin = "general"
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if line.startswith("[") and line.endswith("]"):
            origin = line[1:-1]
            continue
        parts = [part.strip() for part in line.split(" | ")]
        if len(parts) != 3 or not set(parts[1]) <= _FLAGS or not parts[1]:
            raise SLMError(f"line {number} of the lexicon is no 'terms | flags | sense': {line!r}")
        for term in parts[0].split(","):
            if term.strip():
                read = _PADDED.fullmatch(term.strip().lower())
                if read is None:
                    raise SLMError(f"line {number} of the lexicon: {term!r} has odd parentheses")
                around = (read["before"] or "", read["after"] or "")
                yield Entry(read["term"], parts[2], parts[1], origin, *around)


def _forms(entry: Entry) -> Iterator[str]:
    """The other forms of a term that its flags give it."""
    term = entry.term
    if "n" in entry.flags:
        yield _with_s(term)
    if "v" in entry.flags:
        yield from _inflected(term)
    if "p" in entry.flags:
        verb, _, rest = term.partition(" ")
        yield from (f"{form} {rest}" for form in _inflected(verb))


def _with_s(term: str) -> str:
    return term + ("es" if term.endswith(("s", "sh", "ch", "x")) else "s")


def _inflected(verb: str) -> Iterator[str]:
    yield _with_s(verb)
    stem = verb[:-1] if verb.endswith("e") else verb + _doubled(verb)
    yield from (f"{stem}ing", f"{stem}in'", f"{stem}in")
    irregular = _IRREGULAR.get(verb)
    yield from [f"{stem}ed"] if irregular is None else irregular.split()


def _doubled(term: str) -> str:
    """The letter that is doubled before an ending: slap, slapped."""
    if len(term) < 3 or term[-1] in _VOWELS + "wxy" or term[-2] not in _VOWELS:
        return ""
    return "" if term[-3] in _VOWELS else term[-1]
