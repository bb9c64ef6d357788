"""What a person shows over many messages and never says: how formal they are, their own slang.

One casual message is no habit. Formality is a running mean that counts once there are enough
messages, and is noted again only when it has moved; a slang term counts after three messages. Both
become inferences, which what the person says outright always beats.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlx_companion.slm.results import ContextResult, ContextUpdate

__all__ = ["SOURCE", "habits_of"]

SOURCE = "habits"
_LEAST_MESSAGES = 5
_LEAST_USES = 3
# The weight of the past: about the last ten messages count.
_FADING = 0.9
_MOVED = 0.15
_MOST_TERMS = 200


def habits_of(
    state: Mapping[str, Any] | None, heard: ContextResult
) -> tuple[dict[str, Any], list[ContextUpdate]]:
    """One more message.

    Args:
        state: as given back for the message before; None at the first.
        heard: what the tracker read from the message.

    Returns:
        The new state, JSON values, and what has become a habit by it.
    """
    before = dict(state or {"messages": 0, "formality": None, "noted": None, "slang": {}})
    messages = before["messages"] + 1
    updates, slang = _slang(dict(before["slang"]), heard)
    mean = before["formality"]
    level = heard.formality_level
    mean = level if mean is None else _FADING * mean + (1 - _FADING) * level
    noted = before["noted"]
    if messages >= _LEAST_MESSAGES and (noted is None or abs(mean - noted) >= _MOVED):
        noted = round(mean, 1)
        confidence = min(0.5 + 0.02 * messages, 0.9)
        updates.append(_inferred("preference.formality", noted, confidence))
    state = {"messages": messages, "formality": mean, "noted": noted, "slang": slang}
    return state, updates


def _slang(
    counts: dict[str, int], heard: ContextResult
) -> tuple[list[ContextUpdate], dict[str, int]]:
    updates = []
    senses = {str(one["term"]): one.get("sense") for one in heard.slang_detected}
    for term, sense in senses.items():
        counts[term] = counts.get(term, 0) + 1
        if counts[term] == _LEAST_USES and sense:
            updates.append(_inferred(f"slang.{term}", str(sense), 0.8))
    kept = sorted(counts, key=lambda term: -counts[term])[:_MOST_TERMS]
    return updates, {term: counts[term] for term in kept}


def _inferred(key: str, value: Any, confidence: float) -> ContextUpdate:
    return ContextUpdate(key, value, "", (0, 0), confidence, explicit=False)
