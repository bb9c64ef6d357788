"""Asterisk actions: `*smiles*`, `_sips tea_`, `(winks)`, and not emphasis, bold, lists or sums.

What stands between the marks decides together with where it stands. "The function *returns* early"
is emphasis: the sentence goes through it. "*sighs* That is a long story." is an action: the
sentence does without it. So a verb of expression counts nearly everywhere, anything else that
reads like a stage direction (`guard_stage`) only in a place of its own, between ends of sentences
or lines.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from mlx_companion.slm.guard_stage import Stage
from mlx_companion.slm.guard_text import NOT_OWN, Draft, Finding, GuardRules

ASTERISK_ACTION = "asterisk_action"
_MARKED = re.compile(
    r"(?<![*\\])(\*{1,3})(?![\s*])([^*\n]{1,400})(?<![\s\\])\1(?!\*)"
    r"|(?<![\w\\])(_{1,2})(?![\s_])([^_\n]{1,400})(?<!\s)\3(?!\w)"
    r"|(?<![\w~])(~)(?![\s~])([^~\n]{1,80})(?<!\s)~(?![\w~])"
    r"|(?<![\w*\\])(\* )(?=[a-z])([^*\n]{3,60}) \*(?![\w*])"
    r"|(?<![\w\]])([(\[])([^()\[\]\n]{2,90})[)\]](?!\()"
    r"|(\\\*)(?!\s)([^*\n\\]{2,200})\\\*"
)
_KINDS = range(1, 12, 2)
# Opened and never closed, on a line of its own or at the end of one.
_UNCLOSED = re.compile(r"(?:(?<=\n)|(?<=[.!?,] )|\A)\*(?=[a-z])([^*\n]{3,60})(?=\n|\Z)")
_WORD = re.compile(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*")
_CLOSES = '.!?,;:\u2026\u2014\u2013"\u201d)]*~-'
_SMALL_WORDS = """
    a an and as at but by for from in into of off on or out over the to up with without
