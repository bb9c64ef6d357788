"""Asterisk actions: `*smiles*`, `_sips tea_`, `(winks)`, and not emphasis, bold, lists or sums.

What stands between the marks decides together with where it stands. "The function *returns* early"
is emphasis: the sentence goes through it. "*sighs* That is a long story." is an action: the
sentence does without it. So a verb of expression counts nearly everywhere, any other verb only
where the piece stands alone, between ends of sentences or lines.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from mlx_companion.personality.lexicon import is_word
from mlx_companion.slm.guard_text import NOT_OWN, Draft, Finding, GuardRules

ASTERISK_ACTION = "asterisk_action"
_MARKED = re.compile(
    r"(?<![\w*\\])(\*{1,3})(?![\s*])([^*\n]{1,400})(?<![\s\\])\1(?![\w*])"
    r"|(?<![\w\\])(_{1,2})(?![\s_])([^_\n]{1,400})(?<!\s)\3(?!\w)"
    r"|(?<![\w~])(~)(?![\s~])([^~\n]{1,80})(?<!\s)~(?![\w~])"
    r"|(?<![\w*\\])(\* )(?=[a-z])([^*\n]{3,60}) \*(?![\w*])"
    r"|(?<![\w\]])([(\[])([^()\[\]\n]{2,60})[)\]](?!\()"
)
_WORD = re.compile(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*")
_CLOSES = '.!?,;:\u2026\u2014\u2013"\u201d)]*~-'
_SUBJECTS = frozenset(["i", "he", "she", "they", "we", "it", "and", "then", "also", "just"])
_SMALL = frozenset(
    ["a", "an", "and", "as", "at", "but", "by", "for", "from", "in", "of", "on", "or", "the", "to"]
)
_HEARD = (
    "hm hmm hmmm well oh ah um okay yes no ok aw so hey look right sure now yeah ooh mm ha haha"
)
_INTERJECTIONS = frozenset(_HEARD.split())
_ABOUT_WORDS = re.compile(
    r"\b(?:verbs?|nouns?|tense|grammar|syllables?|rhymes?|spelled|synonyms?|adverbs?|asterisks?|"
    r"emphasis|italics?|translates?|pronounced|conjugat\w+|markdown)\b",
    re.IGNORECASE,
)
_AFTER_VERB = """
    a an the my your his her their our its up down over back forward forwards backward away out
    off around about at into in on onto to toward towards with through from for by some another
    closer nearer tea water glasses head hat tail ears hands arms one both two along beside
    dramatically and against across behind under closer near high low still fist fingers knuckles
    chair desk book notes page cards paws wings you me him them us
