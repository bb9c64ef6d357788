"""Step 3, judge: which samples are good, by whom, and why not.

A sample is good when it keeps every rule of the profile, came to its own end, says
something its prompt did not, is no stock sentence, is about its prompt by two unrelated
measures, is fluent, was not disliked by the person, and differs from the prompt's other
good samples. Every score and reason is stored.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlx_companion.loop.context import RoundContext
from mlx_companion.loop.judges import (
    Calibration,
    Candidate,
    DuplicateJudge,
    EchoJudge,
    FeedbackJudge,
    Judge,
    LikelihoodJudge,
    Panel,
    RelevanceJudge,
    StockJudge,
    StyleJudge,
    TruncationJudge,
    Verdict,
    calibrate,
    information_gain,
    separation,
    similarity,
)
from mlx_companion.loop.packaged import QAPair, load_qa_pairs
from mlx_companion.store import Example, Judgement

__all__ = [
    "TEXT_JUDGES",
    "Thresholds",
    "as_candidate",
    "gate_panel",
    "judge",
    "judged",
    "pairs_split",
    "thresholds",
    "train_panel",
]

TEXT_JUDGES = ("style", "complete", "echo", "stock")


@dataclass(frozen=True)
class Thresholds:
    """Where the measured judges draw their lines.

    Args:
        relevance: cosine of prompt and reply.
        likelihood: information gain (nats per token).
        most_perplexity: the highest perplexity of a fluent reply under the base.
    """

    relevance: Calibration
    likelihood: Calibration
    most_perplexity: float

    def as_dict(self) -> dict[str, Any]:
        """The fields, for storage."""
        return {
            "relevance": self.relevance.as_dict(),
            "likelihood": self.likelihood.as_dict(),
            "most_perplexity": self.most_perplexity,
        }


def judge(ctx: RoundContext) -> dict[str, Any]:
    """Judge the round's samples; verdicts go to the store, counts to the payload."""
    examples = ctx.store.examples.for_round(ctx.round.id, purpose="train")
    lines = thresholds(ctx)
    ctx.progress.advance("judge", 1, 3, "thresholds measured")
    generated = [e for e in examples if e.source == "generated"]
    dropped = _objections(judged(ctx, train_panel(ctx, lines), generated))
    ctx.progress.advance("judge", 2, 3, "samples judged")
    judged(ctx, Panel([TruncationJudge()]), [e for e in examples if e.source == "general"])
    accepted = len(generated) - sum(dropped.values())
    return {
        "accepted": accepted,
        "judged": len(generated),
        "dropped": dropped.most_common(),
        "calibration": lines.as_dict(),
        "summary": f"{accepted} of {len(generated)} samples are good",
    }


def gate_panel(ctx: RoundContext, lines: Thresholds) -> Panel:
    """The judges of the gate: the two relevance judges decide independently of each other."""
    text = _text_judges(ctx, ctx.config.judge.least_new_words)
    return Panel([*text, *_relevance_judges(ctx, lines)], {"likelihood": TEXT_JUDGES})


def train_panel(ctx: RoundContext, lines: Thresholds) -> Panel:
    """The judges of training samples; the measured ones see only what the text judges passed."""
    disliked = FeedbackJudge((p, r) for p, r in ctx.payload("collect")["disliked"])
    distinct = DuplicateJudge(ctx.encoder, ctx.config.judge.near_duplicate)
    text = _text_judges(ctx, ctx.config.judge.train_new_words)
    judges: list[Judge] = [*text, disliked, *_relevance_judges(ctx, lines), distinct]
    names = [each.name for each in judges]
    cheap = len(TEXT_JUDGES)
    return Panel(judges, {name: names[:i] for i, name in enumerate(names) if i >= cheap})


def thresholds(ctx: RoundContext) -> Thresholds:
    """Measure the thresholds on written pairs, real and shuffled; kept for the same base."""
    pairs, _ = pairs_split()
    key = _calibration_key(ctx, pairs)
    stored = ctx.store.settings.get(key)
    if stored is None:
        stored = _measure_thresholds(ctx, pairs).as_dict()
        ctx.store.settings.set(key, stored)
    return Thresholds(
        Calibration(**stored["relevance"]),
        Calibration(**stored["likelihood"]),
        stored["most_perplexity"] if stored["most_perplexity"] is not None else math.inf,
    )


