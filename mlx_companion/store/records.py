"""What the store gives back: one frozen dataclass per table.

Why: rows of a database are tuples of text and numbers; the rest of the package wants names
and types, and must not be able to change a stored row by assigning to it. Columns that hold
JSON are decoded here, in one place.
"""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

Rating = Literal["up", "down"]
FeedbackKind = Literal["up", "down", "edit"]
Verdict = Literal["good", "bad"]
ReplayRole = Literal["new", "replay"]
Purpose = Literal["train", "gate"]
RunStatus = Literal["running", "done", "failed", "stopped"]
StepStatus = Literal["running", "done", "failed"]
VersionAction = Literal["promote", "rollback"]
ContextStatus = Literal[
    "queued", "applied", "pending", "limited", "barred", "weak", "rejected", "undone"
]
ModuleAction = Literal["register", "activate", "rollback", "fault", "shadow", "metrics"]

Record = TypeVar("Record")

_JSON = {"json": True}
_FLAG = {"flag": True}


@dataclass(frozen=True, slots=True)
class Interaction:
    """One prompt and its reply; times are ISO 8601 in UTC."""

    id: str
    created_at: str
    conversation_id: str
    model_version: str | None
    system: str | None
    prompt: str
    response: str
    source: str
    meta: dict[str, Any] = field(metadata=_JSON)


@dataclass(frozen=True, slots=True)
class Feedback:
    """One thumb up, thumb down or rewritten reply for an interaction."""

    id: str
    interaction_id: str
    kind: FeedbackKind
    edited: str | None
    created_at: str


@dataclass(frozen=True, slots=True)
class FeedbackState:
    """What all feedback of one interaction adds up to.

    `rating` is the later one of the last up and the last down; `edited` the last rewriting.
    """

    rating: Rating | None = None
    edited: str | None = None


@dataclass(frozen=True, slots=True)
class NewExample:
    """A sample to be stored by `Examples.add_many`; `sample_index` counts per prompt.

    `source` is its provenance: 'generated', 'feedback', 'packaged', ... A `purpose` of 'gate'
    keeps a sample out of everything that trains.
    """

    prompt: str
    response: str
    sample_index: int = 0
    prompt_id: str | None = None
    topic: str = ""
    purpose: Purpose = "train"
    source: str = "generated"
    model_version: str | None = None
    template: str | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)
    verdict: Verdict | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Example:
    """A stored sample with its provenance, every judge's score and the verdict."""

    id: str
    round_id: str
    purpose: Purpose
    prompt_id: str | None
    prompt: str
    prompt_sha: str
    sample_index: int
    response: str
    topic: str
    source: str
    model_version: str | None
    template: str | None
    sampling: dict[str, Any] = field(metadata=_JSON)
    scores: dict[str, Any] = field(metadata=_JSON)
    verdict: Verdict | None
    reason: str | None
    created_at: str


@dataclass(frozen=True, slots=True)
class Judgement:
    """The outcome of judging one example, for `Examples.judge_many`."""

    example_id: str
    verdict: Verdict | None
    scores: dict[str, Any]
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class ReplayMember:
    """An example's part in the training mix of a round; `count` is how often it is repeated."""

    example_id: str
    role: ReplayRole
    topic: str = ""
    count: int = 1


@dataclass(frozen=True, slots=True)
class Run:
    """One training or measuring run and everything needed to repeat it."""

    id: str
    kind: str
    started_at: str
    finished_at: str | None
    status: RunStatus
    config: dict[str, Any] = field(metadata=_JSON)
    seed: int | None
    versions: dict[str, Any] = field(metadata=_JSON)
    machine: dict[str, Any] = field(metadata=_JSON)
    data_hash: str | None
    parent: str | None
    summary: dict[str, Any] = field(metadata=_JSON)


@dataclass(frozen=True, slots=True)
class Metric:
    """One measured number of a run; NaN where it was not a number."""

    step: int
    name: str
    value: float


@dataclass(frozen=True, slots=True)
class Version:
    """One version of the companion: the base model itself, or an adapter over it."""

    id: str
    number: int
    name: str
    parent: str | None
    adapter_path: Path | None
    adapter_sha256: str | None
    base_sha256: str | None
    model_source: str | None
    metrics: dict[str, Any] = field(metadata=_JSON)
    created_at: str
    round_id: str | None
    active: bool = field(metadata=_FLAG)


@dataclass(frozen=True, slots=True)
class VersionEvent:
    """One change of the active version."""

    id: str
    at: str
    from_version: str | None
    to_version: str
    action: VersionAction
    reason: str


@dataclass(frozen=True, slots=True)
class Round:
    """One round of the loop; `outcome` is None while it is unfinished."""

    id: str
    number: int
    base_version: str | None
    seed: int | None
    config: dict[str, Any] = field(metadata=_JSON)
    started_at: str
    finished_at: str | None
    outcome: str | None
    summary: dict[str, Any] = field(metadata=_JSON)


@dataclass(frozen=True, slots=True)
class Step:
    """How far one step of a round has come; `attempts` counts how often it was begun."""

    round_id: str
    step: str
    status: StepStatus
    attempts: int
    started_at: str
    finished_at: str | None
    payload: dict[str, Any] = field(metadata=_JSON)
    error: str | None

    @property
    def done(self) -> bool:
        """Whether the step needs no further work."""
        return self.status == "done"


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One look at a gate set and the share of alpha that it cost."""

    id: str
    gate_sha256: str
    round_id: str
    look: int
    alpha_spent: float
    p: float | None
    outcome: str | None
    at: str


@dataclass(frozen=True, slots=True)
class ContextEntry:
    """One thing learned about the person; `current` when it holds for its key."""

    id: str
    position: int
    source: str
    key: str
    value: Any = field(metadata=_JSON)
    explicit: bool = field(metadata=_FLAG)
    confidence: float
    event_at: str
    evidence: str
    strength: float
    status: ContextStatus
    reason: str | None
    created_at: str
    decided_at: str | None
    current: bool = field(metadata=_FLAG)


@dataclass(frozen=True, slots=True)
class ModuleVersion:
    """A registered pack of one small module; `personal` when it was trained on this person."""

    id: str
    module: str
    number: int
    label: str
    folder: Path
    sha256: str
    metrics: dict[str, Any] = field(metadata=_JSON)
    personal: bool = field(metadata=_FLAG)
    active: bool = field(metadata=_FLAG)
    created_at: str


@dataclass(frozen=True, slots=True)
class ModuleEvent:
    """Something that happened to a module's versions; None stands for the shipped pack."""

    id: str
    at: str
    module: str
    action: ModuleAction
    from_version: str | None
    to_version: str | None
    reason: str
    meta: dict[str, Any] = field(metadata=_JSON)


@dataclass(frozen=True, slots=True)
class Traffic:
    """One input that a module answered; `label` is the right answer once it is known."""

    id: str
    module: str
    version: str
    at: str
    input: Any = field(metadata=_JSON)
    result: Any = field(metadata=_JSON)
    label: Any = field(metadata=_JSON)
    seconds: float


def load(cls: type[Record], row: Mapping[str, Any] | sqlite3.Row) -> Record:
    """`row` as a `cls`, its JSON columns decoded and its flags made bool."""
    values: dict[str, Any] = {}
    for spec in dataclasses.fields(cls):  # type: ignore[arg-type]
        value = row[spec.name]
        if spec.metadata.get("json"):
            value = json.loads(value)
        elif spec.metadata.get("flag"):
            value = bool(value)
        values[spec.name] = value
    return cls(**values)
