"""The system prompt of one reply: the profile, then what is known of the person, within a budget.

Every token of a system prompt is paid for in every reply, so what was learned competes for a
budget: the profile's own words always stay, and the rest joins in order of usefulness for as long
as it fits. The same input gives the same prompt, which keeps prompt caches warm::

    prompt = build_prompt(profile, {"reply_length": "brief"}, {"mood": "tired"}, budget_tokens=120)
    prompt.text
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlx_companion.errors import ConfigError
from mlx_companion.personality.profile import Profile

# Markers of the moment outlive no conversation; what was said outright counts more than a guess.
_CONTEXT_USE = {"mood": 0.8, "topic": 0.6, "time": 0.4}
_PLAIN_USE = 0.5
# Characters of one thing told.
_LONGEST = 200
_KNOWN = {
    "reply_length": ("The person prefers {} replies.", 0.95),
    "formality": ("Match a {} tone.", 0.9),
    "language": ("Write in {}.", 1.0),
    "name": ("The person is called {}.", 0.85),
    "call_me": ("The person is called {}.", 0.85),
    "emoji": ("Emoji: {}.", 0.7),
    "humor": ("Humor: {}.", 0.6),
    "humour": ("Humour: {}.", 0.6),
    "technical_depth": ("Technical depth: {}.", 0.8),
    "units": ("Use {} units.", 0.75),
    "avoid": ("Avoid: {}.", 0.9),
    "topic": ("They are talking about {}.", _CONTEXT_USE["topic"]),
    "mood": ("The person seems {}.", _CONTEXT_USE["mood"]),
    "time": ("It is {} for the person.", _CONTEXT_USE["time"]),
}


@dataclass(frozen=True)
class Preference:
    """One thing to tell the model about the person.

    Attributes:
        text: a short sentence.
        usefulness: 0 to 1; the most useful ones are told first.
    """

    text: str
    usefulness: float = _PLAIN_USE


@dataclass(frozen=True)
class BuiltPrompt:
    """A system prompt and how it came about.

    Attributes:
        text: the prompt.
        tokens: its length, as counted.
        used: what was told besides the profile, in order.
        left_out: what did not fit, in order.
    """

    text: str
    tokens: int
    used: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


def build_prompt(
    profile: Profile,
    preferences: Mapping[str, Any] | Sequence[Preference] = (),
    context: Mapping[str, Any] | None = None,
    budget_tokens: int = 160,
    count_tokens: Callable[[str], int] | None = None,
) -> BuiltPrompt:
    """Build the system prompt of a reply.

    Args:
        profile: how the companion speaks; its system prompt always stays.
        preferences: what was learned: sentences with their usefulness, or values by key, such as
            {"preference.reply_length": "brief"}; empty values are left out.
        context: markers of the moment, such as {"mood": "tired", "topic": "bicycles"}.
        budget_tokens: tokens for the whole prompt.
        count_tokens: from text to tokens; None takes 1.3 tokens a word.

    Raises:
        ConfigError: a budget below 1.
    """
    if budget_tokens < 1:
        raise ConfigError(f"budget_tokens is {budget_tokens}; expected 1 or more")
    count = count_tokens or _about
    told = _told(preferences) + _told(context or {})
    ordered = sorted(dict.fromkeys(told), key=lambda one: (-one.usefulness, one.text))
    text, used, left_out = profile.system_prompt, list[str](), list[str]()
    for one in ordered:
        longer = f"{text} {one.text}"
        if count(longer) <= budget_tokens:
            text = longer
            used.append(one.text)
        else:
            left_out.append(one.text)
    return BuiltPrompt(text, count(text), tuple(used), tuple(left_out))


def _about(text: str) -> int:
    return round(1.3 * len(text.split()))


def _told(given: Mapping[str, Any] | Sequence[Preference]) -> list[Preference]:
    if not isinstance(given, Mapping):
        return [Preference(_flat(one.text), one.usefulness) for one in given if one.text.strip()]
    return [_sentence(str(key), value) for key, value in given.items() if _says(value)]


def _says(value: Any) -> bool:
    return value is not None and value != "" and value != [] and value != {}


def _sentence(key: str, value: Any) -> Preference:
    name = key.rsplit(".", 1)[-1]
    template, use = _KNOWN.get(name, (f"{name.replace('_', ' ').capitalize()}: {{}}.", _PLAIN_USE))
    return Preference(template.format(_flat(_said(value)).rstrip(".")), use)


def _said(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.2g}"
    if isinstance(value, list | tuple | set | frozenset):
        return ", ".join(sorted(map(str, value)))
    return str(value)


def _flat(text: str) -> str:
    # On one line and short, so that nothing learned can pass for another part of the prompt.
    return " ".join(text[: 2 * _LONGEST].split())[:_LONGEST]
