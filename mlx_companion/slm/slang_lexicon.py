"""The slang lexicon: terms, their senses, and how far each may be trusted.

Entries are of two tiers. Those of the first are slang wherever they stand ("ngl", "no cap");
those of the second are everyday words with a slang sense ("fire", "tea"), which another part has
to check in its sentence (`slang_sense.py`). The lexicon is one text, in a pack's `rules.yaml`::

    lexicon = Lexicon.parse("no cap, nocap | u | no lie\\nslap | av | is excellent")
    lexicon.matches(tokens("this slaps, no cap"))

Its head says what counts as slang and what does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mlx_companion.errors import SLMError
from mlx_companion.slm.tracker_words import Token, tokens, unstretched

_FLAGS = frozenset("uaolCvnpx")
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
    """

    term: str
    sense: str
    flags: str
    origin: str

    @property
    def ambiguous(self) -> bool:
        """It needs a sense check."""
        return "a" in self.flags


class Match(NamedTuple):
    """An entry found at tokens [first, last)."""

    entry: Entry
    first: int
    last: int


class Lexicon:
    """Terms by their first word.

    Args:
        entries: in order; of two for the same term, the first counts.
    """

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = tuple(entries)
        self._words: dict[str, Entry] = {}
        self._phrases: dict[str, list[tuple[tuple[str, ...], Entry]]] = {}
        for entry in self.entries:
            for form in _forms(entry):
                self._add(form, entry)
        for longer in self._phrases.values():
            longer.sort(key=lambda item: -len(item[0]))

    def _add(self, form: str, entry: Entry) -> None:
        parts = tuple(token.low for token in tokens(form))
        if len(parts) == 1:
            self._words.setdefault(parts[0], entry)
        elif parts:
            self._phrases.setdefault(parts[0], []).append((parts, entry))
            if all(part.isalnum() for part in parts):
                self._words.setdefault("-".join(parts), entry)

    @classmethod
    def parse(cls, text: str) -> Lexicon:
        """Read the lexicon's text.

        Raises:
            SLMError: a line that is no entry.
        """
        return cls(list(_entries(text)))

    def get(self, word: str) -> Entry | None:
        """The entry of one word, in small letters, stretched or not."""
        found = self._words.get(word)
        if found is None and word.endswith("in'"):
            found = self._words.get(f"{word[:-1]}g")
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
            yield match
            at = match.last

    def _phrase(self, found: Sequence[Token], at: int) -> Match | None:
        for parts, entry in self._phrases.get(found[at].low, ()):
            last = at + len(parts)
            here = found[at:last]
            if len(here) == len(parts) and all(map(_is_form, here, parts)):
                return Match(entry, at, last)
        return None

    def _word(self, found: Sequence[Token], at: int) -> Match | None:
        entry = self.get(found[at].low)
        return None if entry is None else Match(entry, at, at + 1)


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
                yield Entry(term.strip().lower(), parts[2], parts[1], origin)


def _forms(entry: Entry) -> Iterator[str]:
    """The term and, where its flags say so, its other forms."""
    term = entry.term
    yield term
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