"""
_OBJECTS = frozenset(_AFTER_VERB.split())


@dataclass(frozen=True)
class _Place:
    """Where a marked piece stands: does a sentence or line end before it, and after it?"""

    before: bool
    after: bool
    alone: bool
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
    return found


def _pieces(draft: Draft) -> Iterator[tuple[int, int, str, str]]:
    at, text = 0, draft.text
    if not any(mark in text for mark in "*_~(["):
        return
    while found := _MARKED.search(text, at):
        mark = next(found[index] for index in (1, 3, 5, 7, 9) if found[index])
        content = next(found[index] for index in (2, 4, 6, 8, 10) if found[index])
        blocked = draft.markup.touches(found.start(), found.start() + 1, NOT_OWN)
        if not blocked and content[0] not in ".,;":
            yield found.start(), found.end(), mark, content
        # A star that opens nothing may be the end of nothing, too: go on right after it, so that
        # an odd star in front does not turn the following pairs inside out.
        skip = found.end() if content[0].isalpha() else found.start() + len(mark)
        at = max(skip, found.start() + 1)


def _is_action(
    draft: Draft, rules: GuardRules, start: int, end: int, mark: str, content: str
) -> bool:
    words = [word.lower() for word in _WORD.findall(content.replace("\u2019", "'"))]
    if not words or content.rstrip().endswith(":"):
        return False
    place = _place(draft, start, end)
    plain = " ".join(words)
    if plain in rules.pieces:
        return mark in "*_" and (place.before or place.after)
    if _is_title(content, words, rules) or _tells_of_words(draft, start, end, place, rules):
        return False
    head = _head(words)
    if not head:
        return False
    if "i" in words[: len(words) - len(head)] and head[0] + "s" in rules.forms["physical"]:
        return place.before and place.after and len(head) > 1
    if head[0] in rules.forms["expressive"]:
        return _expressive(rules, head, mark, place, len(words))
    if mark not in ("*", "**", "_", "***", "__") or not place.before:
        return False
    if words[0] in ("in", "with") and place.after and len(words) < 8:
        return words[-1] in _MANNERS or words[-1] in rules.actions["body"]
    narrated = words[0] in _ARTICLES and place.after and not any(map(str.isdigit, content))
    if narrated and any(_acts(rules, words, at) for at in range(2, min(5, len(words) - 1))):
        return True
    return _physical(rules, head, place, content) or _scene(rules, words, place, content)


def _acts(rules: GuardRules, words: list[str], at: int) -> bool:
    """ "*the innkeeper slams a tankard down*": a verb of the body with its complement."""
    forms = {**rules.forms["physical"], **rules.forms["expressive"]}
    moves = forms.get(words[at]) == "s" and words[at].endswith("s")
    return moves and (words[at + 1] in _OBJECTS or _is_adverb(words[at + 1]) or at + 2 < len(words))


def _place(draft: Draft, start: int, end: int) -> _Place:
    line_start, line_end = draft.line(start)
    left = draft.text[max(line_start, start - 200) : start]
    right = draft.text[end : min(line_end, end + 200)]
    bare = re.sub(r"^[\s>]*(?:[-*+\u2022]|\d{1,3}[.)])?\s*", "", left).rstrip()
    previous = (draft.words_before(start, 1) or [""])[-1]
    following = (draft.words_after(end, 1) or [""])[0]
    rest = right.strip()
    before = not bare or not bare[-1].isalnum() or previous in _INTERJECTIONS
    after = not rest or rest[0] in _CLOSES or not rest[0].isalnum() or rest[0].isupper()
    return _Place(before, after, not bare and not rest, previous, following)


def _is_title(content: str, words: list[str], rules: GuardRules) -> bool:
    big = [word for word in content.split() if word.strip("'\"").lower() not in _SMALL]
    capital = [word for word in big if word.lstrip("'\"(")[:1].isupper()]
    expressive = words[0] in rules.forms["expressive"] and words[0].endswith("s")
    return len(big) > 1 and len(capital) == len(big) and not (expressive and len(words) < 3)


def _tells_of_words(draft: Draft, start: int, end: int, place: _Place, rules: GuardRules) -> bool:
    # "the word *sighs*", "she *smiles* at him", "*smiles*: shows the teeth" are about something.
    inside = not place.before and place.previous in rules.actions["mentions"]
    first, last = draft.sentence(start)
    defined = draft.text[end : end + 3].lstrip()[:1] in (":", "=") and place.before
    about = _ABOUT_WORDS.search(draft.text, max(first, start - 200), min(last, end + 200))
    return inside or defined or about is not None


def _head(words: list[str]) -> list[str]:
    """`words` from the verb on: without a subject and adverbs before it."""
    at = 0
    while at < min(3, len(words) - 1) and (words[at] in _SUBJECTS or _is_adverb(words[at])):
        at += 1
    return words[at:]


def _is_adverb(word: str) -> bool:
    return len(word) > 4 and word.endswith("ly")


def _expressive(rules: GuardRules, head: list[str], mark: str, place: _Place, count: int) -> bool:
    form = rules.forms["expressive"][head[0]]
    if mark == "* ":
        return form == "s" and place.before and count < 8
    if mark in ("(", "["):
        return form in ("s", "ing") and count <= 4 and (place.before or place.after)
    if form in ("base", "ed", "ing") and not (place.before or place.after):
        return head[0] in ("cough", "ahem", "coughing")
    if form == "base" and count > 1 and not (place.before and place.after):
        return False
    if place.before and not place.after and count == 1:
        return place.following not in _NOUN_FOLLOWS
    opens = place.following in rules.actions["clause_openers"]
    return place.before or place.after or opens


_ARTICLES = frozenset(["the", "a", "an"])
_MANNERS = frozenset(["accent", "flourish", "nod", "shrug", "whisper", "bow", "frown", "twinkle"])
_NOUNLY = "are is was were can could may or of from have has tend mean"
_NOUN_FOLLOWS = frozenset(_NOUNLY.split())


def _physical(rules: GuardRules, head: list[str], place: _Place, content: str) -> bool:
    form = rules.forms["physical"].get(head[0]) or _verb_form(head[0])
    if form not in ("s", "ing") or any(character.isdigit() for character in content):
        return False
    known = head[0] in rules.forms["physical"]
    base = head[0].removesuffix("s")
    if base in rules.actions["captions"] or head[0] in rules.actions["captions"]:
        known = False
        if content[:1].isupper() or base != "write":
            return False
    complement = len(head) > 1 and (head[1] in _OBJECTS or _is_adverb(head[1]))
    if form == "ing":
        return known and place.after and (complement or place.alone)
    if known:
        return place.after or complement
    return len(head) > 1 and place.after and complement and content[:1].islower()


def _verb_form(word: str) -> str:
    """ "s" for what looks like a verb of the third person: its other forms are words, too."""
    if not word.endswith("s") or len(word) < 4:
        return ""
    for stem in {word[:-1], word[:-2], word[:-2].removesuffix("i") + "y"}:
        soft = stem.removesuffix("e")
        if is_word(stem) and is_word(soft + "ing") and is_word(soft + "ed"):
            return "s"
    return ""


def _scene(rules: GuardRules, words: list[str], place: _Place, content: str) -> bool:
    """Something of the scene does something: "*eyes sparkle*", "*The door creaks open*"."""
    if not place.after or len(words) < 2 or any(character.isdigit() for character in content):
        return False
    at = next((i for i, word in enumerate(words[:4]) if word in rules.actions["body"]), -1)
    if at < 0 or at + 1 >= len(words):
        return False
    verbs = {**rules.forms["physical"], **rules.forms["expressive"]}
    rest = words[at + 1 : at + 4]
    return any(word in verbs or _verb_form(word) for word in rest) and not _is_adverb(words[at])
