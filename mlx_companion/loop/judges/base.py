"""What a judge is: it scores candidates and gives a reason for each score.

A judge sees all candidates of one version at once, because some faults (a stock sentence
given to every prompt) show only across them. A `Panel` runs its judges in order and can
spare the expensive ones the candidates that have already failed.

A judge of your own is any object with a `name` and a `score` method::

    class NoDigits:
        name = "no_digits"
        def score(self, candidates):
            return [Score(self.name, 0.0 if any(c.isdigit() for c in x.reply) else 1.0,
                          not any(c.isdigit() for c in x.reply)) for x in candidates]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

__all__ = ["Candidate", "Judge", "Panel", "Score", "Verdict"]


@dataclass(frozen=True)
class Candidate:
    """One reply to one prompt.

    Args:
        prompt_id: names the prompt; replies of one prompt share it.
        prompt: what the person wrote.
        reply: what the model answered.
        truncated: the reply was cut off at the length limit.
        topic: the prompt's topic.
    """

    prompt_id: str
    prompt: str
    reply: str
    truncated: bool = False
    topic: str = ""


@dataclass(frozen=True)
class Score:
    """What one judge says of one candidate.

    Args:
        judge: its name.
        value: its measure, higher is better.
        passed: whether the candidate may count as good.
        reason: why not, or what was measured.
    """

    judge: str
    value: float
    passed: bool
    reason: str = ""


class Judge(Protocol):
    """Scores candidates of one version; higher values are better."""

    name: str

    def score(self, candidates: Sequence[Candidate]) -> list[Score]:
        """One score for each candidate, in their order."""
        ...


@dataclass(frozen=True)
class Verdict:
    """All scores of one candidate, by the judges that saw it."""

    scores: tuple[Score, ...]

    @property
    def good(self) -> bool:
        """Whether every judge that saw the candidate passed it."""
        return all(score.passed for score in self.scores)

    @property
    def reason(self) -> str:
        """The first objection, or an empty text."""
        return next((f"{s.judge}: {s.reason}" for s in self.scores if not s.passed), "")

    def passes(self, *judges: str) -> bool:
        """Whether these judges all saw the candidate and passed it."""
        passed = {score.judge for score in self.scores if score.passed}
        return set(judges) <= passed

    def value(self, judge: str) -> float | None:
        """The measure of one judge, or None when it did not see the candidate."""
        return next((s.value for s in self.scores if s.judge == judge), None)

    def as_dict(self) -> dict[str, Any]:
        """The scores by judge, for storage."""
        return {score.judge: asdict(score) for score in self.scores}


class Panel:
    """Judges in order, each with the judges that must have passed a candidate before.

    Args:
        judges: who judges, in order.
        needs: by judge name, names of earlier judges; the judge sees only candidates that
            all of these passed. A judge without an entry sees every candidate, so that its
            measure can be compared between versions.
    """

    def __init__(
        self, judges: Sequence[Judge], needs: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        self.judges = tuple(judges)
        self.needs = dict(needs or {})

    def judge(self, candidates: Sequence[Candidate]) -> list[Verdict]:
        """A verdict for each candidate, in their order."""
        verdicts = [Verdict(()) for _ in candidates]
        for judge in self.judges:
            needed = self.needs.get(judge.name, ())
            seen = [i for i, verdict in enumerate(verdicts) if verdict.passes(*needed)]
            scores = judge.score([candidates[i] for i in seen])
            for i, score in zip(seen, scores, strict=True):
                verdicts[i] = Verdict((*verdicts[i].scores, score))
        return verdicts
