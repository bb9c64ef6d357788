"""Finds slang in a message: terms, senses, confidence and place.

Unambiguous terms are accepted where they stand; everyday words with a slang sense only when the
sense check says so; stretched words ("soooo") by their plain spelling; and terms that were learned
from the person, with the confidence they were learned with::

    detector = SlangDetector.from_pack(load_pack(packaged("context_tracker")))
    detector.detect("ngl this song is fire")
    # [{"term": "ngl", "sense": "not going to lie", "confidence": 0.97, "span": [0, 3], ...},
    #  {"term": "fire", "sense": "excellent", ...}]

The sense check reads the encoder's states at the word where the encoder is on this disk, and the
words beside it alone where not. Without a head (`SlangDetector(lexicon)`) only the unambiguous ones
are found: the rules-only form.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import yaml

from mlx_companion.errors import SLMError
from mlx_companion.slm.linear import Calibration, LinearHead
from mlx_companion.slm.packs import Pack
from mlx_companion.slm.slang_lexicon import Entry, Lexicon, Match
from mlx_companion.slm.slang_reader import TermReader, find_reader
from mlx_companion.slm.slang_sense import COLUMNS, Place, dense_row, sparse_row
from mlx_companion.slm.tracker_words import Token, WordTable, tokens, unstretched

SURE = 0.97
_SHORT = 0.9
_STRETCHED = 0.8
# Words that people stretch to say "very"; a stretched interjection ("ahhh") is no slang.
_EMPHATIC_TEXT = """
    so really very much please love good bad cute nice long way too best great cool fun funny
    happy sad hot big late tired hungry bored sorry thanks yes no why stop come baby right
"""
_EMPHATIC = frozenset(_EMPHATIC_TEXT.split())
_OWNERS_TEXT = """
    my a an his her your our this that best good old me
