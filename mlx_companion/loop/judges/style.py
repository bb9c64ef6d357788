"""Judges that read only the text: style rules, cut-off replies, repetition, empty talk.

Keeping a style is easy to cheat: "I'm not sure." breaks no rule, and neither does the
prompt said back or one fine sentence given to everybody. `EchoJudge` and `StockJudge` are
there for those; `relevance` asks whether the reply is about its prompt.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

from mlx_companion.loop.judges.base import Candidate, Score
from mlx_companion.personality import Profile, check, new_words
from mlx_companion.personality.words import sentences

__all__ = ["EchoJudge", "StockJudge", "StyleJudge", "TruncationJudge", "normalized"]

_NOT_WORD = re.compile(r"[^\w]+")


def normalized(text: str) -> str:
    """Lower-case words separated by single spaces, so that wording alone is compared."""
    return _NOT_WORD.sub(" ", text.lower()).strip()


class StyleJudge:
    """Every rule of the profile is kept. The value is the share of rules kept."""

    name = "style"

    def __init__(self, profile: Profile) -> None:
        self._profile = profile

    def score(self, candidates: Sequence[Candidate]) -> list[Score]:
        """One score for each candidate."""
        return [self._score(candidate.reply) for candidate in candidates]

    def _score(self, reply: str) -> Score:
        broken = check(self._profile, reply)
        kept = 1.0 - len(broken) / max(1, len(self._profile.rules))
        reason = "; ".join(f"{violation.rule}: {violation.reason}" for violation in broken)
        return Score(self.name, kept, not broken, reason)


class TruncationJudge:
    """The reply came to its own end."""

    name = "complete"

    def score(self, candidates: Sequence[Candidate]) -> list[Score]:
        """One score for each candidate."""
        return [
            Score(
                self.name,
                float(not candidate.truncated),
                not candidate.truncated,
                "cut off at the length limit" if candidate.truncated else "",
            )
            for candidate in candidates
        ]


class EchoJudge:
    """The reply brings words of its own. The value is how many content words are new.

    Args:
        least: how many content words the reply must have that its prompt has not.
    """

    name = "echo"

    def __init__(self, least: int = 2) -> None:
        self._least = least

    def score(self, candidates: Sequence[Candidate]) -> list[Score]:
        """One score for each candidate."""
        return [self._score(candidate) for candidate in candidates]

    def _score(self, candidate: Candidate) -> Score:
        count = len(new_words(candidate.prompt, candidate.reply))
        passed = count >= self._least
        reason = "" if passed else f"only {count} content words that the prompt has not"
        return Score(self.name, float(count), passed, reason)


class StockJudge:
    """No sentence of the reply is also given to another prompt.

    Sentences are compared by their words. Very short ones ("Yes.") are free.

    Args:
        least_words: sentences with fewer words are not compared.
    """

    name = "stock"

    def __init__(self, least_words: int = 4) -> None:
        self._least_words = least_words

    def score(self, candidates: Sequence[Candidate]) -> list[Score]:
        """One score for each candidate."""
        askers: dict[str, set[str]] = defaultdict(set)
        for candidate in candidates:
            for sentence in self._sentences(candidate.reply):
                askers[sentence].add(candidate.prompt_id)
        return [self._score(candidate, askers) for candidate in candidates]

    def _score(self, candidate: Candidate, askers: dict[str, set[str]]) -> Score:
        uses = {s: len(askers[s]) for s in self._sentences(candidate.reply)}
        worst = max(uses, key=lambda sentence: uses[sentence], default="")
        passed = uses.get(worst, 1) < 2
        reason = "" if passed else f"'{worst}' is given to {uses[worst]} prompts"
        return Score(self.name, 1.0 / max(1, uses.get(worst, 1)), passed, reason)

    def _sentences(self, reply: str) -> list[str]:
        parts = [normalized(part) for part in sentences(reply)]
        return [text for text in parts if len(text.split()) >= self._least_words]
