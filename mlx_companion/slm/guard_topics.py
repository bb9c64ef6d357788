"""Prohibited topics and phrases: words that a profile does not want to hear, and what to say.

A term counts as a word of prose. It does not count in code, in links, in what others are quoted
with, in a longer identifier, in a name ("my cat Latte", "CoffeeScript") or in a phrase in which it
means another thing ("a storm is brewing"). Terms that mostly mean other things ("brew", "java")
need company.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

from mlx_companion.personality.guard_settings import TopicSettings
from mlx_companion.slm.guard_apart import tell_apart
from mlx_companion.slm.guard_senses import is_meant, is_name_here
from mlx_companion.slm.guard_text import Draft, Finding, GuardRules, TopicRule

PROHIBITED_PHRASE = "prohibited_phrase"


def topic_violation(topic: str) -> str:
    """The name of a topic's violation."""
    return f"{topic}_reference"


def topic_rule(topic: str, settings: TopicSettings, rules: GuardRules) -> TopicRule:
    """The terms of a topic: those of the pack, when it knows the topic, and the profile's own."""
    known = rules.topics.get(topic, TopicRule({}))
    terms = dict(known.terms)
    if settings.substitute is not None:
        # A substitute of one's own replaces them all: "kettle" suits tea and not "water".
        terms = dict.fromkeys(terms, settings.substitute)
    own = settings.substitute or ""
    terms |= {term.lower(): own for term in settings.terms}
    terms |= {plural(term.lower()): own for term in settings.terms}
    return replace(known, terms=terms, exceptions=(*known.exceptions, *settings.exceptions))


def plural(term: str) -> str:
    """The plural of a term in -s."""
    if term.endswith(("s", "x", "ch", "sh")):
        return term + "es"
    return term + "s"


def find_topic(draft: Draft, topic: str, rule: TopicRule) -> list[Finding]:
    """Every term of a topic.

    Args:
        draft: the reply.
        topic: its name.
        rule: from `topic_rule`.
    """
    if not rule.terms:
        return []
    excepted = _spans(draft.own, rule.exceptions)
    found = []
    for match in _pattern(tuple(rule.terms)).finditer(draft.own):
        start, end = match.span()
        term = " ".join(match.group().lower().split())
        inside = any(first <= start and end <= last for first, last in excepted)
        named = term not in rule.proper and is_name_here(draft, start, end)
        if inside or named or not is_meant(draft, rule, term, start):
            continue
        detail = {"after": rule.terms.get(term, ""), "term": term}
        found.append(Finding(topic_violation(topic), start, end, detail))
    tell_apart(draft, topic, found)
    return found


def find_phrases(draft: Draft, phrases: Mapping[str, str]) -> list[Finding]:
    """Every prohibited phrase, whatever its case and spaces."""
    if not phrases:
        return []
    said = {" ".join(phrase.lower().split()): after for phrase, after in phrases.items()}
    found = []
    for match in _pattern(tuple(said)).finditer(draft.own):
        term = " ".join(match.group().lower().replace("\u2019", "'").split())
        detail = {"after": said.get(term, ""), "term": term}
        found.append(Finding(PROHIBITED_PHRASE, *match.span(), detail))
    return found


@lru_cache(maxsize=64)
def _pattern(terms: tuple[str, ...]) -> re.Pattern[str]:
    longest_first = sorted(terms, key=lambda term: (-len(term), term))
    bodies = [
        r"[ \t]{1,3}\n?".join(re.escape(word).replace("'", "['\u2019]") for word in term.split())
        for term in longest_first
    ]
    # Not within an identifier, a file name or a longer word.
    return re.compile(
        rf"(?<![\w@/\\.$])(?<!\w['\u2019])(?:{'|'.join(bodies)})(?![\w@\\]|[/.]\w|\()",
        re.IGNORECASE,
    )


def _spans(text: str, phrases: tuple[str, ...]) -> list[tuple[int, int]]:
    return [match.span() for match in _pattern(phrases).finditer(text)] if phrases else []