def pairs_split() -> tuple[list[QAPair], list[QAPair]]:
    """Written pairs for the thresholds, and others that may be trained on."""
    pairs = load_qa_pairs()
    return list(pairs[0::4]), [pair for i, pair in enumerate(pairs) if i % 4]


def as_candidate(example: Example) -> Candidate:
    """What the judges see of a stored sample."""
    return Candidate(
        example.prompt_id or example.prompt_sha,
        example.prompt,
        example.response,
        truncated=example.sampling.get("finish_reason") == "length",
        topic=example.topic,
    )


def judged(
    ctx: RoundContext,
    panel: Panel,
    examples: Sequence[Example],
    needed: Sequence[str] | None = None,
) -> list[Verdict]:
    """Judge samples with the base model underneath, and store every score and reason.

    Args:
        needed: judges that must pass a good sample; None for all that see it.
    """
    with ctx.companion.as_base():
        verdicts = panel.judge([as_candidate(example) for example in examples])
    ctx.store.examples.judge_many(
        Judgement(
            example.id,
            "good" if _is_good(verdict, needed) else "bad",
            verdict.as_dict(),
            verdict.reason or None,
        )
        for example, verdict in zip(examples, verdicts, strict=True)
    )
    return verdicts


def _is_good(verdict: Verdict, needed: Sequence[str] | None) -> bool:
    return verdict.good if needed is None else verdict.passes(*needed)


def _objections(verdicts: Sequence[Verdict]) -> Counter[str]:
    """How many samples each judge turned down; for style, how many each rule did."""
    counts: Counter[str] = Counter()
    for verdict in verdicts:
        if not verdict.good:
            parts = verdict.reason.split(": ")
            counts[": ".join(parts[: 2 if parts[0] == "style" else 1])] += 1
    return counts


def _text_judges(ctx: RoundContext, least_new_words: int) -> list[Judge]:
    return [
        StyleJudge(ctx.companion.profile),
        TruncationJudge(),
        EchoJudge(least_new_words),
        StockJudge(),
    ]


def _relevance_judges(ctx: RoundContext, lines: Thresholds) -> list[Judge]:
    return [
        RelevanceJudge(ctx.encoder, lines.relevance.threshold),
        LikelihoodJudge(
            ctx.companion.lm,
            lines.likelihood.threshold,
            lines.most_perplexity,
            switch=ctx.switch,
        ),
    ]


def _measure_thresholds(ctx: RoundContext, pairs: Sequence[QAPair]) -> Thresholds:
    questions = [pair.question for pair in pairs]
    answers = [pair.answer for pair in pairs]
    # Half a turn: the pairs are sorted by topic, so a shuffled answer comes from another one.
    shuffled = answers[len(answers) // 2 :] + answers[: len(answers) // 2]
    least = ctx.config.judge.least_kept
    relevance = _line(
        ctx.config.judge.relevance_threshold,
        similarity(ctx.encoder, questions, answers),
        similarity(ctx.encoder, questions, shuffled),
        least,
    )
    with ctx.companion.as_base() as base:
        both = [*zip(questions, answers, strict=True), *zip(questions, shuffled, strict=True)]
        gains, perplexities = information_gain(base, both, switch=ctx.switch)
    half = len(pairs)
    given = ctx.config.judge.likelihood_threshold
    likelihood = _line(given, gains[:half], gains[half:], least)
    fluent = float(np.quantile(perplexities[:half], ctx.config.judge.fluency_quantile))
    return Thresholds(relevance, likelihood, fluent)


def _line(
    given: float | None, real: np.ndarray, shuffled: np.ndarray, least_kept: float
) -> Calibration:
    """The measured threshold, or the given one with how well it would do."""
    if given is None:
        return calibrate(real, shuffled, least_kept=least_kept)
    kept, refused = float((real >= given).mean()), float((shuffled < given).mean())
    return Calibration(given, kept, refused, separation(real, shuffled), len(real))


def _calibration_key(ctx: RoundContext, pairs: Sequence[QAPair]) -> str:
    parts = [ctx.companion.lm.base_sha256, repr(ctx.config.judge), repr(pairs)]
    return f"calibration/{hashlib.sha256('|'.join(parts).encode()).hexdigest()[:16]}"
