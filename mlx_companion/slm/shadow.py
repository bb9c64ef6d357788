"""A candidate beside the version in use, on what really came in; and when to train a new one.

Why: held-out figures are measured on other people's data. Before a switch both versions answer the
last inputs of this person, unseen by them, and the switch is made by rule: enough inputs, no
failures, not slower, and either right more often where the right answer is known, or, where it is
not, nearly always the same answer.

What counts as the same answer is a module's decision (needs research or not; what was replaced;
what was learned; whether it alarms), not its confidences.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean, median
from typing import Any

from mlx_companion.errors import ConfigError
from mlx_companion.slm.module import SLMModule
from mlx_companion.slm.results import ModuleResult
from mlx_companion.store import Store, Traffic

__all__ = [
    "FinetuneAdvice",
    "PromotionRule",
    "ShadowReport",
    "TriggerRule",
    "advise",
    "compare",
    "decision",
    "refusal",
]

_SHOWN = 20
# Seconds that nobody notices, so that modules of microseconds are not told apart by noise.
_NO_DELAY = 0.001


@dataclass(frozen=True)
class PromotionRule:
    """When a candidate may take over.

    Args:
        least_inputs: inputs that both must have answered.
        least_agreement: share of the same answers, where too few right answers are known.
        least_labelled: known right answers from which being right counts instead.
        most_slowdown: of the median time, as a factor.
    """

    least_inputs: int = 50
    least_agreement: float = 0.9
    least_labelled: int = 20
    most_slowdown: float = 1.5

    def __post_init__(self) -> None:
        counts = self.least_inputs >= 1 and self.least_labelled >= 1
        # So that a number that is none is refused, too: it compares as false.
        if not (counts and 0 <= self.least_agreement <= 1 and self.most_slowdown > 0):
            raise ConfigError(
                "'least_inputs' and 'least_labelled' must be at least 1, 'least_agreement' 0 to 1, "
                "'most_slowdown' above 0"
            )


@dataclass(frozen=True)
class TriggerRule:
    """When a module should be trained anew.

    Args:
        labelled: right answers that came in since the version in use was made.
        metric: name of the figure to watch; accuracy on labelled traffic by default.
        fall: that the mean of its last three figures may lie below its best one.
    """

    labelled: int = 50
    metric: str = "accuracy"
    fall: float = 0.05

    def __post_init__(self) -> None:
        if not (self.labelled >= 1 and self.fall >= 0):
            raise ConfigError("'labelled' must be at least 1, 'fall' 0 or more")


@dataclass(frozen=True)
class ShadowReport:
    """What came of a shadow run; seconds are medians of one input.

    `active_right` and `candidate_right` are shares of the `labelled` inputs; None without any.
    """

    module: str
    active: str
    candidate: str
    inputs: int
    agreement: float
    failures: int
    active_seconds: float
    candidate_seconds: float
    labelled: int = 0
    active_right: float | None = None
    candidate_right: float | None = None
    differences: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """JSON values; without the texts of the differences, which are the person's."""
        return {name: value for name, value in asdict(self).items() if name != "differences"}


@dataclass(frozen=True)
class FinetuneAdvice:
    """Whether to train a module anew, why, and how many right answers have come in."""

    due: bool
    reasons: tuple[str, ...]
    labelled: int


def decision(module: str, result: ModuleResult | Mapping[str, Any]) -> dict[str, Any]:
    """What a result decides, without its confidences and explanations."""
    plain = dict(result) if isinstance(result, Mapping) else result.to_dict()
    match module:
        case "research_classifier":
            return {"needs_research": plain["needs_research"]}
        case "personality_guard":
            return {name: plain[name] for name in ("violations_detected", "rewritten_response")}
        case "context_tracker":
            return {
                "slang": sorted({str(one.get("term")) for one in plain["slang_detected"]}),
                "updates": sorted((one["key"], repr(one["value"])) for one in plain["updates"]),
            }
        case "drift_monitor":
            return {name: plain[name] for name in ("drift_detected", "drift_type", "should_alert")}
    return {name: value for name, value in plain.items() if not isinstance(value, float)}


