"""New terms of one person: words that no list knows, used again and again.

A word is learned when it is in no word list, is no misspelling of a known word, no name and no
address, and was used at least three times in at least two messages::

    learner = TermLearner(table, lexicon)
    for message in ("that's so glorpy", "glorpy again lol", "very glorpy"):
        new = learner.observe(message)
    new                      # [ContextUpdate("slang.glorpy", {"uses": 3, ...}, ...)]
    learner.forget("glorpy") # undone, and not learned again

The state is `to_dict()`; the object may be used from any thread. Several learners of one person add
up in a state that they keep together, each what it counted since it last looked there::

    state = learner.share(state)
    learner.kept()           # once the state is safe: its counts are not added again
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import Any

from mlx_companion.errors import SLMError
from mlx_companion.slm.results import ContextUpdate
from mlx_companion.slm.slang_lexicon import Lexicon
from mlx_companion.slm.tracker_words import Token, WordTable, tokens, unstretched

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_ENDINGS = ("s", "es", "ed", "d", "ing", "in", "er", "ers", "y", "ly", "'s")
# Beyond this the rarest half is dropped: typing errors would otherwise pile up for ever.
_MOST_CANDIDATES = 4000


class TermLearner:
    """Counts unknown words and says when one is learned.

    Args:
        table: known words.
        lexicon: known slang.
        uses: how often a term is used before it is learned.
        messages: in how many messages or conversations.
        state: of `to_dict`, to go on from.

    Raises:
        SLMError: a state that is none.
    """

    def __init__(
        self,
        table: WordTable,
        lexicon: Lexicon,
        *,
        uses: int = 3,
        messages: int = 2,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self.table, self.lexicon = table, lexicon
        self.uses, self.messages = uses, messages
        self._lock = threading.Lock()
        self._seen, self._learned, self._forgotten = _read(state or {})
        # Counts that came from the state that is kept together, and those offered to it.
        self._shared = _copied(self._seen)
        self._offered = self._shared

    @property
    def learned(self) -> dict[str, float]:
        """Terms learned so far -> confidence."""
        with self._lock:
            return dict(self._learned)

    def observe(self, text: str, event_time: str | None = None) -> list[ContextUpdate]:
        """Count one message's words; the terms that were learned by it."""
        found = list(self._candidates(tokens(text)))
        updates = []
        with self._lock:
            for term in dict.fromkeys(token.low for token in found):
                counts = self._seen.setdefault(term, [0, 0])
                counts[0] += sum(token.low == term for token in found)
                counts[1] += 1
                if counts[0] < self.uses or counts[1] < self.messages:
                    continue
                del self._seen[term]
                self._learned[term] = confidence = min(0.5 + 0.1 * counts[1], 0.9)
                token = next(t for t in found if t.low == term)
                value = {"uses": counts[0], "messages": counts[1]}
                span = (token.start, token.end)
                updates.append(
                    ContextUpdate(
                        f"slang.{term}", value, token.text, span, confidence, event_time,
                        explicit=False,
                    )
                )  # fmt: skip
            self._trim()
        return updates

    def forget(self, term: str) -> None:
        """Undo a term: it is not learned again."""
        with self._lock:
            self._learned.pop(term, None)
            self._seen.pop(term, None)
            self._forgotten.add(term)

    def to_dict(self) -> dict[str, Any]:
        """The state, JSON values."""
        with self._lock:
            return self._state()

    def share(self, state: Mapping[str, Any] | None) -> dict[str, Any]:
        """Add what was counted here to a state that others add to as well, and go on from it.

        Args:
            state: as it is now; None when there is none.

        Returns:
            What to keep in its place; see `kept`.

        Raises:
            SLMError: a state that is none.
        """
        seen, learned, forgotten = _read(state or {})
        with self._lock:
            before = _copied(seen)
            for term, counts in self._seen.items():
                known = self._shared.get(term, [0, 0])
                theirs = seen.get(term, [0, 0])
                new = [at + now - then for at, now, then in zip(theirs, counts, known, strict=True)]
                if new[0] > 0:
                    seen[term] = new
            self._forgotten |= forgotten
            # The surer of two that learned the same term.
            for term, confidence in learned.items():
                self._learned[term] = max(confidence, self._learned.get(term, 0.0))
            for term in self._forgotten:
                self._learned.pop(term, None)
            done = self._forgotten | self._learned.keys()
            self._seen = {term: counts for term, counts in seen.items() if term not in done}
            self._trim()
            self._shared, self._offered = before, _copied(self._seen)
            return self._state()

    def kept(self) -> None:
        """What `share` gave last has been kept."""
        with self._lock:
            self._shared = self._offered

    def _state(self) -> dict[str, Any]:
        return {
            "seen": _copied(self._seen),
            "learned": dict(self._learned),
            "forgotten": sorted(self._forgotten),
        }

    def _candidates(self, found: list[Token]) -> Iterator[Token]:
        for at, token in enumerate(found):
            word = token.low
            if not word.isalpha() or not word.isascii() or not 3 <= len(word) <= 20:
                continue
            # A capital within a sentence is a name.
            starts = at == 0 or found[at - 1].text in ".!?"
            if token.text[0].isupper() and not starts:
                continue
            if word in self._learned or word in self._forgotten or self.lexicon.get(word):
                continue
            if not unstretched(word) and not self._known(word):
                yield token

    def _known(self, word: str) -> bool:
        stems = (word[: -len(e)] for e in _ENDINGS if word.endswith(e) and len(word) > len(e) + 2)
        if word in self.table or any(s in self.table or f"{s}e" in self.table for s in stems):
            return True
        # Short words have a known neighbour whatever they are.
        return len(word) > 4 and any(near in self.table for near in _neighbours(word))

    def _trim(self) -> None:
        if len(self._seen) > _MOST_CANDIDATES:
            kept = sorted(self._seen.items(), key=lambda item: -item[1][0])
            self._seen = dict(kept[: _MOST_CANDIDATES // 2])


def _read(state: Mapping[str, Any]) -> tuple[dict[str, list[int]], dict[str, float], set[str]]:
    """Uses and messages of terms that are counted, terms learned, and terms forgotten."""
    try:
        seen = {str(k): [int(one[0]), int(one[1])] for k, one in state.get("seen", {}).items()}
        learned = {str(k): float(v) for k, v in state.get("learned", {}).items()}
        return seen, learned, set(map(str, state.get("forgotten", [])))
    except (AttributeError, TypeError, ValueError, IndexError) as error:
        raise SLMError(f"this is no state of a learner ({error}); give `to_dict()`") from error


def _copied(counts: Mapping[str, list[int]]) -> dict[str, list[int]]:
    return {term: list(one) for term, one in counts.items()}


def _neighbours(word: str) -> Iterator[str]:
    """Words at one insertion, deletion, replacement or swap."""
    for at in range(len(word) + 1):
        head, tail = word[:at], word[at:]
        if tail:
            yield head + tail[1:]
            yield from (head + letter + tail[1:] for letter in _LETTERS)
        if len(tail) > 1:
            yield head + tail[1] + tail[0] + tail[2:]
        yield from (head + letter + tail for letter in _LETTERS)
