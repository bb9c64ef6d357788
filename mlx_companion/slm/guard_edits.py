"""From a finding to an edit that leaves grammar intact: the smallest change that keeps the rule.

An action goes with its spaces, an exclamation becomes a full stop, capitals the word's ordinary
case, a topic's term its substitute with the right article, a name goes with its commas. `edit_for`
gives the careful edit, `blunt_edit` one that cannot fail to remove what was found.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from mlx_companion.personality.emoji import EMOJI
from mlx_companion.personality.lexicon import is_word
from mlx_companion.personality.markup import PROTECTED
from mlx_companion.slm.guard_actions import ASTERISK_ACTION
from mlx_companion.slm.guard_apart import distinct
from mlx_companion.slm.guard_capitals import CAPS_ENTHUSIASM
from mlx_companion.slm.guard_marks import EMOJI_OVERUSE, EXCLAMATION_OVERUSE
from mlx_companion.slm.guard_names import NAME_OVERUSE
from mlx_companion.slm.guard_text import Draft, Finding, begins_sentence

_VERBS = {"is": "are", "was": "were", "has": "have", "does": "do", "isn't": "aren't"}
_ARTICLE = re.compile(r"\b([Aa]n?)([ \t]+)$")
_DETERMINER = re.compile(r"\b(?:an?|the|my|your|his|her|our|their|this|that)[ \t]+$", re.IGNORECASE)
_VOWEL_SOUND = re.compile(r"(?!uni|use|eu|one\b|once)[aeiou]|hour|honest|heir", re.IGNORECASE)
_LIST_MARK = re.compile(r"[\s>]*(?:[-*+\u2022]|\d{1,3}[.)])?\s*")
_AROUND = 400


@dataclass(frozen=True)
class Edit:
    """Replace [start, end) by `after`.

    Attributes:
        start, end: the span.
        after: what stands there afterwards.
        violation: why.
        how: removed, replaced, lowered or softened.
    """

    start: int
    end: int
    after: str
    violation: str
    how: str


def edit_for(draft: Draft, finding: Finding) -> Edit:
    """The careful edit of a finding."""
    make = _EDITS.get(finding.violation, _replace_term)
    return make(draft, finding)


def blunt_edit(draft: Draft, finding: Finding) -> Edit:
    """An edit that takes away what was found, whatever that does to the sentence."""
    piece = draft.text[finding.start : finding.end]
    calm = finding.violation == CAPS_ENTHUSIASM
    after = piece.lower() if calm else ""
    how = "lowered" if calm else "removed"
    return Edit(finding.start, finding.end, after, finding.violation, how)


def _remove_action(draft: Draft, finding: Finding) -> Edit:
    return removal(draft, finding.start, finding.end, finding.violation)


def removal(draft: Draft, start: int, end: int, violation: str) -> Edit:
    """Take [start, end) out with the spaces and punctuation that only served it."""
    text = draft.text
    line_start, line_end = draft.line(start)
    # What is farther off changes nothing, and a line may be the whole text.
    line_start, line_end = max(line_start, start - _AROUND), min(line_end, end + _AROUND)
    left, right = text[line_start:start], text[end:line_end]
    if _LIST_MARK.fullmatch(left[-40:]) and not right.strip(" \t.,;") and len(left) <= 40:
        return _remove_lines(draft, line_start, line_end, violation)
    if begins_sentence(draft, start):
        found = re.match(r"[ \t]*(?:[,;:.!](?![.\w]))*[ \t]*", right[:60])
        end += found.end() if found else 0
        first = text[end : end + 1]
        word = re.match(r"[a-z]+", text[end : end + 30])
        if first.islower() and word and is_word(word[0]) and draft.free(end, end + 1):
            return Edit(start, end + 1, first.upper(), violation, "removed")
        if end >= line_end:
            start -= len(left) - len(left.rstrip())
        return Edit(start, end, "", violation, "removed")
    return _remove_inside(draft, start, end, left, right, violation)


def _remove_inside(
    draft: Draft, start: int, end: int, left: str, right: str, violation: str
) -> Edit:
    following = right[:40].lstrip()
    space = len(right[:40]) - len(following)
    spaced = len(left) - len(left.rstrip(" \t"))
    after = ""
    doubled = _DOUBLED_MARK.match(following)
    if doubled and left.rstrip().endswith((",",) if doubled[0] == "," else ("...", "\u2026")):
        stop = end + space + doubled.end()
        gap = "" if _text_at(draft, stop).isspace() or stop == len(draft.text) else " "
        return Edit(start - spaced, stop, gap, violation, "removed")
    trails = following.startswith(("...", "\u2026"))
    if not following or (following[0] in ".,;:!?)\u201d\"'" and not trails):
        start -= spaced
        end += space if not following or spaced else 0
    elif spaced or space:
        start, end, after = start - spaced, end + space, " "
        word = re.match(r"[A-Z][a-z']*", following)
        left_word = left.rstrip()[-1:].isalnum()
        if word and left_word and is_word(word[0]) and word[0] not in ("I", "I'm", "I'll", "I've"):
            after = ". "
    return Edit(start, end, after, violation, "removed")


_DOUBLED_MARK = re.compile(r",|\.{3}|\u2026")


def _text_at(draft: Draft, position: int) -> str:
    """The character at `position`, or nothing at the end."""
    return draft.text[position : position + 1]


def _remove_lines(draft: Draft, start: int, end: int, violation: str) -> Edit:
    text = draft.text
    while end < len(text) and text[end] == "\n":
        end += 1
    if end == len(text):
        start -= len(text[:start]) - len(text[:start].rstrip("\n"))
    return Edit(start, end, "", violation, "removed")


def _lower(draft: Draft, finding: Finding) -> Edit:
    after = finding.detail["after"]
    return Edit(finding.start, finding.end, after, finding.violation, "lowered")


def _soften_mark(draft: Draft, finding: Finding) -> Edit:
    text, at = draft.text, finding.start
    before, after = text[at - 1 : at], text[at + 1 : at + 2]
    if before == "(" and after == ")":
        space = text[at - 2 : at - 1] == " "
        return Edit(at - 1 - space, at + 2, "", finding.violation, "removed")
    if (after and after in "?\uff1f") or (before and before in "!?.,;:\u2026\uff01\uff1f"):
        return Edit(at, at + 1, "", finding.violation, "removed")
    start = at
    while start and text[start - 1] in " \t":
        start -= 1
    rest = re.match(r"[!\"'\u201d\u2019)*_~]*[ \t]+([a-z]+)", text[at + 1 : at + 40])
    goes_on = rest is not None and is_word(rest[1])
    full = "\u3002" if text[at] == "\uff01" else "."
    return Edit(start, at + 1, "," if goes_on else full, finding.violation, "replaced")


_EMOJI_ROW = re.compile(rf"(?:[ \t]*{EMOJI.pattern})*")


def _remove_emoji(draft: Draft, finding: Finding) -> Edit:
    text, start = draft.text, finding.start
    # All emoji behind one that goes are over the limit as well.
    row = _EMOJI_ROW.match(text, finding.end)
    behind = row.end() if row else finding.end
    after = text[behind : behind + 1]
    if text[start - 1 : start] == " " and (not after.strip() or after in ".,;:!?)"):
        start -= 1
    elif text[finding.end : finding.end + 1] == " " and (not start or text[start - 1] in " \n"):
        return Edit(start, finding.end + 1, "", finding.violation, "removed")
    return Edit(start, finding.end, "", finding.violation, "removed")


def _replace_term(draft: Draft, finding: Finding) -> Edit:
    """A term of a topic, or a prohibited phrase: its substitute, or out with the sentence."""
    after = str(finding.detail.get("after", ""))
    if not after:
        return _leave_out(draft, finding)
    start, end, text = finding.start, finding.end, draft.text
    if "joined" in finding.detail:
        return Edit(finding.detail["joined"], end, "", finding.violation, "removed")
    doubled = _doubled(draft, finding, after)
    if doubled is not None:
        return doubled
    if text[start].isupper():
        after = after[0].upper() + after[1:]
    left = text[max(0, start - 20) : start]
    if after.lower().startswith("the ") and _DETERMINER.search(left):
        after = after[4:]
    article = _ARTICLE.search(left)
    if finding.detail.get("nth", 1) > 1:
        return _another(finding, article, after, _DETERMINER.search(left) is not None)
    if article:
        right_form = "an" if _VOWEL_SOUND.match(after) else "a"
        right_form = right_form.capitalize() if article[1][0].isupper() else right_form
        if right_form != article[1]:
            start -= len(article[0])
            after = f"{right_form}{article[2]}{after}"
    return Edit(start, end, after, finding.violation, "replaced")


def _another(finding: Finding, article: re.Match[str] | None, after: str, determined: bool) -> Edit:
    """ "another tea" in place of "a latte", where an espresso is tea already."""
    big = article[1][0].isupper() if article else after[0].isupper()
    said = distinct(
        after[0].lower() + after[1:],
        finding.detail["nth"],
        article=article is not None,
        determined=determined and article is None,
    )
    said = said[0].upper() + said[1:] if big else said
    start = finding.start - (len(article[0]) if article else 0)
    return Edit(start, finding.end, said, finding.violation, "replaced")


def _doubled(draft: Draft, finding: Finding, after: str) -> Edit | None:
    """ "tea or coffee" must not become "tea or tea"."""
    text, start, end = draft.text, finding.start, finding.end
    joint = r"(?:,? (?:or|and|and/or) |, )"
    left = re.search(rf"\b{re.escape(after)}{joint}$", text[max(0, start - 60) : start], re.I)
    if left:
        return Edit(start - len(left[0]) + len(after), end, "", finding.violation, "removed")
    right = re.match(rf"{joint}{re.escape(after)}\b", text[end : end + 60], re.IGNORECASE)
    if right:
        end += len(right[0])
        after = after.capitalize() if text[start].isupper() else after
        return Edit(start, end, after, finding.violation, "replaced")
    return None


def _leave_out(draft: Draft, finding: Finding) -> Edit:
    start, end = draft.sentence(finding.start)
    said = draft.text[start:end]
    phrase = finding.end - finding.start
    share = phrase / max(1, len(said.strip()))
    topic = finding.violation.endswith("_reference")
    if removable(draft, start, end) and (topic or share > 0.6):
        return removal_of_sentence(draft, start, end, finding.violation)
    if topic:
        return Edit(finding.start, finding.end, "something else", finding.violation, "replaced")
    return removal(draft, finding.start, finding.end, finding.violation)


def removable(draft: Draft, start: int, end: int) -> bool:
    """Tell whether a sentence may go: nothing is lost in it that must stay, and others remain."""
    said = draft.text[start:end]
    if draft.markup.touches(start, end, (*PROTECTED, "quote", "table")) or not said.strip():
        return False
    inner = re.sub(r"^\W*\w+", "", said)
    names = [w for w in re.findall(r"\b[A-Z][\w'\u2019-]*", inner) if not is_word(w)]
    text = draft.text
    before = any(text[at].isalpha() for at in range(start))
    others = before or any(text[at].isalpha() for at in range(end, len(text)))
    return others and not names and not any(character.isdigit() for character in said)


def removal_of_sentence(draft: Draft, start: int, end: int, violation: str) -> Edit:
    """Take a whole sentence out with the space on one side of it."""
    text = draft.text
    line_start, line_end = draft.line(start if text[start] != "\n" else start + 1)
    body = start + len(text[start:end]) - len(text[start:end].lstrip())
    left = text[line_start:body]
    if _LIST_MARK.fullmatch(left[-40:]) and not text[end:line_end].strip() and len(left) <= 40:
        return _remove_lines(draft, line_start, line_end, violation)
    while end < len(text) and text[end] in " \t" and not text[start:body]:
        end += 1
    if left.strip() == "":
        while end < line_end and text[end] in " \t":
            end += 1
        return Edit(body, end, "", violation, "removed")
    last = len(text[:end].rstrip())
    return Edit(start, max(start, last), "", violation, "removed")


def _drop_name(draft: Draft, finding: Finding) -> Edit:
    text, start, end = draft.text, finding.start, finding.end
    right = text[end : end + 40]
    left = text[max(0, start - 40) : start]
    owner = re.match(r"['\u2019]s\b", right)
    begins = begins_sentence(draft, start)
    if owner:
        your = "Your" if begins else "your"
        return Edit(start, end + owner.end(), your, finding.violation, "replaced")
    if begins and re.match(r"\s*[,!\u2014\u2013.]", right):
        found = re.match(r"\s*[,!\u2014\u2013.]", right)
        return removal(draft, start, end + (found.end() if found else 0), finding.violation)
    if left.endswith(", ") and re.match(r"\s*(?:[,.!?;:\u2014\u2013)\"\u201d]|\n|$)", right):
        stop = end + 1 if right.startswith(",") else end
        after = "," if right.startswith(",") else ""
        return Edit(start - 2, stop, after, finding.violation, "removed")
    if left.endswith(" ") and re.match(r"[,.!?;:]|\s*(?:\n|$)", right) and _greets(left):
        return Edit(start - 1, end, "", finding.violation, "removed")
    return _say_you(draft, finding, begins)


def _greets(left: str) -> bool:
    found = re.search(r"([A-Za-z]+) $", left)
    return found is not None and found[1].lower() in _GREETINGS


_GREETED = """
    hi hello hey thanks you morning evening afternoon night sorry well done yes no okay ok sure
    great welcome oh ah goodbye bye cheers back congratulations congrats bravo luck job work right
    absolutely so now and but
"""
_GREETINGS = frozenset(_GREETED.split())


def _say_you(draft: Draft, finding: Finding, begins: bool) -> Edit:
    text, start, end = draft.text, finding.start, finding.end
    you = "You" if begins else "you"
    verb = re.match(r" ([a-z]+(?:'t)?)\b", text[end : end + 30])
    said = _VERBS.get(verb[1]) if verb else None
    if verb and said:
        return Edit(start, end + verb.end(), f"{you} {said}", finding.violation, "replaced")
    return Edit(start, end, you, finding.violation, "replaced")


_EDITS: dict[str, Callable[[Draft, Finding], Edit]] = {
    ASTERISK_ACTION: _remove_action,
    CAPS_ENTHUSIASM: _lower,
    EXCLAMATION_OVERUSE: _soften_mark,
    EMOJI_OVERUSE: _remove_emoji,
    NAME_OVERUSE: _drop_name,
}
