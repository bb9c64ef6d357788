"""Step 6, gate: is the candidate better than the version in use, and is nothing lost?

Both answer the gate prompts afresh, sampled as they are served. The candidate is deployed
only when all of this holds:

- more of its replies are good, by an exact paired test at the level that the ledger still
  allows for this gate set;
- the second, unrelated judge of relevance sees a gain too;
- relevance, variety, perplexity of a frozen general text, and divergence from the base stay
  inside their margins.

A candidate that does harm is scaled down (bisection) and tried again. There
are three outcomes: deploy, reject (harm was seen), inconclusive (neither).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from mlx_companion.loop.collect import RoundPrompt
from mlx_companion.loop.context import RoundContext
from mlx_companion.loop.judge import TEXT_JUDGES, gate_panel, judged, thresholds
from mlx_companion.loop.judges import Panel, Score, Verdict, normalized
from mlx_companion.loop.measures import divergence, general_perplexity
from mlx_companion.loop.statistics import (
    alpha_for_use,
    clustered_lower_bound,
    detectable_effect,
    mcnemar_greater,
)
from mlx_companion.lora import set_multiplier
from mlx_companion.store import Example, NewExample

__all__ = ["Arm", "Look", "Margin", "decide", "gate"]

Decision = Literal["deploy", "harm", "unclear"]
OBJECTIVE = (*TEXT_JUDGES, "relevance")
SECOND_OPINION = (*TEXT_JUDGES, "likelihood")
_WORSE = 0.05


@dataclass(frozen=True)
class Arm:
    """One version's judged replies to the gate prompts, in the order of the prompts."""

    label: str
    examples: list[Example]
    verdicts: list[Verdict]
    perplexity: float

    def good(self, judges: Sequence[str] = OBJECTIVE) -> list[bool]:
        """Which replies these judges all passed."""
        return [verdict.passes(*judges) for verdict in self.verdicts]

    def share(self, judges: Sequence[str] = OBJECTIVE) -> float:
        """The share of replies that these judges all passed."""
        return float(np.mean(self.good(judges)))

    def relevance(self) -> list[float]:
        """Cosine of each prompt and reply."""
        return [verdict.value("relevance") or 0.0 for verdict in self.verdicts]

    def distinct(self) -> int:
        """How many different replies there are."""
        return len({normalized(example.response) for example in self.examples})


@dataclass(frozen=True)
class Margin:
    """One thing that must not be lost: a value, the limit it must keep, and whether it does."""

    name: str
    value: float
    limit: float
    passed: bool
    text: str


@dataclass(frozen=True)
class Look:
    """One comparison at one adapter scale.

    Args:
        p, p_likelihood: one-sided exact paired tests by the two judges of relevance.
        p_worse: the same test that the candidate is worse.
        alpha: the level that the ledger allowed.
        interval: 90 % interval of the gain in good replies, resampled by topic.
    """

    scale: float
    arm: Arm
    p: float
    p_likelihood: float
    p_worse: float
    alpha: float
    interval: tuple[float, float]
    second_gain: float
    margins: list[Margin] = field(default_factory=list)

    @property
    def decision(self) -> Decision:
        """What this look alone says."""
        return decide(
            self.p, self.alpha, self.p_worse, self.second_gain, [m.passed for m in self.margins]
        )


def decide(
    p: float, alpha: float, p_worse: float, second_gain: float, margins: Sequence[bool]
) -> Decision:
    """The rule of the gate.

    Args:
        p: that the candidate is better, by the first judge.
        alpha: the level for `p`.
        p_worse: that it is worse.
        second_gain: gain in the share of good replies by the second judge.
        margins: whether each margin is kept.
    """
    if not all(margins) or p_worse < _WORSE:
        return "harm"
    if p < alpha and second_gain > 0:
        return "deploy"
    return "unclear"


