"""Does a topic's term stand for the topic here, or is it a name, a colour, a product, an adjective?

"A latte, please" is coffee; "my cat Latte", "walls in latte and cream", "Latte is a templating
engine" are none. `guard_topics` finds the terms and asks here::

    is_name_here(draft, start, end)              # a capital that makes a name of it
    is_meant(draft, rule, "flat white", start)   # False for "a flat white wall"

A sense is told by what stands beside the term and by the words of its sentence.
"""

from __future__ import annotations

import re
from itertools import takewhile

from mlx_companion.personality.lexicon import is_word
from mlx_companion.slm.guard_stage import verb_form
from mlx_companion.slm.guard_text import Draft, TopicRule, begins_sentence

_WORDS = re.compile(r"[a-z\u00df-\u00ff]+(?:['\u2019-][a-z]+)*")
_NEAR = 200
# So far above a table is looked for its head, in characters.
_TABLE = 4000
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
# An entry begins after its head: "3. **8:15** Coffee", "Monday: Latte with Ann", "8 am Espresso".
_ENTRY_HEAD = re.compile(
    r"[\s>]*(?:(?:[-*+\u2022]|\d{1,3}[.)])\s+)?(?:\[[ xX]?\]\s+)?"
    r"(?:(?P<bold>\*{1,3}|_{1,2})[^*_\n]{1,40}(?P=bold)[:.,]?\s*(?:[-\u2013\u2014]\s+)?"
    r"|\d{1,2}(?:[:.]\d\d)?(?:\s?[ap]\.?m\.?)?(?:\s?[-\u2013]\s?\d{1,2}(?:[:.]\d\d)?)?,?\s+"
    r"|[^\n,;.!?*_]{1,40}(?::|\s[-\u2013\u2014])\s+)[*_]*"
)
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
        # "Ballad of the Sad Café", "Café Central": names stay as they are.
        if re.match(r" [A-Z\u00c0-\u00de][a-z\u00df-\u00ff]+", text[end : end + 20]):
            return True
        row = re.search(r"[A-Z]\w*(?:['\u2019]s)? $", before)
        return row is not None and not begins_sentence(draft, start - len(row[0]))
    if begins_sentence(draft, start) or _opens_entry(draft, start):
        # "Mocha Mousse", "Java Sea": another capital right behind it, though not "Coffee Shop".
        following = re.match(r"\s([A-Z][a-z]+)", text[end : end + 30])
        another = following is not None and not is_word(following[1])
        return another or _named_elsewhere(draft, word)
    return not _in_row(draft, start)


def _opens_entry(draft: Draft, start: int) -> bool:
    """Tell whether what opens an entry of a list or a day stands right before."""
    line = draft.line(start)[0]
    left = draft.text[line:start]
    return start - line < 80 and _ENTRY_HEAD.fullmatch(left) is not None


_ROW = re.compile(r"(?:[A-Z][\w'\u2019&-]* ){1,4}$")
# "an Iced Coffee" is one of many, "at Blue Bottle Coffee" is the only one.
_ONE_OF_MANY = re.compile(
    r"\b(?:an?|your|my|some|another|one|two|any|no|with|of)\W+$", re.IGNORECASE
)
_SPOKEN = re.compile(r"\b[a-z]{4,}\b")
_TOWNY = frozenset(["coffee", "espresso"])


def _in_row(draft: Draft, start: int) -> bool:
    """In a row of capitals ("Best Coffee In Town") capitals tell nothing."""
    row = re.search(r"([A-Z][a-z]+)\s$", draft.text[max(0, start - 30) : start])
    return row is not None and is_word(row[1]) and not _names_place(draft, start)


def _names_place(draft: Draft, start: int) -> bool:
    """ "at Blue Bottle Coffee on Mint Plaza": a name in a sentence of small letters."""
    text = draft.text
    row = _ROW.search(text, max(0, start - 80), start)
    first, last = draft.sentence(start)
    near = text[max(first, start - _NEAR) : min(last, start + _NEAR)]
    if row is None or not _SPOKEN.search(near):
        return False
    if begins_sentence(draft, row.start()):
        term = re.match(r"\w+", text[start : start + 20])
        return term is not None and term[0].lower() in _TOWNY and row[0].count(" ") > 1
    return not _ONE_OF_MANY.search(text, max(0, row.start() - 12), row.start())


def _named_elsewhere(draft: Draft, word: str) -> bool:
    """A name within a sentence is one at the head of the next: "your cat Mocha. Mocha ate it."."""
    if word not in draft.named:
        draft.named[word] = _is_name_within(draft, word)
    return draft.named[word]


def _is_name_within(draft: Draft, word: str) -> bool:
    for found in re.finditer(rf"\b{re.escape(word)}\b", draft.own):
        at = found.start()
        opens = begins_sentence(draft, at) or _opens_entry(draft, at)
        if not opens and not _in_row(draft, at):
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
    if draft.markup.inside(start, "table") and words_of_column(draft, start) & rule.company:
        return True
    friends = bool(words & rule.company) or served or beside
    return friends and not inside and not words & rule.strangers


def words_of_column(draft: Draft, start: int) -> set[str]:
    """The words at the head of a table's column where all of a cell begins at `start`.

    Its row alone does not tell what a cell is: "| americano | 120 mg |" below "| Drink | mg |".
    """
    first, last = draft.line(start)
    row = draft.text[first:last]
    column = row.count("|", 0, start - first)
    cell = row[: start - first].rpartition("|")[2]
    if cell.strip(" *_"):
        return set()
    above = draft.text[max(0, first - _TABLE) : first].split("\n")[:-1]
    table = list(takewhile(lambda line: "|" in line, reversed(above)))
    heads = table[-1].split("|") if table else []
    return set(_WORDS.findall(heads[column].lower())) if column < len(heads) else set()


def _stands_alone(draft: Draft, end: int) -> bool:
    """Tell whether no noun follows: "a flat white wall" is no drink."""
    if _NO_NOUN.match(draft.text, end):
        return True
    following = _FOLLOWING.match(draft.text, end)
    return following is not None and bool(verb_form(following[1]))
