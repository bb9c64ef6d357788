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
from mlx_companion.personality.lexicon import is_word
from mlx_companion.slm.guard_shouts import begins_sentence
from mlx_companion.slm.guard_text import Draft, Finding, GuardRules, TopicRule

PROHIBITED_PHRASE = "prohibited_phrase"
# "A latte and a roll, please" is served; "a latte wall" is painted.
_SERVED = re.compile(r"\b(?:a|an|another|my|your) $", re.IGNORECASE)
_NO_NOUN = re.compile(
    r"\s*(?:[^\w\s]|$)| (?:and|or|with|for|to|in|at|on|before|after|from|is|first)\b"
)
_WORDS = re.compile(r"[a-z]+(?:['\u2019-][a-z]+)*")


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
        named = term not in rule.proper and _in_name(draft, start, end)
        if inside or named or not _keeps_company(draft, rule, term, start):
            continue
        detail = {"after": rule.terms.get(term, ""), "term": term}
        found.append(Finding(topic_violation(topic), start, end, detail))
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


def _in_name(draft: Draft, start: int, end: int) -> bool:
    """A capital inside of a sentence makes a name: "my cat Latte", "Mocha runs the tests"."""
    text = draft.text
    word = text[start:end]
    if not word[0].isupper() or word.isupper() or draft.markup.inside(start, ("heading", "table")):
        return False
    before = text[max(0, start - 30) : start]
    if begins_sentence(draft, start):
        # "Mocha Mousse", "Java Sea": another capital right behind it, though not "Coffee Shop".
        following = re.match(r"\s([A-Z][a-z]+)", text[end : end + 30])
        return following is not None and not is_word(following[1])
    # In a row of capitals ("Best Coffee In Town") capitals tell nothing.
    row = re.search(r"([A-Z][a-z]+)\s$", before)
    return row is None or not is_word(row[1])


def _keeps_company(draft: Draft, rule: TopicRule, term: str, start: int) -> bool:
    first, last = draft.sentence(start)
    near = draft.prose[max(first, start - 200) : min(last, start + 200)]
    words = set(_WORDS.findall(near.lower())) - {term}
    capital = draft.text[start].isupper() and not draft.text[start : start + 2].isupper()
    if term not in rule.weak and term not in rule.doubtful:
        return not (capital and words & rule.products)
    inside = capital and not begins_sentence(draft, start) and term not in rule.proper
    served = _SERVED.search(draft.text, max(0, start - 12), start) is not None
    served = served and _NO_NOUN.match(draft.text, start + len(term)) is not None
    near_it = bool(words & rule.company) or served
    friends = term in rule.doubtful or (near_it and not inside)
    return friends and not words & rule.strangers
