"""What speaks for drift between two sets of replies, and of which kind.

Each reply is measured once (`Measured`); `compare` then weighs a set against a baseline:

- tone: the style test of `drift_metric`, and rude replies;
- over_attachment, boundary, anomaly: more replies that a head or a rule marks than chance allows,
  given what is marked in the baseline and how often heads err (`excess_p`). One reply is enough
  where nothing else can have made it (a chat template's token, an empty text), or where there is
  no baseline to be measured by;
- repetition: see `drift_repeat`.

Several may hold at once: a companion that turns clingy changes its style as well. A kind that
names its replies tells more than "tone" and goes first; among those, the largest share does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.stats import betabinom

from mlx_companion.slm.drift_metric import StyleJudge, StyleMetric
from mlx_companion.slm.drift_repeat import (
    measure_repetition,
    repetition_excess,
    repetition_p,
)
from mlx_companion.slm.drift_statistics import TwoSample, holm, permutation_test
from mlx_companion.slm.drift_style import FEATURES
from mlx_companion.slm.results import DriftType

# What a mark of each kind counts as; rudeness is a matter of tone.
KINDS: dict[str, DriftType] = {
    "anomaly": "anomaly",
    "assistant": "over_attachment",
    "boundary": "boundary",
    "hostile": "tone",
}
# Replies that the style test needs on each side.
FEWEST = 3
# Rules mark less by mistake than heads do: 1 of 2,992 comments, passages and replies.
_RULE_ERRORS = 0.003
# So many replies is what is known beforehand about a head's errors worth.
_PRIOR_REPLIES = 10.0
_EXAMPLES = 3
# Strengths below which a finding is few replies, and above which a change of voice is plain.
_FEW, _CLEAR = 0.55, 0.5
_EXAMPLE_CHARS = 240
# Excess of repetition from which it counts, and how often chance may give as much.
_REPEATS, _REPEATS_P = 0.34, 0.03
# Of two marks as sure as this, neither is taken for an error.
_GRAVE_REPLIES = 2
# Tokens that nobody writes; `User:` or `{{ name }}`, which are faults too, may be meant.
_TOKENS = ("<|", "[INST", "[/INST", "<<SYS", "<</SYS", "<start_of", "<end_of")


@dataclass(frozen=True)
class Levels:
    """From where on something counts.

    Args:
        mark: probability from which a reply is marked.
        grave: probability from which a reply is beyond doubt.
        sudden: probability from which one reply of a stream is told at once.
        chance: of so many marked replies without drift, from which on they count.
        errors: share of ordinary replies that a head marks, before any were seen.
        p_value: the style test's larger p value allowed, besides its threshold.
        session_share: share of the whole comparison's threshold asked of one session.
    """

    mark: float = 0.5
    grave: float = 0.95
    sudden: float = 0.98
    chance: float = 0.005
    errors: float = 0.06
    p_value: float = 0.02
    session_share: float = 0.9


@dataclass(frozen=True)
class Measured:
    """One reply, measured.

    Attributes:
        text: the reply.
        style: (F,) style features.
        scores: head -> probability.
        faults: anomalies of the reply.
    """

    text: str
    style: np.ndarray
    scores: Mapping[str, float]
    faults: Mapping[str, str]

    def marks(self, levels: Levels, usual: frozenset[str] = frozenset()) -> dict[str, float]:
        """Kind -> how strong, for the kinds that this reply is marked with."""
        # One reply is marked by one head, the surest: a rude reply is often a bad order as well.
        surest = max(self.scores, key=lambda name: self.scores[name], default="")
        found = {surest: self.scores[surest]} if self.scores.get(surest, 0) >= levels.mark else {}
        new = [fault for fault in self.faults if fault not in usual]
        if new:
            found["anomaly"] = 1.0 if any(_plain(name, self.faults[name]) for name in new) else 0.9
        return found


@dataclass(frozen=True)
class Finding:
    """One kind of drift that was found.

    Attributes:
        kind: which.
        strength: 0 to 1.
        examples: replies that show it, the clearest first.
        grave: one reply alone was enough.
    """

    kind: DriftType
    strength: float
    examples: tuple[str, ...] = ()
    grave: bool = False


@dataclass(frozen=True)
class Comparison:
    """What a comparison found.

    Attributes:
        findings: the kinds of drift, the most telling first; empty without drift.
        details: p values, effects and counts, JSON values.
    """

    findings: tuple[Finding, ...]
    details: dict[str, Any] = field(default_factory=dict)


def compare(
    baseline: Sequence[Measured],
    current: Sequence[Measured],
    metric: StyleMetric,
    judge: StyleJudge,
    levels: Levels,
    *,
    session: bool = False,
) -> Comparison:
    """Weigh current replies against a baseline.

    Args:
        baseline, current: measured replies.
        metric, judge: space and thresholds of style.
        levels: from where on something counts.
        session: the current replies are one session of several, each tested.
    """
    usual = _usual(baseline)
    findings = [
        one
        for kind in KINDS
        if (one := _marked(kind, baseline, current, levels, usual)) is not None
    ]
    details: dict[str, Any] = {
        "baseline_replies": len(baseline),
        "current_replies": len(current),
        "marked": {kind: _count(kind, current, levels, usual) for kind in KINDS},
        "marked_in_baseline": {kind: _count(kind, baseline, levels, usual) for kind in KINDS},
    }
    repeated = _repeated(baseline, current, details)
    if repeated is not None:
        findings.append(repeated)
    findings.sort(key=lambda one: -one.strength)
    style = _style(baseline, current, metric, judge, levels, session, details)
    if style is not None and not any(one.kind == "tone" for one in findings):
        # A few doubtful marks explain a voice that is quite another one less than the voice does.
        few = bool(findings) and findings[0].strength < _FEW and not findings[0].grave
        findings.insert(0 if few and style.strength > _CLEAR else len(findings), style)
    return Comparison(tuple(findings), details)


def sudden(baseline: Sequence[Measured], reply: Measured, levels: Levels) -> Comparison:
    """What one reply alone is enough for; without the statistics, which need more."""
    usual = _usual(baseline)
    found = []
    for kind, strength in reply.marks(levels, usual).items():
        new = kind != "hostile" and _count(kind, baseline, levels, usual) == 0
        if new and strength >= levels.sudden:
            found.append(Finding(KINDS[kind], strength, _shown([reply.text]), grave=True))
    found.sort(key=lambda one: -one.strength)
    return Comparison(tuple(found), {"baseline_replies": len(baseline), "current_replies": 1})


def excess_p(before: int, baseline: int, marked: int, current: int, errors: float) -> float:
    """Chance of so many marks or more if the current replies are as the baseline's are.

    How often replies are marked without drift differs from companion to companion and is known
    from a few replies only: a Beta distribution with mean `errors` and the weight of ten replies,
    updated by the baseline, gives the beta-binomial tail.

    Args:
        before, baseline: marked replies of the baseline, and all of it.
        marked, current: the same of the current replies.
        errors: share that is marked without drift, before any were seen.
    """
    alpha = errors * _PRIOR_REPLIES + before
    beta = (1 - errors) * _PRIOR_REPLIES + baseline - before
    return float(betabinom.sf(marked - 1, current, alpha, beta))


def _usual(baseline: Sequence[Measured]) -> frozenset[str]:
    """Faults that the baseline shows often: its language, its script, its way."""
    names = {name for one in baseline for name in one.faults}
    return frozenset(
        name
        for name in names
        if sum(name in one.faults for one in baseline) > max(1, 0.1 * len(baseline))
    )


def _count(kind: str, replies: Sequence[Measured], levels: Levels, usual: frozenset[str]) -> int:
    return sum(kind in one.marks(levels, usual) for one in replies)


def _marked(
    kind: str,
    baseline: Sequence[Measured],
    current: Sequence[Measured],
    levels: Levels,
    usual: frozenset[str],
) -> Finding | None:
    marked = [(one.marks(levels, usual).get(kind, 0.0), one.text) for one in current]
    hits = sorted((pair for pair in marked if pair[0] > 0), key=lambda pair: -pair[0])
    if not hits:
        return None
    before = _count(kind, baseline, levels, usual)
    errors = _RULE_ERRORS if kind == "anomaly" else levels.errors
    chance = excess_p(before, len(baseline), len(hits), len(current), errors)
    more = len(hits) >= 2 and chance <= levels.chance
    beyond = sum(strength >= levels.grave for strength, _ in hits)
    # A token of the template speaks for itself; a head's word needs a second one, or no baseline.
    enough = 1 if kind == "anomaly" or not baseline else _GRAVE_REPLIES
    grave = before == 0 and kind != "hostile" and beyond >= enough
    alone = grave and enough == 1
    if not (more or alone):
        return None
    excess = len(hits) / len(current) - before / max(len(baseline), 1)
    strength = min(1.0, 0.35 + 0.65 * excess) * min(1.0, 0.3 + hits[0][0])
    return Finding(KINDS[kind], strength, _shown(text for _, text in hits), grave)


def _repeated(
    baseline: Sequence[Measured], current: Sequence[Measured], details: dict[str, Any]
) -> Finding | None:
    before = measure_repetition([one.text for one in baseline])
    now = measure_repetition([one.text for one in current])
    excess = repetition_excess(before, now, len(current))
    details["repetition"] = {
        "excess": excess,
        "copies": now.copies,
        "openers": now.openers,
        "overlap": now.overlap,
        "baseline_overlap": before.overlap,
    }
    if excess < _REPEATS:
        return None
    chance = repetition_p([one.text for one in baseline], [one.text for one in current])
    details["repetition"]["p"] = chance
    # Without a baseline there is nothing to relabel.
    if baseline and chance > _REPEATS_P:
        return None
    return Finding("repetition", 0.3 + 0.7 * excess, _shown(now.examples))


def _style(
    baseline: Sequence[Measured],
    current: Sequence[Measured],
    metric: StyleMetric,
    judge: StyleJudge,
    levels: Levels,
    session: bool,
    details: dict[str, Any],
) -> Finding | None:
    if min(len(baseline), len(current)) < FEWEST:
        return None
    before = np.stack([one.style for one in baseline])
    now = np.stack([one.style for one in current])
    found = permutation_test(
        metric.project(before),
        metric.project(now),
        columns=(metric.scaled(before), metric.scaled(now)),
    )
    score, limit = judge.score(found), judge.threshold(len(before), len(now))
    if session:
        limit *= levels.session_share
    details["style"] = _told(found) | {"score": score, "threshold": limit}
    p_value = min(found.p_mean, found.p_energy)
    if score <= limit or p_value > levels.p_value:
        return None
    strength = float(min(1.0, 0.3 + 0.35 * (score / max(limit, 1e-6) - 1)))
    return Finding("tone", strength, _farthest(metric, before, now, current))


def _told(found: TwoSample) -> dict[str, Any]:
    adjusted = holm(found.p_columns)
    order = np.argsort(-np.abs(found.effects))[:6]
    return {
        "p_mean": found.p_mean,
        "p_energy": found.p_energy,
        "energy": found.energy,
        "effect": found.effect,
        "features": [
            {
                "name": FEATURES[i],
                "effect": float(found.effects[i]),
                "p": float(found.p_columns[i]),
                "p_adjusted": float(adjusted[i]),
            }
            for i in order
        ],
    }


def _farthest(
    metric: StyleMetric, before: np.ndarray, now: np.ndarray, current: Sequence[Measured]
) -> tuple[str, ...]:
    """The replies that lie farthest in the direction in which the voice moved."""
    old, new = metric.project(before), metric.project(now)
    direction = new.mean(axis=0) - old.mean(axis=0)
    order = np.argsort(-((new - old.mean(axis=0)) @ direction))
    return _shown(current[i].text for i in order)


def _plain(fault: str, shown: str) -> bool:
    """Whether one such reply is enough: nothing but a fault makes it."""
    return fault == "empty" or (fault == "template_token" and shown.startswith(_TOKENS))


def _shown(texts: Any) -> tuple[str, ...]:
    kept: list[str] = []
    for text in texts:
        kept.append(text if len(text) <= _EXAMPLE_CHARS else f"{text[: _EXAMPLE_CHARS - 1]}\u2026")
        if len(kept) == _EXAMPLES:
            break
    return tuple(kept)