def compare(
    module: str,
    active_id: str,
    candidate_id: str,
    active: SLMModule[Any],
    candidate: SLMModule[Any],
    traffic: Sequence[Traffic],
) -> ShadowReport:
    """Let both answer the traffic and compare; an answer that fails differs from every other."""
    times: tuple[list[float], list[float]] = ([], [])
    right: tuple[list[bool], list[bool]] = ([], [])
    same = failures = 0
    differences: list[dict[str, Any]] = []
    for number, one in enumerate(traffic):
        # In turn first, so that neither always finds the texts' features computed already.
        order = ((0, active), (1, candidate)) if number % 2 else ((1, candidate), (0, active))
        answers: dict[int, Any] = {}
        for place, version in order:
            began = time.perf_counter()
            answers[place] = _answer(module, version, one.input)
            times[place].append(time.perf_counter() - began)
            if one.label is not None:
                right[place].append(_is_right(answers[place], one.label))
        failures += answers[1] is None
        if answers[0] == answers[1] is not None:
            same += 1
        elif len(differences) < _SHOWN:
            differences.append({"input": one.input, "active": answers[0], "candidate": answers[1]})
    return ShadowReport(
        module,
        active_id,
        candidate_id,
        inputs=len(traffic),
        agreement=same / len(traffic) if traffic else 0.0,
        failures=failures,
        active_seconds=median(times[0]) if traffic else 0.0,
        candidate_seconds=median(times[1]) if traffic else 0.0,
        labelled=len(right[0]),
        active_right=fmean(right[0]) if right[0] else None,
        candidate_right=fmean(right[1]) if right[1] else None,
        differences=differences,
    )


def refusal(report: ShadowReport, rule: PromotionRule) -> str | None:
    """Why a candidate may not take over; None when it may."""
    if report.inputs < rule.least_inputs:
        return f"{report.inputs} inputs are too few; {rule.least_inputs} are needed"
    if report.failures:
        return f"it failed on {report.failures} of {report.inputs} inputs"
    if report.candidate_seconds > rule.most_slowdown * report.active_seconds + _NO_DELAY:
        return (
            f"it takes {report.candidate_seconds * 1e3:.1f} ms where "
            f"{report.active_seconds * 1e3:.1f} ms were taken"
        )
    if report.labelled >= rule.least_labelled:
        old, new = report.active_right or 0.0, report.candidate_right or 0.0
        return None if new >= old else f"it is right in {new:.1%}, the version in use in {old:.1%}"
    if report.agreement < rule.least_agreement:
        return f"it agrees on {report.agreement:.1%}; {rule.least_agreement:.0%} are needed"
    return None


def advise(store: Store, module: str, rule: TriggerRule) -> FinetuneAdvice:
    """Whether labelled traffic or falling figures ask for a new version of a module."""
    active = store.module_versions.active(module)
    since = active.created_at if active else ""
    traffic = store.traffic.recent(module, since=since, labelled=True)
    reasons = []
    if len(traffic) >= rule.labelled:
        reasons.append(f"{len(traffic)} right answers came in since the version in use was made")
    metrics = store.module_versions.events(module, "metrics")
    figures = [m.meta[rule.metric] for m in metrics if m.at > since and rule.metric in m.meta]
    # Three figures, so that one bad day is no trend.
    if len(figures) > 3 and max(figures) - fmean(figures[-3:]) > rule.fall:
        now = fmean(figures[-3:])
        reasons.append(f"{rule.metric} fell from {max(figures):.3f} to {now:.3f}")
    return FinetuneAdvice(bool(reasons), tuple(reasons), len(traffic))


def _answer(module: str, version: SLMModule[Any], item: Any) -> dict[str, Any] | None:
    try:
        return decision(module, version.process(item))
    except Exception:
        # A candidate may fail in any way; that is what is being found out.
        return None


def _is_right(answer: dict[str, Any] | None, label: Any) -> bool:
    if answer is None:
        return False
    if isinstance(label, Mapping):
        return all(answer.get(name) == value for name, value in label.items())
    return next(iter(answer.values())) == label