def gate(ctx: RoundContext) -> dict[str, Any]:
    """Compare the candidate with the version in use; the payload holds the whole comparison."""
    prompts = [RoundPrompt(**row) for row in ctx.payload("collect")["gate"]]
    panel = gate_panel(ctx, thresholds(ctx))
    ctx.companion.use(ctx.base_version)
    before = _arm(ctx, panel, prompts, ctx.base_version.id)
    ctx.progress.advance("gate", 1, 3, "version in use tested")
    trained = ctx.payload("train")
    ctx.companion.use_adapter(
        ctx.store.folder / trained["adapter"],
        trained["adapter_sha256"],
        f"candidate-{ctx.round.number}",
    )
    change = ctx.companion.check_adapter_acts()
    looks = [_look(ctx, panel, prompts, before, 1.0, 0)]
    ctx.progress.advance("gate", 2, 3, "candidate tested")
    if looks[0].decision == "harm":
        looks += _scaled_looks(ctx, panel, prompts, before, looks[0])
    chosen = next((look for look in looks if look.decision == "deploy"), looks[0])
    outcome = _outcome(looks)
    ctx.progress.advance("gate", 3, 3, outcome)
    return _payload(ctx, before, looks, chosen, outcome) | {"largest_logit_change": change}


def _arm(ctx: RoundContext, panel: Panel, prompts: list[RoundPrompt], label: str) -> Arm:
    """Sample and judge the companion as it is now, or read what an interrupted run stored."""
    stored = ctx.store.examples.for_round(ctx.round.id, purpose="gate", model_version=label)
    by_prompt = {example.prompt_id: example for example in stored}
    if not by_prompt.keys() >= {prompt.id for prompt in prompts}:
        by_prompt = {e.prompt_id: e for e in _sampled(ctx, prompts, label)}
    examples = [by_prompt[prompt.id] for prompt in prompts]
    if any(example.verdict is None for example in examples):
        verdicts = judged(ctx, panel, examples, OBJECTIVE)
    else:
        verdicts = [_stored_verdict(example) for example in examples]
    return Arm(label, examples, verdicts, general_perplexity(ctx))


def _sampled(ctx: RoundContext, prompts: list[RoundPrompt], label: str) -> list[Example]:
    replies = ctx.companion.reply_all(
        [prompt.prompt for prompt in prompts],
        # The same draws for both versions: what differs is the version.
        seed=ctx.seed("gate"),
        monitor=ctx.monitor,
        switch=ctx.switch,
    )
    return ctx.store.examples.add_many(
        ctx.round.id,
        [
            NewExample(
                prompt=prompt.prompt,
                response=reply.text or " ",
                prompt_id=prompt.id,
                topic=prompt.topic,
                purpose="gate",
                model_version=label,
                sampling={"finish_reason": reply.finish_reason, "tokens": len(reply.tokens)},
            )
            for prompt, reply in zip(prompts, replies, strict=True)
        ],
    )


def _stored_verdict(example: Example) -> Verdict:
    return Verdict(tuple(Score(**score) for score in example.scores.values()))


def _look(
    ctx: RoundContext,
    panel: Panel,
    prompts: list[RoundPrompt],
    before: Arm,
    scale: float,
    number: int,
) -> Look:
    set_multiplier(ctx.companion.lm.model, scale)
    after = _arm(ctx, panel, prompts, f"candidate@{scale:g}")
    gains = np.subtract(after.good(), before.good(), dtype=np.float64)
    topics = [prompt.topic for prompt in prompts]
    look = Look(
        scale=scale,
        arm=after,
        p=mcnemar_greater(before.good(), after.good()),
        p_likelihood=mcnemar_greater(before.good(SECOND_OPINION), after.good(SECOND_OPINION)),
        p_worse=mcnemar_greater(after.good(), before.good()),
        alpha=_alpha(ctx, number),
        interval=(
            clustered_lower_bound(gains, topics),
            -clustered_lower_bound(-gains, topics),
        ),
        second_gain=after.share(SECOND_OPINION) - before.share(SECOND_OPINION),
        margins=_margins(ctx, before, after, topics),
    )
    _record(ctx, look, number)
    return look


