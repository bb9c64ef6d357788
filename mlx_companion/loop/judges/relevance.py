"""Is the reply about its prompt? Two judges that go about it in unrelated ways.

`RelevanceJudge` compares meanings: the cosine of prompt and reply under a sentence
encoder. `LikelihoodJudge` asks the base model: how much more likely is the reply after
this prompt than after none (pointwise mutual information per token)? A version that
learned to please one of them has no reason to please the other.

Both thresholds are measured, not chosen: each is put where it separates the real answers
of written question-answer pairs from the same answers shuffled (`calibrate`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mlx_companion.errors import LoopError
from mlx_companion.loop.judges.base import Candidate, Score
from mlx_companion.models import LanguageModel, SentenceEncoder
from mlx_companion.models.prompts import render
from mlx_companion.models.scoring import Row, score_rows
from mlx_companion.runtime.stop import NEVER, StopSwitch

__all__ = [
    "Calibration",
    "LikelihoodJudge",
    "RelevanceJudge",
    "calibrate",
    "information_gain",
    "separation",
    "similarity",
]


@dataclass(frozen=True)
class Calibration:
    """A threshold and how well it separates real pairs from shuffled ones.

    Args:
        threshold: the measure from which on a reply counts as relevant.
        kept: share of the real pairs at or over it.
        refused: share of the shuffled pairs under it.
        auc: chance that a real pair scores over a shuffled one (0.5 is a coin).
        pairs: how many real pairs were measured.
    """

    threshold: float
    kept: float
    refused: float
    auc: float
    pairs: int

    def as_dict(self) -> dict[str, Any]:
        """The fields, for storage."""
        return asdict(self)


def calibrate(
    real: npt.ArrayLike, shuffled: npt.ArrayLike, *, least_kept: float = 0.0
) -> Calibration:
    """The threshold with the highest kept + refused (Youden's J).

    Args:
        real: the measure on real pairs.
        shuffled: the measure on shuffled pairs.
        least_kept: the threshold must keep at least this share of the real pairs.

    Raises:
        LoopError: no values, or the measure cannot tell real from shuffled.
    """
    good, bad = np.sort(np.asarray(real)), np.sort(np.asarray(shuffled))
    if len(good) == 0 or len(bad) == 0:
        raise LoopError("calibration needs at least one real and one shuffled pair")
    values = np.unique(np.concatenate([good, bad]))
    # The lowest cut keeps all, so that `least_kept` can always be met.
    cuts = np.concatenate([values[:1], (values[1:] + values[:-1]) / 2])
    kept = 1 - np.searchsorted(good, cuts) / len(good)
    refused = np.searchsorted(bad, cuts) / len(bad)
    gain = np.where(kept >= least_kept, kept + refused, -1.0)
    best = int(np.argmax(gain))
    auc = separation(good, bad)
    if auc <= 0.5:
        raise LoopError(
            f"the relevance measure cannot tell real pairs from shuffled ones (AUC {auc:.2f}): "
            "the encoder or the base model is not usable as a judge"
        )
    return Calibration(float(cuts[best]), float(kept[best]), float(refused[best]), auc, len(good))


def separation(real: npt.ArrayLike, shuffled: npt.ArrayLike) -> float:
    """The chance that a real pair scores over a shuffled one (area under the ROC curve)."""
    good, bad = np.asarray(real), np.sort(np.asarray(shuffled))
    below = np.searchsorted(bad, good, "left") + np.searchsorted(bad, good, "right")
    return float(below.mean() / (2 * len(bad)))


def similarity(encoder: SentenceEncoder, left: Sequence[str], right: Sequence[str]) -> np.ndarray:
    """Cosine (N,) between paired texts."""
    if not left:
        return np.zeros(0, dtype=np.float32)
    vectors = encoder.encode([*left, *right])
    return (vectors[: len(left)] * vectors[len(left) :]).sum(axis=1)


class RelevanceJudge:
    """Cosine of prompt and reply under a sentence encoder reaches the threshold."""

    name = "relevance"

    def __init__(self, encoder: SentenceEncoder, threshold: float) -> None:
        self._encoder = encoder
        self.threshold = threshold

    def score(self, candidates: Sequence[Candidate]) -> list[Score]:
        """One score for each candidate."""
        values = similarity(
            self._encoder, [c.prompt for c in candidates], [c.reply for c in candidates]
        )
        return [_against(self.name, float(value), self.threshold) for value in values]


def information_gain(
    lm: LanguageModel,
    pairs: Sequence[tuple[str, str]],
    *,
    switch: StopSwitch = NEVER,
) -> tuple[np.ndarray, np.ndarray]:
    """What the prompt tells about the reply, and how fluent the reply is, under `lm`.

    Args:
        lm: the base model, without an adapter.
        pairs: (prompt, reply) texts (N).

    Returns:
        Information gain (N,) in nats per token: mean log p(reply | prompt) minus mean
        log p(reply | no prompt); and perplexity (N,) of the reply given its prompt.
    """
    no_prompt = _context(lm, None)
    replies = {reply: _tokens(lm, reply) for _, reply in pairs}
    given = []
    for prompt, reply in pairs:
        context = _context(lm, prompt)
        given.append(Row([*context, *replies[reply]], len(context)))
    alone = [Row([*no_prompt, *tokens], len(no_prompt)) for tokens in replies.values()]
    # Two calls, because rows that begin alike share that part of the work.
    conditional = np.array([score.mean for score in score_rows(lm, given, switch=switch)])
    by_reply = dict(zip(replies, score_rows(lm, alone, switch=switch), strict=True))
    marginal = np.array([by_reply[reply].mean for _, reply in pairs])
    return conditional - marginal, np.exp(-conditional)


def _tokens(lm: LanguageModel, reply: str) -> list[int]:
    return list(lm.tokenizer.encode(reply.strip() or ".", add_special_tokens=False))


def _context(lm: LanguageModel, prompt: str | None) -> list[int]:
    # Without a prompt the person is taken to say hello: an empty turn is something no
    # chat model was trained on, and its answers are then all equally unlikely.
    return render(lm, prompt or "Hello.")


class LikelihoodJudge:
    """The base finds the reply likelier with its prompt, and fluent.

    Args:
        lm: the base model; an attached adapter must be switched off around `score`.
        threshold: the least information gain (nats per token).
        most_perplexity: a reply with a higher perplexity under the base is not fluent.
    """

    name = "likelihood"

    def __init__(
        self,
        lm: LanguageModel,
        threshold: float,
        most_perplexity: float = math.inf,
        *,
        switch: StopSwitch = NEVER,
    ) -> None:
        self._lm = lm
        self.threshold = threshold
        self.most_perplexity = most_perplexity
        self._switch = switch

    def score(self, candidates: Sequence[Candidate]) -> list[Score]:
        """One score for each candidate; the value is the information gain."""
        if not candidates:
            return []
        gains, perplexities = information_gain(
            self._lm, [(c.prompt, c.reply) for c in candidates], switch=self._switch
        )
        return [self._score(float(g), float(p)) for g, p in zip(gains, perplexities, strict=True)]

    def _score(self, gain: float, perplexity: float) -> Score:
        if perplexity > self.most_perplexity:
            reason = f"perplexity {perplexity:.0f} is over {self.most_perplexity:.0f}"
            return Score(self.name, gain, False, reason)
        return _against(self.name, gain, self.threshold)


def _against(judge: str, value: float, threshold: float) -> Score:
    passed = value >= threshold
    sign = ">=" if passed else "<"
    return Score(judge, value, passed, f"{value:.3f} {sign} {threshold:.3f}")
