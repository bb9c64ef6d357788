"""What is known while a reply is made, and how it enters the prompt and the finished reply."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mlx_companion.personality import Profile
from mlx_companion.personality.postprocess import CASUAL, FORMAL, Learned, Processed, postprocess
from mlx_companion.personality.prompt_builder import BuiltPrompt, build_prompt
from mlx_companion.slm.results import ContextResult, ResearchResult

__all__ = ["Known", "built_prompt", "polish"]

# Keys whose last part names a thing: told as one list, such as "Avoid: politics, coffee."
_LISTS = {"preference.avoid": "avoid", "preference.like": "likes", "person.allergy": "allergies"}
_CASUAL_TONES = frozenset({"casual", "informal", "more casual", "more informal", "less formal"})
_FORMAL_TONES = frozenset({"formal", "more formal", "less casual", "professional",
                           "more professional"})  # fmt: skip
_SHORT_REPLY = 2
_MOST_FINDINGS = 1200
_CANNOT_KNOW = (
    "You cannot look anything up now, and the answer to this may have changed since you were "
    "trained: say plainly that you cannot know it at present, and name no figures, dates or "
    "holders of offices."
)
_UNSURE = 0.4


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
        name = self.facts.get("person.name")
        return str(name) if name else None

    @property
    def formality(self) -> float | None:
        """How formal replies should be, 0 to 1: as it was asked for, else as the person writes."""
        tone = self.facts.get("preference.tone")
        if tone in _CASUAL_TONES:
            return 0.2
        if tone in _FORMAL_TONES:
            return 0.8
        level = self.facts.get("preference.formality")
        return float(level) if isinstance(level, int | float) else None


def built_prompt(
    profile: Profile, known: Known, budget_tokens: int, count_tokens: Callable[[str], int]
) -> BuiltPrompt:
    """The system prompt of one reply; what it must not leave out comes off the budget first."""
    note = _research_note(known)
    room = max(1, budget_tokens - (count_tokens(note) if note else 0))
    built = build_prompt(profile, _preferences(known), _moment(known), room, count_tokens)
    if not note:
        return built
    text = f"{built.text} {note}"
    return BuiltPrompt(text, count_tokens(text), (*built.used, note), built.left_out)


def polish(text: str, known: Known) -> Processed:
    """The reply with what was learned about length, emoji, tone and slang."""
    facts = known.facts
    short = facts.get("preference.reply_length") == "short"
    learned = Learned(
        slang=_slang(facts) if (known.formality or 1.0) <= CASUAL else {},
        formality=known.formality,
        emoji=facts.get("preference.emoji"),
        max_sentences=_SHORT_REPLY if short else None,
    )
    return postprocess(text, learned)


def _preferences(known: Known) -> dict[str, Any]:
    """The facts as the prompt builder takes them."""
    told: dict[str, Any] = {}
    for key, value in known.facts.items():
        group = next((name for start, name in _LISTS.items() if key.startswith(f"{start}.")), None)
        if group is not None:
            thing = value if isinstance(value, str) else key.rsplit(".", 1)[-1].replace("_", " ")
            told.setdefault(group, []).append(thing)
        elif not key.startswith("slang.") and key != "preference.formality":
            told[key] = value
    level = known.formality
    if level is not None and "preference.tone" not in told and not CASUAL < level < FORMAL:
        told["preference.formality"] = "casual" if level <= CASUAL else "formal"
    return told


def _moment(known: Known) -> dict[str, Any]:
    markers = known.context.context_markers if known.context is not None else {}
    told = {
        name: markers.get(name)
        for name in ("mood", "topic")
        if markers.get(name) not in (None, "unclear", "neutral", "other")
        and markers.get(f"{name}_confidence", 1.0) >= _UNSURE
    }
    return told | {"time": markers.get("part_of_day")}


def _research_note(known: Known) -> str:
    if known.research is None or not known.research.needs_research:
        return ""
    if known.findings is None:
        return _CANNOT_KNOW
    found = " ".join(known.findings.split())[:_MOST_FINDINGS]
    return f"This was found out just now; answer from it: {found}"


def _slang(facts: Mapping[str, Any]) -> dict[str, str]:
    """Plain word -> the person's own; only for senses of a word or two."""
    pairs = {
        value: key.removeprefix("slang.")
        for key, value in facts.items()
        if key.startswith("slang.") and isinstance(value, str) and 0 < len(value.split()) <= 2
    }
    return {plain: term for plain, term in pairs.items() if plain.lower() != term.lower()}
