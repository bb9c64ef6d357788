"""Step 8, report: one dictionary that says everything about a round."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from mlx_companion.loop import formats
from mlx_companion.loop.collect import RoundPrompt
from mlx_companion.loop.context import RoundContext
from mlx_companion.loop.gate import OBJECTIVE
from mlx_companion.loop.judge import as_candidate
from mlx_companion.personality import check
from mlx_companion.runtime.config import to_dict
from mlx_companion.runtime.device import environment
from mlx_companion.runtime.hardware import detect
from mlx_companion.store import Example

__all__ = ["explain", "summarize"]

_GATE_FIELDS = (
    "outcome", "scale", "items", "before", "after", "likelihood_before", "likelihood_after", "p",
    "p_likelihood", "alpha", "interval", "detectable_effect", "distinct_before", "distinct_after",
    "relevance_before", "relevance_after", "perplexity_before", "perplexity_after", "divergence",
    "margins", "tries",
)  # fmt: skip


def summarize(ctx: RoundContext) -> dict[str, Any]:
    """The report of a round whose steps are all done."""
    payloads = {name: step.payload for name, step in ctx.store.rounds.steps(ctx.round.id).items()}
    gate, deployed = payloads["gate"], payloads["deploy"]
    prompts = [RoundPrompt(**row) for row in payloads["collect"]["gate"]]
    before = _in_order(ctx, prompts, gate["before_label"])
    after = _in_order(ctx, prompts, gate["after_label"])
    return {
        "round": ctx.round.number,
        "round_id": ctx.round.id,
        "started_at": ctx.round.started_at,
        "mode": ctx.config.mode,
        "model": ctx.companion.lm.source,
        "profile": ctx.companion.profile.name,
        "base_version": ctx.base_version.id,
        "deployed": deployed["deployed"],
        "candidate": deployed["candidate"],
        "version": deployed["version"],
        "reasons": explain(gate, deployed),
        **{name: gate[name] for name in _GATE_FIELDS},
        "rules": _rules(ctx, before, after),
        "judges": _judges(before, after),
        "topics": _topics(before, after),
        "loss": _loss(ctx, payloads["train"]["run"]),
        "data": _data(payloads),
        "calibration": payloads["judge"]["calibration"],
        "gate": [_pair(old, new) for old, new in zip(before, after, strict=True)],
        "step_seconds": {name: payload.get("seconds", 0.0) for name, payload in payloads.items()},
        "seconds": sum(payload.get("seconds", 0.0) for payload in payloads.values()),
        "peak_mb": max(payload.get("peak_mb", 0.0) for payload in payloads.values()),
        "machine": to_dict(detect()),
        "versions": environment(),
        "seed": ctx.config.seed,
        "config": to_dict(ctx.config),
    }


def explain(gate: dict[str, Any], deployed: dict[str, Any]) -> list[str]:
    """Why the gate decided as it did, in sentences."""
    before, after = formats.share(gate["before"]), formats.share(gate["after"])
    gain = f"{before} of the replies were good before and {after} after"
    test = f"p = {formats.p_value(gate['p'])} against a level of {gate['alpha']:.2g}"
    broken = [margin for margin in gate["margins"] if not margin["passed"]]
    sentences = [f"{gain} ({gate['items']} prompts; {test})."]
    sentences += [
        f"The margin on {margin['name']} is broken: {margin['value']:.3f}, limit "
        f"{margin['limit']:.3f} ({margin['text']})."
        for margin in broken
    ]
    if gate["outcome"] == "inconclusive":
        sentences.append(
            "Neither a gain nor harm is shown, so the old version stays. This gate finds a gain of "
            f"{100 * gate['detectable_effect']:.0f} points or more four times in five."
        )
    if gate["outcome"] == "reject":
        sentences.append("Harm is shown, so the old version stays.")
    if gate["outcome"] == "deploy" and gate["scale"] < 1:
        sentences.append(f"The adapter was scaled down to {gate['scale']:.2f} to keep its margins.")
    return [*sentences, f"{deployed['summary']}."]


def _in_order(ctx: RoundContext, prompts: Sequence[RoundPrompt], label: str) -> list[Example]:
    rows = ctx.store.examples.for_round(ctx.round.id, purpose="gate", model_version=label)
    by_prompt = {row.prompt_id: row for row in rows}
    return [by_prompt[prompt.id] for prompt in prompts]


def _rules(
    ctx: RoundContext, before: Sequence[Example], after: Sequence[Example]
) -> list[dict[str, Any]]:
    profile = ctx.companion.profile
    kept = [
        {
            rule: 1 - sum(rule in broken for broken in replies) / max(1, len(replies))
            for rule in profile.rules
        }
        for replies in (
            [{violation.rule for violation in check(profile, e.response)} for e in arm]
            for arm in (before, after)
        )
    ]
    return [
        {"rule": rule, "before": kept[0][rule], "after": kept[1][rule]} for rule in profile.rules
    ]


def _judges(before: Sequence[Example], after: Sequence[Example]) -> list[dict[str, Any]]:
    def share(arm: Sequence[Example], name: str) -> float:
        return _mean(bool(e.scores.get(name, {}).get("passed")) for e in arm)

    return [
        {"judge": name, "before": share(before, name), "after": share(after, name)}
        for name in (*OBJECTIVE, "likelihood")
    ]


def _topics(before: Sequence[Example], after: Sequence[Example]) -> list[dict[str, Any]]:
    groups: dict[str, list[tuple[bool, bool]]] = defaultdict(list)
    for old, new in zip(before, after, strict=True):
        groups[old.topic].append((old.verdict == "good", new.verdict == "good"))
    return [
        {
            "topic": topic,
            "items": len(pairs),
            "before": _mean(old for old, _ in pairs),
            "after": _mean(new for _, new in pairs),
        }
        for topic, pairs in sorted(groups.items())
    ]


def _pair(old: Example, new: Example) -> dict[str, Any]:
    row: dict[str, Any] = {"prompt_id": old.prompt_id, "topic": old.topic, "prompt": old.prompt}
    for name, example in (("before", old), ("after", new)):
        row[name] = example.response
        row[f"{name}_good"] = example.verdict == "good"
        row[f"{name}_truncated"] = as_candidate(example).truncated
        row[f"{name}_reason"] = example.reason
        row[f"{name}_relevance"] = example.scores.get("relevance", {}).get("value")
    return row


def _loss(ctx: RoundContext, run: str) -> dict[str, list[list[float]]]:
    return {
        name: [[m.step, m.value] for m in ctx.store.runs.metrics(run, f"{name}_loss")]
        for name in ("train", "valid")
    }


def _data(payloads: dict[str, dict[str, Any]]) -> dict[str, Any]:
    collected, mixed = payloads["collect"], payloads["mix"]
    return {
        "packaged": collected["packaged"],
        "own_prompts": collected["own_prompts"],
        "prompts": len(collected["train"]),
        "generated": payloads["generate"]["generated"],
        "diversity": payloads["generate"]["diversity"],
        "accepted": payloads["judge"]["accepted"],
        "dropped": payloads["judge"]["dropped"],
        "rows": mixed["rows"],
        "total_rows": mixed["total"],
        "synthetic_share": mixed["synthetic_share"],
        "rows_per_topic": mixed["rows_per_topic"],
    }


def _mean(values: Iterable[bool]) -> float:
    rows = list(values)
    return sum(rows) / max(1, len(rows))
