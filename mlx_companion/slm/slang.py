"""Finds slang in a message: terms, senses, confidence and place.

Unambiguous terms are accepted where they stand; everyday words with a slang sense only when the
sense check says so; stretched words ("soooo") by their plain spelling; and terms that were learned
from the person, with the confidence they were learned with::

    detector = SlangDetector.from_pack(load_pack(packaged("context_tracker")))
    detector.detect("ngl this song is fire")
    # [{"term": "ngl", "sense": "not going to lie", "confidence": 0.97, "span": [0, 3], ...},
    #  {"term": "fire", "sense": "excellent", ...}]

Without a head (`SlangDetector(lexicon)`) only the unambiguous ones are found: the rules-only form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import yaml

from mlx_companion.errors import SLMError
from mlx_companion.slm.linear import Calibration, LinearHead
from mlx_companion.slm.packs import Pack
from mlx_companion.slm.slang_lexicon import Entry, Lexicon, Match
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


class SlangDetector:
    """Reads messages against a lexicon.

    Args:
        lexicon: the terms.
        table: known words and vectors; needed by the head.
        head: of the sense check; without one ambiguous terms are never accepted.
        calibration: of the head.
        threshold: probability from which an ambiguous term is slang.
    """

    def __init__(
        self,
        lexicon: Lexicon,
        *,
        table: WordTable | None = None,
        head: LinearHead | None = None,
        calibration: Calibration | None = None,
        threshold: float = 0.5,
    ) -> None:
        self.lexicon, self.table, self.head = lexicon, table, head
        self.calibration = calibration or Calibration()
        self.threshold = threshold

    @classmethod
    def from_pack(cls, pack: Pack) -> SlangDetector:
        """The detector of a pack.

        Raises:
            SLMError: the pack has no lexicon or no head for it.
        """
        settings = pack.settings.get("slang", {})
        return cls(
            lexicon_of(pack),
            table=WordTable.from_arrays(pack.arrays),
            head=LinearHead.from_arrays(pack.arrays, "sense"),
            calibration=Calibration(settings.get("slope", 1.0), settings.get("offset", 0.0)),
            threshold=settings.get("threshold", 0.5),
        )

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
        matches = [m for m in self.lexicon.matches(found) if _allowed(m, found, shouted)]
        items = [
            _item(m.entry, found, m.first, m.last, SURE if len(m.entry.term) > 2 else _SHORT)
            for m in matches
            if not m.entry.ambiguous
        ]
        items += self._checked([m for m in matches if m.entry.ambiguous], found)
        taken = {at for item in items for at in range(*item["span"])}
        items += self._others(found, taken, learned or {})
        return sorted(items, key=lambda item: item["span"])

    def _checked(self, matches: Sequence[Match], found: Sequence[Token]) -> list[dict[str, Any]]:
        if self.head is None or self.table is None or not matches:
            return []
        places = [Place(found, m.first, m.last, m.entry.term) for m in matches]
        shares = self.probabilities(places)
        return [
            _item(m.entry, found, m.first, m.last, float(share))
            for m, share in zip(matches, shares, strict=True)
            if share >= self.threshold
        ]

    def probabilities(self, places: Sequence[Place]) -> np.ndarray:
        """Probability (N,) of the slang sense at each place.

        Raises:
            SLMError: the detector has no head.
        """
        if self.head is None or self.table is None:
            raise SLMError("this detector has no sense check; make it from a pack")
        return self.calibration(self.head.logits(sense_blocks(places, self.table))[:, 0])

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


def sense_blocks(places: Sequence[Place], table: WordTable) -> list[Any]:
    """Feature blocks of places: CSR (N, COLUMNS) and dense (N, DENSE)."""
    from scipy.sparse import csr_matrix

    rows = [sparse_row(place) for place in places]
    ends = np.cumsum([0, *map(len, rows)])
    columns = np.concatenate([np.zeros(0, np.int32), *rows])
    # Rows of length 1: a long message has no more say than a short one.
    values = np.concatenate([[], *(np.full(len(r), 1 / np.sqrt(max(len(r), 1))) for r in rows)])
    sparse = csr_matrix((values.astype(np.float32), columns, ends), shape=(len(rows), COLUMNS))
    return [sparse, np.stack([dense_row(place, table) for place in places])]


def _allowed(match: Match, found: Sequence[Token], shouted: bool) -> bool:
    flags, token = match.entry.flags, found[match.first]
    if "C" in flags:
        return token.text.isupper() and not shouted
    if "l" in flags:
        return (token.text.islower() or shouted) and not _in_abbreviation(match, found)
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
    return {
        "term": plain,
        "sense": entry.sense,
        "confidence": confidence,
        "span": [found[first].start, found[last - 1].end],
        "origin": entry.origin,
        "tier": tier or ("sense" if entry.ambiguous else "unambiguous"),
    }