"""
_OWNERS = frozenset(_OWNERS_TEXT.split())
_MARKS = ",.!?;:)"


LIGHT, FULL = "sense", "sense_full"


@dataclass(frozen=True)
class SenseHead:
    """A sense check.

    Attributes:
        head: over the blocks of `sense_blocks`.
        calibration: of its logits.
        threshold: probability from which an ambiguous term is slang.
        unpractised: the same for a term that no training sentence shows as slang.
        usual: the same for a term that is hardly anything but slang in messages.
    """

    head: LinearHead
    calibration: Calibration
    threshold: float = 0.5
    unpractised: float = 0.5
    usual: float = 0.5

    @classmethod
    def from_pack(cls, pack: Pack, name: str) -> SenseHead:
        """The head of a pack by its name, `LIGHT` or `FULL`.

        Raises:
            SLMError: it has none.
        """
        told = pack.settings.get("slang", {}).get(name, {})
        return cls(
            LinearHead.from_arrays(pack.arrays, name),
            Calibration(told.get("slope", 1.0), told.get("offset", 0.0)),
            told.get("threshold", 0.5),
            told.get("unpractised", 0.5),
            told.get("usual", 0.5),
        )

    def least(self, flags: str) -> float:
        """Probability from which a term with these flags is slang."""
        if "m" in flags:
            return self.usual
        return self.unpractised if "x" in flags else self.threshold


class SlangDetector:
    """Reads messages against a lexicon.

    Args:
        lexicon: the terms.
        table: known words and vectors; needed by the heads.
        light: reads the words beside a term; without it ambiguous terms are never accepted.
        full: reads the encoder's states besides.
        reader: finds the encoder when it is first needed; None where there is none.
    """

    def __init__(
        self,
        lexicon: Lexicon,
        *,
        table: WordTable | None = None,
        light: SenseHead | None = None,
        full: SenseHead | None = None,
        reader: Callable[[], TermReader | None] = lambda: None,
    ) -> None:
        self.lexicon, self.table = lexicon, table
        self._light, self._full = light, full
        self._find, self._found = reader, False
        self._reader: TermReader | None = None
        self._lock = threading.Lock()

    @classmethod
    def from_pack(cls, pack: Pack, *, use_encoder: bool = True) -> SlangDetector:
        """The detector of a pack.

        Args:
            pack: of the context tracker.
            use_encoder: whether the encoder is read where it is on this disk.

        Raises:
            SLMError: the pack has no lexicon or no head for it.
        """
        sha256 = pack.settings.get("slang", {}).get("encoder")
        reads = use_encoder and sha256 is not None
        return cls(
            lexicon_of(pack),
            table=WordTable.from_arrays(pack.arrays),
            light=SenseHead.from_pack(pack, LIGHT),
            full=SenseHead.from_pack(pack, FULL) if reads else None,
            reader=lambda: find_reader(sha256),
        )

    @property
    def reader(self) -> TermReader | None:
        """What reads the encoder; looked for once."""
        with self._lock:
            if not self._found and self._full is not None:
                self._reader, self._found = self._find(), True
            return self._reader

    def detect(self, text: str, learned: Mapping[str, float] | None = None) -> list[dict[str, Any]]:
        """Slang of one message, in order of place.

        Args:
            text: the message.
            learned: terms learned from this person -> confidence.

        Returns:
            Items with `term`, `sense`, `confidence`, `span` [start, end), `origin`, and `tier`,
            one of "unambiguous", "sense", "stretched" and "learned".
        """
        found = tokens(text)
        shouted = text.isupper() and len(text) > 12
        matches = [
            match
            for match in self.lexicon.matches(found)
            if not match.entry.plain and _allowed(match, found, shouted)
        ]
        items = [
            _item(m.entry, found, m.first, m.last, SURE if len(m.entry.term) > 2 else _SHORT)
            for m in matches
            if not m.entry.ambiguous and not m.entry.spelling
        ]
        items += self._checked([m for m in matches if m.entry.ambiguous], found, text)
        taken = {at for item in items for at in range(*item["span"])}
        taken |= {found[m.first].start for m in matches if m.entry.spelling}
        items += self._others(found, taken, learned or {})
        return sorted(items, key=lambda item: item["span"])

    def spellings(self, text: str) -> int:
        """How many reduced spellings ("u", "thx") a message has: casual, but no slang."""
        found = tokens(text)
        return sum(m.entry.spelling for m in self.lexicon.matches(found) if _allowed(m, found))

    def _checked(
        self, matches: Sequence[Match], found: Sequence[Token], text: str
    ) -> list[dict[str, Any]]:
        if self._light is None or not matches:
            return []
        places = [Place(found, m.first, m.last, m.entry.term, text) for m in matches]
        head, shares = self._answer(places)
        return [
            _item(m.entry, found, m.first, m.last, float(share))
            for m, share in zip(matches, shares, strict=True)
            if share >= head.least(m.entry.flags)
        ]

    def probabilities(self, places: Sequence[Place]) -> np.ndarray:
        """Probability (N,) of the slang sense at each place, which knows its text.

        Raises:
            SLMError: the detector has no head.
        """
        return self._answer(places)[1]

    def _answer(self, places: Sequence[Place]) -> tuple[SenseHead, np.ndarray]:
        if self._light is None or self.table is None:
            raise SLMError("this detector has no sense check; make it from a pack")
        head, reader = self._light, self.reader
        if self._full is not None and reader is not None:
            head = self._full
        blocks = sense_blocks(places, self.table, reader if head is self._full else None)
        return head, head.calibration(head.head.logits(blocks)[:, 0])

    def _others(
        self, found: Sequence[Token], taken: set[int], learned: Mapping[str, float]
    ) -> list[dict[str, Any]]:
        items = []
        for at, token in enumerate(found):
            if token.start in taken:
                continue
            if token.low in learned:
                entry = Entry(token.low, "learned from this person", "u", "learned")
                items.append(_item(entry, found, at, at + 1, learned[token.low], "learned"))
            elif plain := next((p for p in unstretched(token.low) if p in _EMPHATIC), None):
                entry = Entry(token.low, f"{plain}, stretched for emphasis", "u", "texting")
                items.append(_item(entry, found, at, at + 1, _STRETCHED, "stretched"))
        return items


def lexicon_of(pack: Pack) -> Lexicon:
    """The lexicon in a pack's rules.

    Raises:
        SLMError: there is none.
    """
    try:
        return Lexicon.parse(yaml.safe_load(pack.rules)["lexicon"])
    except (yaml.YAMLError, TypeError, KeyError, AttributeError) as error:
        raise SLMError(f"the pack has no lexicon in its rules ({error}); restore it") from error


def sense_blocks(
    places: Sequence[Place], table: WordTable, reader: TermReader | None = None
) -> list[Any]:
    """Feature blocks of places: CSR (N, COLUMNS), dense (N, DENSE), and what a reader sees."""
    from scipy.sparse import csr_matrix

    rows = [sparse_row(place) for place in places]
    ends = np.cumsum([0, *map(len, rows)])
    columns = np.concatenate([np.zeros(0, np.int32), *rows])
    # Rows of length 1: a long message has no more say than a short one.
    values = np.concatenate([[], *(np.full(len(r), 1 / np.sqrt(max(len(r), 1))) for r in rows)])
    sparse = csr_matrix((values.astype(np.float32), columns, ends), shape=(len(rows), COLUMNS))
    blocks = [sparse, np.stack([dense_row(place, table) for place in places])]
    if reader is not None:
        blocks.append(reader.rows([(place.text, place.span, place.term) for place in places]))
    return blocks


def _allowed(match: Match, found: Sequence[Token], shouted: bool = False) -> bool:
    flags, token = match.entry.flags, found[match.first]
    if "C" in flags:
        return token.text.isupper() and not shouted
    if "l" in flags:
        # "Cba" at the start is in small letters too; "Ty" may be a name.
        small = token.text[match.first == 0 and len(token.text) > 2 :].islower()
        return (small or shouted) and not _in_abbreviation(match, found)
    return "o" not in flags or _address(match, found)


def _in_abbreviation(match: Match, found: Sequence[Token]) -> bool:
    """Part of "U.S.", of a number and its unit, or of a slashed word."""
    before = found[match.first - 1] if match.first else None
    after = found[match.last] if match.last < len(found) else None
    glued = before is not None and before.end == found[match.first].start
    dotted = after is not None and after.text == "." and match.last + 1 < len(found)
    dotted = dotted and found[match.last + 1].start == after.end if after else False
    return bool(dotted or (glued and before is not None and before.text in "./-$"))


def _address(match: Match, found: Sequence[Token]) -> bool:
    before = found[match.first - 1].low if match.first else ","
    after = found[match.last].low if match.last < len(found) else "."
    return before in _OWNERS or (after in _MARKS and len(found) > 1) or before in _MARKS


def _item(
    entry: Entry,
    found: Sequence[Token],
    first: int,
    last: int,
    confidence: float,
    tier: str | None = None,
) -> dict[str, Any]:
    low = " ".join(token.low for token in found[first:last])
    # A stretched term is reported by its plain spelling, an inflected one as it stands.
    plain = next((p for p in unstretched(low) if p == entry.term), low)
    end = found[last - 1].end
    if low.endswith("'s") and "'" not in entry.term:
        plain, end = low[:-2], end - 2
    return {
        "term": plain,
        "sense": entry.sense,
        "confidence": confidence,
        "span": [found[first].start, end],
        "origin": entry.origin,
        "tier": tier or ("sense" if entry.ambiguous else "unambiguous"),
    }
