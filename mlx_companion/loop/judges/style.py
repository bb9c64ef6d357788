"""Judges that read only the text: style rules, cut-off replies, repetition, empty talk.

Keeping a style is easy to cheat: "I'm not sure." breaks no rule, and neither does the
prompt said back or one fine sentence given to everybody. `EchoJudge` and `StockJudge` are
there for those; `relevance` asks whether the reply is about its prompt.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

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

    def __init__(self, least: int) -> None:
        self._least = least

    def score(self, candidates: Sequence[Candidate]) -> list[Score]:
        """One score for each candidate."""
        return [self._score(candidate) for candidate in candidates]

    def _score(self, candidate: Candidate) -> Score:
        count = len(new_words(candidate.prompt, candidate.reply))
        passed = count >= self._least
        reason = "" if passed else f"only {count} content words that the prompt has not"
        return Score(self.name, float(count), passed, reason)


@dataclass(frozen=True)
class _Sentence:
    """One sentence of a reply: its words, and the content words that its prompt has not."""

    prompt_id: str
    text: str
    brought: frozenset[str]


class StockJudge:
    """No sentence of the reply is also given to another prompt.

    Two sentences are the same when their words are, or when most of the content words are that
    they add to their prompts: "Tea rewards patience and a steady hand." and "Chess rewards
    patience and a steady hand." say nothing of tea or chess. Very short ones ("Yes.") are free.

    Args:
        least_words: sentences with fewer words are not compared.
        most_shared: sentences that share more of their added content words are the same.
    """

    name = "stock"

    def __init__(self, least_words: int = 4, most_shared: float = 0.6) -> None:
        self._least_words = least_words
        self._most_shared = most_shared

    def score(self, candidates: Sequence[Candidate]) -> list[Score]:
        """One score for each candidate."""
        replies = [self._sentences(candidate) for candidate in candidates]
        by_text: dict[str, set[str]] = defaultdict(set)
        by_word: dict[str, set[_Sentence]] = defaultdict(set)
        for sentence in chain.from_iterable(replies):
            by_text[sentence.text].add(sentence.prompt_id)
            for word in sentence.brought:
                by_word[word].add(sentence)
        uses = {
            sentence: len(by_text[sentence.text] | self._alike(sentence, by_word))
            for sentence in set(chain.from_iterable(replies))
        }
        return [self._score(reply, uses) for reply in replies]

    def _alike(self, sentence: _Sentence, by_word: Mapping[str, set[_Sentence]]) -> set[str]:
        """The prompts that are given nearly this sentence."""
        shared = Counter(chain.from_iterable(by_word[word] for word in sentence.brought))
        return {
            other.prompt_id
            for other, count in shared.items()
            # Two words in common may be chance ("warm water").
            if count > 2 and count > self._most_shared * len(sentence.brought | other.brought)
        }

    def _score(self, reply: Sequence[_Sentence], uses: Mapping[_Sentence, int]) -> Score:
        worst = max(reply, key=lambda sentence: uses[sentence], default=None)
        if worst is None or uses[worst] < 2:
            return Score(self.name, 1.0, True)
        reason = f"'{worst.text}' is given to {uses[worst]} prompts"
        return Score(self.name, 1.0 / uses[worst], False, reason)

    def _sentences(self, candidate: Candidate) -> list[_Sentence]:
        parts = [(part, normalized(part)) for part in sentences(candidate.reply)]
        return [
            _Sentence(candidate.prompt_id, text, frozenset(new_words(candidate.prompt, part)))
            for part, text in parts
            if len(text.split()) >= self._least_words
        ]
