"""What the four modules answer: frozen dataclasses that become JSON.

Why in one place: the orchestrator, the database, the trace of a reply and the command line all
carry these results, and none of them should have to import a module to do so::

    result = ResearchResult(True, 0.93, "asks for a current price", "prices")
    json.dumps(result.to_dict())
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

DriftType = Literal["tone", "over_attachment", "repetition", "boundary", "anomaly"]


@dataclass(frozen=True)
class ModuleResult:
    """Base of every result."""

    def to_dict(self) -> dict[str, Any]:
        """The fields as values that `json.dumps` takes; shares are rounded to six decimals."""
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}


@dataclass(frozen=True)
class ResearchResult(ModuleResult):
    """Whether a query needs research.

    Attributes:
        needs_research: the answer may have changed since a model was trained, is local or
            commercial, or is asked to be verified.
        confidence: calibrated probability that `needs_research` is right; 0.5 to 1, and below 0.5
            only where a rule for uncertain queries chose the less likely answer.
        reasoning: the factors that fired, in words.
        category: what kind of query it is.
        factors: factor -> strength, 0 to 1.
        uncertain: the confidence lies below the threshold.
        head: what answered: "backbone+encoder", "backbone", "ngrams" (without either), or "table"
            (rules alone).
    """

    needs_research: bool
    confidence: float
    reasoning: str
    category: str
    factors: dict[str, float] = field(default_factory=dict)
    uncertain: bool = False
    head: str = ""


@dataclass(frozen=True)
class GuardResult(ModuleResult):
    """How a reply keeps to a profile, and what it became.

    Attributes:
        original_response: as given.
        violations_detected: names of the broken rules, each once.
        rewritten_response: what may be shown; the original when nothing was changed.
        changes_made: one entry per edit: violation, span [start, end) in the original, before,
            after, how.
        confidence: 0 to 1, that detection and rewriting are right.
        spans: one entry per place found: violation, start, end, text.
    """

    original_response: str
    violations_detected: list[str]
    rewritten_response: str
    changes_made: list[dict[str, Any]]
    confidence: float
    spans: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class ContextUpdate(ModuleResult):
    """One thing learned about the person, ready for the database.

    Attributes:
        key: what it is about, such as "preference.reply_length".
        value: what was learned; None removes it.
        evidence: the words that say so.
        span: their place [start, end) in the text.
        confidence: 0 to 1.
        event_time: when it was said or holds from, ISO 8601 in UTC; None: when it was read.
        previous: the value before, which undoing restores.
        explicit: said outright, and not inferred.
    """

    key: str
    value: Any
    evidence: str
    span: tuple[int, int]
    confidence: float
    event_time: str | None = None
    previous: Any = None
    explicit: bool = True


@dataclass(frozen=True)
class ContextResult(ModuleResult):
    """What a message shows of the person's language and situation.

    Attributes:
        slang_detected: items with term, sense, confidence and span.
        tone_shift: items say from what to what, and how far; empty when there is none.
        context_markers: "time", "topic" and "mood".
        formality_level: 0 (casual) to 1 (formal).
        technical_depth: 0 (none) to 1 (specialist).
        updates: what the database should learn.
    """

    slang_detected: list[dict[str, Any]]
    tone_shift: dict[str, Any]
    context_markers: dict[str, Any]
    formality_level: float
    technical_depth: float
    updates: list[ContextUpdate] = field(default_factory=list)


@dataclass(frozen=True)
class DriftResult(ModuleResult):
    """Whether the assistant's replies have drifted from a baseline.

    Attributes:
        drift_detected: they have.
        drift_type: in what way; None without drift.
        severity: 0 to 1.
        examples: replies that show it.
        recommendation: what to do, in a sentence.
        should_alert: a person should be told: two sessions in a row, or one grave event.
        user_attachment: how attached the person sounds, 0 to 1.
        assistant_attachment: how attached the assistant sounds, 0 to 1.
        details: p values, effects and counts behind it.
    """

    drift_detected: bool
    drift_type: DriftType | None
    severity: float
    examples: list[str]
    recommendation: str
    should_alert: bool
    user_attachment: float = 0.0
    assistant_attachment: float = 0.0
    details: dict[str, Any] = field(default_factory=dict)


def _plain(value: Any) -> Any:
    if isinstance(value, ModuleResult):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(one) for one in value]
    if isinstance(value, float):
        return round(value, 6)
    # NumPy's numbers know how to become Python's.
    return _plain(value.item()) if hasattr(value, "item") else value