"""
_SMALL = frozenset(_SMALL_WORDS.split())
_HEARD = (
    "hm hmm hmmm well oh ah um okay yes no ok aw so hey look right sure now yeah ooh mm ha haha see"
)
_INTERJECTIONS = frozenset(_HEARD.split())
_ABOUT_WORDS = re.compile(
    r"\b(?:verbs?|nouns?|tense|grammar|syllables?|rhymes?|spelled|synonyms?|adverbs?|asterisks?|"
    r"emphasis|italics?|translates?|pronounced|conjugat\w+|markdown)\b",
    re.IGNORECASE,
)
_OWNERS = frozenset(["the", "a", "an", "my", "your", "his", "her", "our", "their", "this", "that"])
_NOUNLY = "are is was were can could may or of from have has tend mean and"
_NOUN_FOLLOWS = frozenset(_NOUNLY.split())


@dataclass(frozen=True)
class _Place:
    """Where a marked piece stands: does a sentence or line end before it, and after it?

    `loose`: no punctuation ties it to what follows; `comma`: one does.
    """

    before: bool
    after: bool
    loose: bool
    comma: bool
    listed: bool
    glued: bool
    previous: str
    following: str


def find_actions(draft: Draft, rules: GuardRules) -> list[Finding]:
    """Every stage direction between marks.

    Args:
        draft: the reply.
        rules: the verbs.
    """
    found = []
    for start, end, mark, content in _pieces(draft):
        if _is_action(draft, rules, start, end, mark, content):
            found.append(Finding(ASTERISK_ACTION, start, end))
    return [*found, *_unclosed(draft, rules)]


def _pieces(draft: Draft) -> Iterator[tuple[int, int, str, str]]:
    at, text = 0, draft.text
    if not any(mark in text for mark in "*_~(["):
        return
    while found := _MARKED.search(text, at):
        mark = next(found[index] for index in _KINDS if found[index])
        content = next(found[index + 1] for index in _KINDS if found[index])
        blocked = draft.markup.touches(found.start(), found.start() + 1, NOT_OWN)
        inner = content.lstrip(".\u2026 ")
        if not blocked and inner and inner[0] not in ",;":
            yield found.start(), found.end(), mark.lstrip("\\"), inner
        # A star that opens nothing may be the end of nothing, too: go on right after it, so that
        # an odd star in front does not turn the following pairs inside out.
        skip = found.end() if content[0].isalpha() else found.start() + len(mark)
        at = max(skip, found.start() + 1)


def _unclosed(draft: Draft, rules: GuardRules) -> Iterator[Finding]:
    """ "*smiles and waves" with nothing to close it; lists that open with such stars are none."""
    found = [] if "*" not in draft.text else list(_UNCLOSED.finditer(draft.text))
    for one in found[:1] if len(found) == 1 else ():
        stage = Stage(_words(one[1]), one[1], rules)
        verb = stage.words and stage.form == "s" and not stage.captions()
        clear = verb and (stage.complement() or stage.head[0] in rules.forms["expressive"])
        if clear and draft.free(one.start(), one.end()) and len(stage.words) < 9:
            yield Finding(ASTERISK_ACTION, one.start(), one.end())


def _words(content: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(content.replace("\u2019", "'"))]


def _is_action(
    draft: Draft, rules: GuardRules, start: int, end: int, mark: str, content: str
) -> bool:
    words = _words(content)
    if not words or content.rstrip("*_ ").endswith(":"):
        return False
    place = _place(draft, start, end, mark)
    stage = Stage(words, content, rules)
    if stage.plain in rules.pieces:
        return _set_piece(stage, mark, place)
    if _is_title(content, words, rules) or _tells_of_words(draft, start, end, place, rules):
        return False
    if stage.head[0] in rules.forms["expressive"] and _expressive(rules, stage, mark, place):
        return True
    if place.glued or mark in ("~", "* "):
        return False
    if mark in ("(", "["):
        return place.before and place.after and not place.listed and _aside(stage)
    if place.before and place.after:
        # Lists of exercises, of steps, of features: "- *stretching*", "**Reading notes**".
        plain_list = place.listed and stage.form == "ing" and not stage.complement()
        bold_head = len(mark) > 1 and not stage.small and stage.form != "s"
        goes_on = place.comma and stage.form != "s" and not stage.touches_body()
        return not (plain_list or bold_head or goes_on) and stage.narrates()
    return _interrupts(draft, rules, stage, place, start)


def _set_piece(stage: Stage, mark: str, place: _Place) -> bool:
    if mark in ("~", "* "):
        return False
    if place.before and place.after:
        return (stage.small or len(mark) < 2) and not (place.comma and not stage.small)
    return stage.small and len(stage.words) > 1 and (place.before or place.after)


def _aside(stage: Stage) -> bool:
    """In brackets only what cannot be a remark: "(clears throat)", "[leans forward]"."""
    moves = stage.form == "s" and stage.complement() and not stage.captions()
    return stage.small and len(stage.words) < 9 and (moves or stage.sound() or stage.perceived())


def _interrupts(draft: Draft, rules: GuardRules, stage: Stage, place: _Place, start: int) -> bool:
    """Within a sentence: "Well *scratches beard* it depends", "sir *points wildly* are late"."""
    if stage.form != "s" or not stage.small or stage.captions() or len(stage.words) < 2:
        return False
    if place.before:
        return stage.complement() or place.following in rules.actions["clause_openers"]
    if _has_subject(draft, rules, place, start):
        return False
    adverb = len(stage.head) == 2 and stage.head[1].endswith("ly")
    return (
        stage.touches_body() or (place.loose and stage.complement()) or (adverb and not place.after)
    )


def _has_subject(draft: Draft, rules: GuardRules, place: _Place, start: int) -> bool:
    """Tell whether what stands before could do what is told: "she", "the cat", "Anna"."""
    before = draft.words_before(start, 2)
    owned = len(before) > 1 and before[0] in _OWNERS
    # "that" may end a sentence as its object.
    stops = place.previous in ("that", "this", "it")
    stops = stops and (place.after or place.following in _INTERJECTIONS)
    name = draft.text[max(0, start - 60) : start].rstrip()[-len(place.previous) :][:1].isupper()
    return owned or name or (place.previous in rules.actions["subjects"] and not stops)


def _place(draft: Draft, start: int, end: int, mark: str) -> _Place:
    line_start, line_end = draft.line(start)
    text = draft.text
    left = text[max(line_start, start - 200) : start]
    right = text[end : min(line_end, end + 200)]
    bare = re.sub(r"^[\s>]*(?:[-*+\u2022]|\d{1,3}[.)])?\s*", "", left).rstrip()
    bare = bare.rstrip("_*") if bare.strip("_*") == "" else bare
    previous = (draft.words_before(start, 1) or [""])[-1]
    following = (draft.words_after(end, 1) or [""])[0]
    rest = (right.lstrip("_*") if mark[0] in "*_" else right).strip()
    before = not bare or not bare[-1].isalnum() or previous in _INTERJECTIONS
    after = not rest or rest[0] in _CLOSES or not rest[0].isalnum() or rest[0].isupper()
    loose = not rest or rest[0].isupper()
    listed = left.strip() != "" and not bare
    near = (text[start - 1 : start], text[end : end + 1])
    glued = mark[0] == "*" and any(one.isalnum() for one in near)
    comma = rest.startswith(",")
    return _Place(before, after, loose, comma, listed, glued, previous, following)


def _is_title(content: str, words: list[str], rules: GuardRules) -> bool:
    big = [word for word in content.split() if word.strip("'\"").lower() not in _SMALL]
    capital = [word for word in big if word.lstrip("'\"(")[:1].isupper()]
    expressive = words[0] in rules.forms["expressive"] and words[0].endswith("s")
    bodily = len(words) < 4 and Stage(words, content, rules).rolls_eyes()
    short = bodily or (expressive and len(words) < 3)
    return len(big) > 1 and len(capital) == len(big) and not short


def _tells_of_words(draft: Draft, start: int, end: int, place: _Place, rules: GuardRules) -> bool:
    # "the word *sighs*", "she *smiles* at him", "*smiles*: shows the teeth" are about something.
    inside = not place.before and place.previous in rules.actions["mentions"]
    if inside and place.previous in ("that", "it", "this", "with", "to", "in", "on"):
        goes_on = {"and", "but", "so", "i", "it", *_INTERJECTIONS}
        inside = not place.after and place.following not in goes_on
    first, last = draft.sentence(start)
    defined = draft.text[end : end + 3].lstrip()[:1] in (":", "=") and place.before
    about = _ABOUT_WORDS.search(draft.text, max(first, start - 200), min(last, end + 200))
    return inside or defined or about is not None


def _expressive(rules: GuardRules, stage: Stage, mark: str, place: _Place) -> bool:
    head, count = stage.head, len(stage.words)
    form = rules.forms["expressive"][head[0]]
    first_person = "i" in stage.words[: count - len(head)]
    if mark == "* ":
        return form == "s" and place.before and count < 8
    if place.glued:
        return form == "s" and count < 6
    if mark in ("(", "["):
        return form in ("s", "ing") and count <= 6 and (place.before or place.after)
    whole = place.before and place.after
    if form == "s":
        return _third_person(rules, stage, place)
    opens = place.before and place.following in rules.actions["clause_openers"]
    if form == "base":
        emote = stage.small or (len(mark) == 1 and not place.listed)
        single = count == 1 and (whole or opens)
        phrase = whole and stage.small and mark in ("*", "_") and not place.listed
        return (emote and (single or phrase)) or (first_person and whole)
    cough = head[0] in ("cough", "ahem", "coughing")
    return cough or (
        (whole or (opens and stage.small)) and (stage.small or stage.complement() or count == 1)
    )


def _third_person(rules: GuardRules, stage: Stage, place: _Place) -> bool:
    if place.before and not place.after and len(stage.words) == 1:
        return place.following not in _NOUN_FOLLOWS
    opens = place.following in rules.actions["clause_openers"]
    return place.before or place.after or opens
