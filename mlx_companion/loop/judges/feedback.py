"""Judges that know more than the text: what the person said, and which samples repeat."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from mlx_companion.loop.judges.base import Candidate, Score
from mlx_companion.loop.judges.style import normalized
from mlx_companion.models import SentenceEncoder

__all__ = ["DuplicateJudge", "FeedbackJudge"]


class FeedbackJudge:
    """The person has not turned this very reply down.

    Args:
        disliked: (prompt, reply) texts with a thumb down, or replaced by an edit.
    """

    name = "feedback"

    def __init__(self, disliked: Iterable[tuple[str, str]]) -> None:
        self._disliked = {(normalized(prompt), normalized(reply)) for prompt, reply in disliked}

    def score(self, candidates: Sequence[Candidate]) -> list[Score]:
        """One score for each candidate."""
        return [self._score(candidate) for candidate in candidates]

    def _score(self, candidate: Candidate) -> Score:
        key = (normalized(candidate.prompt), normalized(candidate.reply))
        passed = key not in self._disliked
        return Score(self.name, float(passed), passed, "" if passed else "the person disliked it")


class DuplicateJudge:
    """The reply differs from the prompt's earlier replies that passed.

    Args:
        encoder: measures likeness.
        most_similar: a higher cosine to an earlier reply is a duplicate. The value is one
            minus the highest cosine.
    """

    name = "distinct"

    def __init__(self, encoder: SentenceEncoder, most_similar: float) -> None:
        self._encoder = encoder
        self._most_similar = most_similar

    def score(self, candidates: Sequence[Candidate]) -> list[Score]:
        """One score for each candidate; the first of several alike passes."""
        if not candidates:
            return []
        vectors = self._encoder.encode([candidate.reply for candidate in candidates])
        kept: dict[str, list[np.ndarray]] = defaultdict(list)
        return [
            self._score(vector, kept[candidate.prompt_id])
            for candidate, vector in zip(candidates, vectors, strict=True)
        ]

    def _score(self, vector: np.ndarray, kept: list[np.ndarray]) -> Score:
        nearest = max((float(vector @ other) for other in kept), default=0.0)
        passed = nearest <= self._most_similar
        if passed:
            kept.append(vector)
        reason = "" if passed else f"cosine {nearest:.3f} to an earlier reply to this prompt"
        return Score(self.name, 1.0 - nearest, passed, reason)
