"""Does a topic's term stand for the topic here, or is it a name, a colour, a product, an adjective?

"A latte, please" is coffee; "my cat Latte", "walls in latte and cream", "Latte is a templating
engine" are none. `guard_topics` finds the terms and asks here::

    is_name_here(draft, start, end)              # a capital that makes a name of it
    is_meant(draft, rule, "flat white", start)   # False for "a flat white wall"

A sense is told by what stands beside the term and by the words of its sentence.
"""

from __future__ import annotations

import re

from mlx_companion.personality.lexicon import is_word
from mlx_companion.slm.guard_stage import verb_form
from mlx_companion.slm.guard_text import Draft, TopicRule, begins_sentence

_WORDS = re.compile(r"[a-z\u00df-\u00ff]+(?:['\u2019-][a-z]+)*")
_NEAR = 200
# "A latte and a roll, please" is served; "a latte wall" is painted.
_SERVED = re.compile(r"\b(?:a|an|another|my|your) $", re.IGNORECASE)
_NO_NOUN = re.compile(
    r"\s*(?:[^\w\s]|$)| (?:and|or|with|without|for|to|in|at|on|before|after|from|is|was|first|by|"
    r"as|than|if|when|while|because|but|that|which|instead|again|please|too|here|there|now)\b"
)
_FOLLOWING = re.compile(r" ([a-z]+)")
_COLOURED = re.compile(
    r"\b(?:colou?r(?:s|ed|way)?|shades?|hues?|paint(?:s|ed|ing)?|repaint\w*|walls?|ceilings?|trim|"
    r"dyed?|fabrics?|palettes?|swatch(?:es)?|lipsticks?|upholstery|tints?|veneer|eggshell|matte|"
    r"gloss|emulsion|sofa|curtains?|rugs?|cushions?|dress(?:es)?|nail polish|"
    r"(?:comes|available) in)\b",
    re.IGNORECASE,
)
_DRUNK = re.compile(
    r"\b(?:cups?|mugs?|drinks?|drank|drinking|sips?|sipp\w+|order(?:s|ed)?|pours?|poured|"
    r"spill\w*|spilt|brew\w*|shots?|roast\w*|tastes?|foam|steaming|menu|thermos|flask)\b",
    re.IGNORECASE,
)
# "Latte is a template engine", "Latte, the spaniel, is twelve", "Latte the dog".
_CALLED = re.compile(r",? (?:the|our|my|your) [a-z]+|,? an? [a-z]+ing [a-z]+")
_VERSION = re.compile(r"(?:['\u2019]s)?\s(?:v?\d|EE\b|SE\b|LTS\b)")
_HOUSES = frozenset(["café", "cafe", "cafés", "cafes"])


def is_name_here(draft: Draft, start: int, end: int) -> bool:
    """Tell whether a capital makes a name of a term: "my cat Latte", "Mocha runs the tests".

    Args:
        draft: the reply.
        start, end: the span of the term.
    """
    text = draft.text
    word = text[start:end]
    if not word[0].isupper() or word.isupper() or draft.markup.inside(start, ("heading", "table")):
        return False
    before = text[max(0, start - 30) : start]
    if word.lower() in _HOUSES:
        # "Ballad of the Sad Café" is a title, "Café Central" is where one sits.
        row = re.search(r"[A-Z]\w*(?:['\u2019]s)? $", before)
        return row is not None and not begins_sentence(draft, start - len(row[0]))
    if begins_sentence(draft, start):
        # "Mocha Mousse", "Java Sea": another capital right behind it, though not "Coffee Shop".
        following = re.match(r"\s([A-Z][a-z]+)", text[end : end + 30])
        another = following is not None and not is_word(following[1])
        return another or _named_elsewhere(draft, word)
    return _in_row(draft, start) is False


def _in_row(draft: Draft, start: int) -> bool:
    """In a row of capitals ("Best Coffee In Town") capitals tell nothing."""
    row = re.search(r"([A-Z][a-z]+)\s$", draft.text[max(0, start - 30) : start])
    return row is not None and is_word(row[1])


def _named_elsewhere(draft: Draft, word: str) -> bool:
    """A name within a sentence is one at the head of the next: "your cat Mocha. Mocha ate it."."""
    for found in re.finditer(rf"\b{re.escape(word)}\b", draft.own):
        at = found.start()
        if not begins_sentence(draft, at) and not _in_row(draft, at):
            return not draft.markup.inside(at, ("heading", "table"))
    return False


def is_meant(draft: Draft, rule: TopicRule, term: str, start: int) -> bool:
    """Tell whether a term that is no name stands for its topic.

    Args:
        draft: the reply.
        rule: the topic.
        term: in lower case, as in the rule.
        start: where it stands.
    """
    first, last = draft.sentence(start)
    first, last = max(first, start - _NEAR), min(last, start + _NEAR)
    near = draft.prose[first:last]
    words = set(_WORDS.findall(near.lower())) - {term}
    if words & rule.senses.get(term, frozenset()):
        return False
    if term in rule.colours and _COLOURED.search(near) and not _DRUNK.search(near):
        return False
    end = start + len(term)
    if term in rule.describing and not _stands_alone(draft, end):
        return False
    capital = draft.text[start].isupper() and not draft.text[start : start + 2].isupper()
    if capital and (words & rule.products or _VERSION.match(draft.text, end)):
        return False
    if capital and term in rule.colours | rule.weak and _CALLED.match(draft.text, end):
        return False
    if term in rule.doubtful:
        return not words & rule.strangers
    return term not in rule.weak or _keeps_company(draft, rule, term, start, words, capital)


def _keeps_company(
    draft: Draft, rule: TopicRule, term: str, start: int, words: set[str], capital: bool
) -> bool:
    """Tell whether a term that mostly means other things is served, or in fitting company."""
    inside = capital and not begins_sentence(draft, start) and term not in rule.proper
    served = _SERVED.search(draft.text, max(0, start - 12), start) is not None
    served = served and _NO_NOUN.match(draft.text, start + len(term)) is not None
    beside = bool(rule.beside.intersection(draft.words_before(start, 2)))
    friends = bool(words & rule.company) or served or beside
    return friends and not inside and not words & rule.strangers


def _stands_alone(draft: Draft, end: int) -> bool:
    """Tell whether no noun follows: "a flat white wall" is no drink."""
    if _NO_NOUN.match(draft.text, end):
        return True
    following = _FOLLOWING.match(draft.text, end)
    return following is not None and bool(verb_form(following[1]))