def _margins(ctx: RoundContext, before: Arm, after: Arm, topics: list[str]) -> list[Margin]:
    config = ctx.config.gate
    change = np.subtract(after.relevance(), before.relevance(), dtype=np.float64)
    bound = clustered_lower_bound(change, topics)
    # In this order: 95 / 100 - 1 is a hair under -0.05.
    variety = (after.distinct() - before.distinct()) / before.distinct()
    growth = after.perplexity / before.perplexity - 1
    drift = divergence(ctx)
    return [
        Margin(
            "relevance", bound, -config.relevance_margin, bound > -config.relevance_margin,
            "lower 95 % bound of the change of mean relevance (cosine)",
        ),
        Margin(
            "variety", variety, -config.variety_margin, variety >= -config.variety_margin,
            "change of the number of distinct replies (share)",
        ),
        Margin(
            "perplexity", growth, config.perplexity_margin, growth <= config.perplexity_margin,
            "change of the perplexity of general text (share)",
        ),
        Margin(
            "divergence", drift, config.divergence_limit, drift <= config.divergence_limit,
            "mean KL divergence from the base on its own answers (nats per token)",
        ),
    ]  # fmt: skip


def _scaled_looks(
    ctx: RoundContext, panel: Panel, prompts: list[RoundPrompt], before: Arm, full: Look
) -> list[Look]:
    """Looks at smaller scales: bisection for the largest one that does no harm."""
    looks: list[Look] = []
    low, high = ctx.config.gate.least_scale, full.scale
    for number in range(1, ctx.config.gate.scale_steps + 1):
        scale = round((low + high) / 2, 3)
        ctx.progress.note(f"The candidate does harm; trying it at {scale:.2f} of its strength.")
        looks.append(_look(ctx, panel, prompts, before, scale, number))
        if looks[-1].decision == "deploy":
            return looks
        if looks[-1].decision == "unclear":
            low = scale
        else:
            high = scale
    return looks


def _alpha(ctx: RoundContext, number: int) -> float:
    """This look's level: every look at the gate set, in any round, uses up part of the budget."""
    sha256 = ctx.payload("collect")["gate_sha256"]
    earlier = [e for e in ctx.store.ledger.entries(sha256) if e.round_id != ctx.round.id]
    return alpha_for_use(ctx.config.gate.alpha, len(earlier) + number + 1)


def _record(ctx: RoundContext, look: Look, number: int) -> None:
    ctx.store.ledger.record(
        ctx.payload("collect")["gate_sha256"],
        ctx.round.id,
        look.alpha,
        p=look.p,
        outcome=look.decision,
        look=number,
    )


def _outcome(looks: Sequence[Look]) -> str:
    if any(look.decision == "deploy" for look in looks):
        return "deploy"
    return "reject" if looks[0].decision == "harm" else "inconclusive"


def _payload(
    ctx: RoundContext, before: Arm, looks: list[Look], chosen: Look, outcome: str
) -> dict[str, Any]:
    after, items = chosen.arm, len(before.examples)
    return {
        "outcome": outcome,
        "scale": chosen.scale,
        "items": items,
        "before": before.share(),
        "after": after.share(),
        "likelihood_before": before.share(SECOND_OPINION),
        "likelihood_after": after.share(SECOND_OPINION),
        "p": chosen.p,
        "p_likelihood": chosen.p_likelihood,
        "alpha": chosen.alpha,
        "interval": list(chosen.interval),
        "detectable_effect": detectable_effect(items, alpha=chosen.alpha),
        "distinct_before": before.distinct(),
        "distinct_after": after.distinct(),
        "relevance_before": float(np.mean(before.relevance())),
        "relevance_after": float(np.mean(after.relevance())),
        "perplexity_before": before.perplexity,
        "perplexity_after": after.perplexity,
        "divergence": next(m.value for m in chosen.margins if m.name == "divergence"),
        "margins": [vars(margin) for margin in chosen.margins],
        "tries": [
            {
                "scale": look.scale,
                "after": look.arm.share(),
                "p": look.p,
                "alpha": look.alpha,
                "outcome": look.decision,
                "broken": [m.name for m in look.margins if not m.passed],
            }
            for look in looks
        ],
        "before_label": before.label,
        "after_label": after.label,
        "summary": f"{before.share():.0%} -> {after.share():.0%} good, "
        f"p = {chosen.p:.2g}: {outcome}",
    }
