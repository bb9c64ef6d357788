"""Capitals for excitement: AMAZING and SOOO, and not NASA, MAX_SIZE, `SELECT` or WARNING labels.

A word in capitals is a shout when it is an ordinary word of English (`personality.lexicon`) or an
interjection, and nothing says otherwise: a heading, a label, a key on a keyboard, a keyword of
SQL, an acronym that is spelled like a word. A contrast ("it is NOT your fault") is a shout as well;
in a warning or an instruction ("do NOT unplug it") only beside a shout. Half a word in capitals
("abso-LUTELY", "unbeLIEVable") is one where the whole is a word.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from mlx_companion.personality.lexicon import is_word, ordinary_case
from mlx_companion.slm.guard_actions import ASTERISK_ACTION
from mlx_companion.slm.guard_labels import named_here
from mlx_companion.slm.guard_shouts import role_of
from mlx_companion.slm.guard_text import Draft, Finding, GuardRules, begins_sentence
from mlx_companion.slm.guard_wordforms import STRETCHED, TOKEN, Token, plain_word

CAPS_ENTHUSIASM = "caps_enthusiasm"
# A direction of two words or more that opens a sentence is removed, and what follows opens it.
_AFTER_DIRECTION = re.compile(r"(?:\A|[.!?\n]\s{0,9})(\*{1,3})(?![\s*])[^*\n]+\s[^*\n]+\1\s*\Z")


def find_capitals(draft: Draft, rules: GuardRules) -> list[Finding]:
    """Every word that is in capitals for excitement, with its ordinary case.

    Args:
        draft: the reply.
        rules: acronyms, labels and the like.
    """
    tokens = [
        Token(found.start(), found.end(), plain_word(found.group()))
        for found in TOKEN.finditer(draft.own)
        if _in_prose(draft, found)
    ]
    for token in tokens:
        token.role = role_of(draft, rules, token)
    _call_people(draft, rules, tokens)
    _settle(draft, rules, tokens)
    tokens += _inner_shouts(draft)
    return [
        Finding(CAPS_ENTHUSIASM, one.start, one.end, {"after": _calm(draft, one)})
        for one in tokens
        if one.role == "shout" and len(one.word) > 1
    ]


def opened(draft: Draft, capitals: list[Finding], found: Sequence[Finding]) -> list[Finding]:
    """Shouts with a capital where the sentence begins once what stands before them has gone.

    Args:
        draft: the reply.
        capitals: from `find_capitals`.
        found: what else was found; stage directions go.
    """
    gone = {one.end: one.start for one in found if one.violation == ASTERISK_ACTION}
    result = []
    for one in capitals:
        left = draft.text[max(0, one.start - 12) : one.start]
        end = one.start - len(left) + len(left.rstrip(" \t.,;:!\"'\u201c(_"))
        if end in gone and begins_sentence(draft, gone[end]):
            after = str(one.detail["after"])
            after = after[:1].upper() + after[1:]
            one = Finding(one.violation, one.start, one.end, {**one.detail, "after": after})
        result.append(one)
    return result


def _calm(draft: Draft, token: Token) -> str:
    after = lowered(draft, token.start, token.end)
    return after.capitalize() if token.titled else after


def _call_people(draft: Draft, rules: GuardRules, tokens: list[Token]) -> None:
    """ "You met DOLLY PARTON": two words in a row that are neither acronyms nor English."""
    for first, second in pairwise(tokens):
        pair = (first, second)
        apart = draft.text[first.end : second.start] != " "
        if apart or is_word(first.word) or any(one.role not in _STRANGERS for one in pair):
            continue
        called = first.role == "person" and len(second.word) > 2
        strange = all(_sayable(one.word) and not is_word(one.word) for one in pair)
        named = any(named_here(draft, one.start, one.end, one.word) for one in pair)
        if (called or strange) and not named:
            first.role = second.role = "shout"
            first.titled = second.titled = True


_STRANGERS = ("none", "person", "shout")


def _sayable(word: str) -> bool:
    """Tell whether it can be spoken as a word, which most acronyms cannot."""
    if len(word) < 5 or not word.isalpha() or re.search(r"[^aeiouy]{4}|[aeiouy]{4}", word):
        return False
    return 0.2 <= sum(letter in "aeiouy" for letter in word) / len(word) <= 0.6


def _in_prose(draft: Draft, found: re.Match[str]) -> bool:
    return not draft.markup.touches(found.start(), found.end(), ("heading", "table"))


# "unbeLIEVable", "SOoooo", and not "GitHub", "IDs", "iPHONE".
_INNER = re.compile(
    r"(?<![^\W_])(?<![_@#$\\/=.])(?=[A-Za-z]{0,30}[A-Z]{2})(?=[A-Za-z]{0,30}[a-z])[A-Za-z]{5,30}"
    r"(?![^\W_]|[_(@=/\\]|\.\w)"
)


def _inner_shouts(draft: Draft) -> list[Token]:
    """Words that are shouted in part."""
    found = [one for one in _INNER.finditer(draft.own) if _in_prose(draft, one)]
    return [
        Token(one.start(), one.end(), one.group().lower(), "shout")
        for one in found
        if (is_word(one.group()) or STRETCHED.search(one.group().lower()))
        and not re.fullmatch(r"[A-Z]+(?:s|ed|ing|ers?)|[A-Z]?[a-z]+[A-Z]{2}", one.group())
    ]


def _settle(draft: Draft, rules: GuardRules, tokens: list[Token]) -> None:
    """Emphatic words and acronyms of a shout belong to it, and labels do in their sentence."""
    _unite(draft, tokens, rules.capitals["gushing"], rules.capitals["emphatic"])
    _spread_all(draft, tokens)
    _whole_sentences(draft, tokens)
    loud = {draft.sentence(one.start) for one in tokens if one.role == "shout"}
    run = _runs(draft, tokens)
    for token in tokens:
        span = draft.sentence(token.start)
        ends = draft.own[max(span[0], span[1] - 200) : span[1]].rstrip("\"'\u201d*_) \n")
        excited = span in loud or (ends.endswith("!") and not _warns(ends))
        if token.role in ("emphatic", "label") and (excited or run.get(token.start, 0) > 2):
            token.role = "shout"
    _spread_all(draft, tokens)


def _whole_sentences(draft: Draft, tokens: list[Token]) -> None:
    """ "DO IT.": short sentences of plain words, all in capitals, with others around them."""
    for token in tokens:
        first, last = draft.sentence(token.start)
        if last - first > 200:
            continue
        said = draft.text[first:last].strip()
        if token.role not in ("emphatic", "single", "acronym") or len(said) > 60:
            continue
        words = re.findall(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*", said)
        whole = len(words) > 1 and said.isupper() and said[-1] in ".!?" and "NOT" not in words
        if whole and all(is_word(word) for word in words):
            token.role = "shout"


def _unite(
    draft: Draft, tokens: list[Token], gushing: frozenset[str], emphatic: frozenset[str]
) -> None:
    """In "FILE, EDIT and VIEW" the ones that are no words tell what the others are."""
    _share_names(draft, tokens, gushing)
    for first, second in pairwise(tokens):
        between = draft.text[first.end : second.start]
        named = first.role == "named" and second.word not in gushing and "\n" not in between
        listed = named and len(between) < 40 and re.search(r" (?:or|and) $", between)
        alike = between in _JOINTS or (named and between == " ") or listed
        words = second.word in gushing | emphatic and first.role == "none"
        if first.role in ("none", "named") and second.role == "shout" and alike and not words:
            second.role = first.role


def _share_names(draft: Draft, tokens: list[Token], gushing: frozenset[str]) -> None:
    """What is named once is named throughout, and so is all of a row: "APPLY TO ALL"."""
    called = {one.word for one in tokens if one.role == "named"} - gushing
    for token in tokens:
        cries = draft.text[token.end : token.end + 1] == "!"
        if token.role == "shout" and token.word in called and not cries:
            token.role = "named"
    for first, second in [*pairwise(tokens), *pairwise(reversed(tokens))]:
        early, late = sorted((first, second), key=lambda one: one.start)
        calm = second.word not in gushing and first.role == "named"
        beside = draft.text[early.end : late.start] == " " and (first.fixed or calm)
        if beside and second.role in ("shout", "emphatic", "label", "acronym"):
            second.role, second.fixed = "named", first.fixed


_JOINTS = (", ", " and ", " or ", ", and ", ", or ", "/", " vs ", ", then ", " and then ")


def _spread_all(draft: Draft, tokens: list[Token]) -> None:
    for previous, token in pairwise(tokens):
        _spread(draft, previous, token)
    for following, token in pairwise(reversed(tokens)):
        _spread(draft, following, token)


def _warns(sentence: str) -> bool:
    return bool(re.search(r"\b(?:[Dd]o NOT|DO NOT|MUST)\b|^\s*NEVER\b", sentence))


def _spread(draft: Draft, source: Token, token: Token) -> None:
    first, second = sorted((source, token), key=lambda one: one.start)
    between = draft.text[first.end : second.start]
    near = len(between) <= 3 and not between.strip(" ,-*_") and "\n" not in between
    if near and source.role == "shout" and token.role in ("acronym", "emphatic", "label", "single"):
        token.role = "shout"


def _runs(draft: Draft, tokens: list[Token]) -> dict[int, int]:
    """Start of a token -> how many tokens follow each other without other words."""
    lengths: dict[int, int] = {}
    run: list[Token] = []
    for token in tokens:
        if run and draft.text[run[-1].end : token.start].strip(" ,'\u2019-*_"):
            lengths |= dict.fromkeys((one.start for one in run), len(run))
            run = []
        run.append(token)
    return lengths | dict.fromkeys((one.start for one in run), len(run))


def lowered(draft: Draft, start: int, end: int) -> str:
    """The word at [start, end) in its ordinary case, with a capital where a sentence begins."""
    word = draft.text[start:end]
    plain = STRETCHED.sub(r"\1", word) if is_word(STRETCHED.sub(r"\1", word)) else word
    if not STRETCHED.search(word):
        plain = word
    calm = ordinary_case(plain) or plain.lower()
    first = begins_sentence(draft, start) or _AFTER_DIRECTION.search(
        draft.text[max(0, start - 400) : start]
    )
    return calm[:1].upper() + calm[1:] if first else calm
