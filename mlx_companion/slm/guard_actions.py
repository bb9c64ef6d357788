"""Asterisk actions: `*smiles*`, `(winks)`, and not emphasis, bold, lists, sums or `_grins_`.

What stands between the marks decides together with where it stands. "The function *returns* early"
is emphasis: the sentence goes through it. "*sighs* That is a long story." is an action: the
sentence does without it. So a verb of expression counts nearly everywhere, anything else that
reads like a stage direction (`guard_stage`) only in a place of its own, between ends of sentences
or lines.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from mlx_companion.slm.guard_directions import DirectionHead
from mlx_companion.slm.guard_marked import INTERJECTIONS, Piece, Place, pieces, words_of
from mlx_companion.slm.guard_stage import Stage
from mlx_companion.slm.guard_text import Draft, Finding, GuardRules

ASTERISK_ACTION = "asterisk_action"
# Opened and never closed, on a line of its own or at the end of one.
_UNCLOSED = re.compile(r"(?:(?<=\n)|(?<=[.!?,] )|\A)\*(?=[a-z])([^*\n]{3,60})(?=\n|\Z)")
_SMALL_WORDS = """
    a an and as at but by for from in into of off on or out over the to up with without
"""
_SMALL = frozenset(_SMALL_WORDS.split())
_ABOUT_WORDS = re.compile(
    r"\b(?:verbs?|nouns?|tense|grammar|syllables?|rhymes?|spelled|synonyms?|adverbs?|asterisks?|"
    r"emphasis|italics?|translates?|pronounced|conjugat\w+|markdown)\b",
    re.IGNORECASE,
)
_NAMED_AFTER = re.compile(
    r"(?:That|This|It)(?:['\u2019]s| is| was) (?:the|a) (?:name|word|title|label|term)\b"
)
# "You said *squints at notes* forty": after these a clear action may interrupt.
_LOOSE = "said say says is are was were be to of in at by with as from and or not really truly"
_LOOSE_MENTIONS = frozenset(_LOOSE.split())
_MENTIONED = 1.5
# "The cyclist *shrugs it off* in the book": what stands before does it.
_TOLD = 3.0
_OWNERS = frozenset(["the", "a", "an", "my", "your", "his", "her", "our", "their", "this", "that"])
# What no time and no thing of a moment does: "Give me a second *flips pages*".
_MOMENTS = frozenset(
    [
        "second",
        "sec",
        "moment",
        "minute",
        "bit",
        "while",
        "lot",
        "time",
        "day",
        "week",
        "way",
        "thing",
        "one",
    ]
)
_HANGS = re.compile(
    r" (?:in|on|at|of|to|from|with|by|for|into|about|over|under|near|behind|through)"
    r" (?:(?:the|a|an|my|your|his|her|our|their|this|that|most|all) )?(?:[\w-]+ )?"
    r"(?!then\b|and\b|or\b|but\b|it\b|also\b|he\b|she\b|which\b|who\b|that\b)[\w-]+$"
)
_FINITE = re.compile(
    r"\b(?:is|are|was|were|has|have|had|can|could|will|would|does|did|do|should|must|may|might|it's|"
    r"that's|there's|you're|I'm|we're|they're|[a-z]+(?:ed|[^su]s))\b"
)
# After these no verb of the third person can follow.
_UNFINISHED = frozenset(["is", "are", "was", "were", "be", "to", "at", "by", "of", "about"])
# "you *smiles*" is no sentence: the verb does not agree.
_DISAGREE = frozenset(["i", "you", "we", "they", "me", "him", "us", "them"])
_NOUNLY = "are is was were can could may or of from have has tend mean and"
_NOUN_FOLLOWS = frozenset(_NOUNLY.split())


# "*makes a dozen*" stands under a recipe.
_YIELDS = re.compile(
    r"(?:makes|serves|yields|takes) (?:about |up to |around )?(?:an? )?(?:half )?"
    r"(?:dozen|batch|loaf|hour|minutes?|four|six|eight|ten|twelve|two|large|small)\b"
)


def find_actions(
    draft: Draft, rules: GuardRules, head: DirectionHead | None = None
) -> list[Finding]:
    """Every stage direction between marks.

    Args:
        draft: the reply.
        rules: the verbs.
        head: judges what no rule settles; None for the rules alone.
    """
    found = []
    for piece in pieces(draft):
        stage = Stage(piece.words, piece.content, rules)
        if can_be_action(piece):
            ruled = ruled_action(piece, rules, stage)
            if _decided(piece, rules, stage, ruled, head) if head else ruled:
                found.append(Finding(ASTERISK_ACTION, piece.start, piece.end))
    return [*found, *_unclosed(draft, rules)]


def _decided(
    piece: Piece, rules: GuardRules, stage: Stage, ruled: bool, head: DirectionHead
) -> bool:
    """The rules settle what is clear, the head the rest."""
    if not ruled:
        if _YIELDS.match(stage.plain):
            return False
        surer = 0.0
        if tells_of_words(piece, rules):
            told = piece.place.previous in _LOOSE_MENTIONS and stage.small and len(stage.words) > 1
            if not told or _about_words(piece):
                return False
            surer = _MENTIONED
        elif not piece.place.before and not piece.place.after and _has_subject(piece, rules):
            surer = _TOLD
        return head.decides(piece, stage, ruled, surer)
    known = stage.head[0] in rules.forms["expressive"] or stage.touches_body()
    clear = known and stage.form == "s" and stage.small and piece.mark not in ("(", "[")
    clear = clear or stage.telegraphic() or bangs(piece, rules) or _subjectless(piece, stage)
    return clear or head.decides(piece, stage, ruled)


def can_be_action(piece: Piece) -> bool:
    """Tell whether a piece has words and is neither a label nor a footnote."""
    # "(*with a paying adult)" opens with the sign of a footnote.
    noted = piece.mark in ("(", "[") and not piece.content[0].isalpha()
    return bool(piece.words) and not noted and not piece.content.rstrip("*_ ").endswith(":")


def _unclosed(draft: Draft, rules: GuardRules) -> Iterator[Finding]:
    """ "*smiles and waves" with nothing to close it; lists that open with such stars are none."""
    found = [] if "*" not in draft.text else list(_UNCLOSED.finditer(draft.text))
    for one in found[:1] if len(found) == 1 else ():
        stage = Stage(words_of(one[1]), one[1], rules)
        verb = stage.words and stage.form == "s" and not stage.captions()
        clear = verb and (stage.complement() or stage.head[0] in rules.forms["expressive"])
        if clear and draft.free(one.start(), one.end()) and len(stage.words) < 9:
            yield Finding(ASTERISK_ACTION, one.start(), one.end())


def ruled_action(piece: Piece, rules: GuardRules, stage: Stage) -> bool:
    """What the rules say."""
    place, mark = piece.place, piece.mark
    if stage.plain in rules.pieces:
        return _set_piece(stage, mark, place)
    if is_title(piece, stage, rules):
        return False
    if tells_of_words(piece, rules):
        return _squints(piece, rules, stage)
    if bangs(piece, rules):
        return True
    if stage.head[0] in rules.forms["expressive"] and _expressive(rules, stage, piece):
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
    return _interrupts(piece, rules, stage)


def bangs(piece: Piece, rules: GuardRules) -> bool:
    """ "Lid on, *snap*, done.": a sound between two commas."""
    alone = len(piece.words) == 1 and piece.words[0] in rules.actions["bangs"]
    return (
        alone and piece.place.comma and piece.place.left.endswith((",", "\u2026", "...", "\u2014"))
    )


def _squints(piece: Piece, rules: GuardRules, stage: Stage) -> bool:
    """ "So the total is *squints* forty-one": no verb of the third person goes on after "is"."""
    place = piece.place
    acts = stage.head[0] in rules.forms["expressive"] or stage.telegraphic()
    joined = place.previous == "and" and stage.telegraphic()
    goes_on = not place.after and (place.previous in _UNFINISHED or joined)
    goes_on = goes_on and place.following not in _NOUN_FOLLOWS
    return acts and stage.form == "s" and stage.small and goes_on and not _about_words(piece)


def _set_piece(stage: Stage, mark: str, place: Place) -> bool:
    if mark in ("~", "* "):
        return False
    if place.before and place.after:
        return (stage.small or len(mark) < 2) and not (place.comma and not stage.small)
    return stage.small and len(stage.words) > 1 and (place.before or place.after)


def _aside(stage: Stage) -> bool:
    """In brackets only what cannot be a remark: "(clears throat)", "[leans forward]"."""
    moves = stage.form == "s" and stage.complement() and not stage.captions()
    return stage.small and len(stage.words) < 9 and (moves or stage.sound() or stage.perceived())


def _interrupts(piece: Piece, rules: GuardRules, stage: Stage) -> bool:
    """Within a sentence: "Well *scratches beard* it depends", "sir *points wildly* are late"."""
    place = piece.place
    if stage.form != "s" or not stage.small or stage.captions() or len(stage.words) < 2:
        return False
    if place.before:
        return stage.complement() or place.following in rules.actions["clause_openers"]
    if _has_subject(piece, rules) and not stage.telegraphic():
        return False
    adverb = len(stage.head) == 2 and stage.head[1].endswith("ly")
    if _subjectless(piece, stage):
        return True
    return (
        stage.touches_body() or (place.loose and stage.complement()) or (adverb and not place.after)
    )


def _has_subject(piece: Piece, rules: GuardRules) -> bool:
    """Tell whether what stands before could do what is told: "she", "the cat", "Anna"."""
    draft, place, start = piece.draft, piece.place, piece.start
    before = draft.words_before(start, 2)
    owned = len(before) > 1 and before[0] in _OWNERS
    if place.previous in _DISAGREE or place.previous in _MOMENTS:
        return False
    if before and place.previous not in rules.actions["subjects"] and _governed(draft, start):
        return False
    # "that" may end a sentence as its object.
    stops = place.previous in ("that", "this", "it")
    stops = stops and (place.after or place.following in INTERJECTIONS)
    name = draft.text[max(0, start - 60) : start].rstrip()[-len(place.previous) :][:1].isupper()
    return owned or name or (place.previous in rules.actions["subjects"] and not stops)


def _subjectless(piece: Piece, stage: Stage) -> bool:
    """Tell whether nothing before a verb of the third person can be what does it."""
    place = piece.place
    inside = not place.before and piece.mark[0] == "*" and not place.glued
    if not inside or stage.form != "s" or not stage.complement() or not stage.bare:
        return False
    if place.loose and not _has_subject(piece, stage.rules) and not stage.captions():
        return True
    return place.previous in _DISAGREE | _MOMENTS or _governed(piece.draft, piece.start)


def _governed(draft: Draft, start: int) -> bool:
    """Tell whether the noun before `start` hangs on a preposition, behind a verb of its own.

    "It was on the desk *pats pockets* and now": the desk does nothing here.
    """
    first = draft.sentence(start)[0]
    left = draft.own[max(first, start - 120) : start].rstrip()
    hangs = _HANGS.search(left)
    return hangs is not None and _FINITE.search(left, 0, hangs.start()) is not None


def is_title(piece: Piece, stage: Stage, rules: GuardRules) -> bool:
    """Tell whether the words of a piece are in capitals as those of a title are."""
    content, words = piece.content, piece.words
    big = [word for word in content.split() if word.strip("'\"").lower() not in _SMALL]
    capital = [word for word in big if word.lstrip("'\"(")[:1].isupper()]
    expressive = words[0] in rules.forms["expressive"] and words[0].endswith("s")
    bodily = len(words) < 4 and stage.rolls_eyes()
    short = bodily or (expressive and len(words) < 3)
    return len(big) > 1 and len(capital) == len(big) and not short


def tells_of_words(piece: Piece, rules: GuardRules) -> bool:
    """Tell whether the sentence is about the marked words themselves."""
    draft, end, place = piece.draft, piece.end, piece.place
    # "the word *sighs*", "she *smiles* at him", "*smiles*: shows the teeth" are about something.
    inside = not place.before and place.previous in rules.actions["mentions"]
    if inside and place.previous in ("that", "it", "this", "with", "to", "in", "on"):
        goes_on = {"and", "but", "so", "i", "it", *INTERJECTIONS}
        inside = not place.after and place.following not in goes_on
    defined = draft.text[end : end + 3].lstrip()[:1] in (":", "=") and place.before
    return inside or defined or _about_words(piece)


def _about_words(piece: Piece) -> bool:
    draft, start, end, place = piece.draft, piece.start, piece.end, piece.place
    if _NAMED_AFTER.match(place.right):
        return True
    first, last = draft.sentence(start)
    # "*nods* Waiting is the worst verb": a sentence of its own begins after the piece.
    apart = place.before and place.loose and piece.content[:1].islower()
    until = start if apart else min(last, end + 200)
    return _ABOUT_WORDS.search(draft.text, max(first, start - 200), until) is not None


def _owned(piece: Piece) -> bool:
    """ "My neighbour *waves* when ...": somebody's noun stands right before."""
    before = piece.draft.words_before(piece.start, 2)
    owned = len(before) > 1 and before[0] in _OWNERS and before[1] not in _MOMENTS
    return owned and not _governed(piece.draft, piece.start)


def _expressive(rules: GuardRules, stage: Stage, piece: Piece) -> bool:
    mark, place = piece.mark, piece.place
    head, count = stage.head, len(stage.words)
    form = rules.forms["expressive"][head[0]]
    first_person = "i" in stage.words[: count - len(head)]
    if mark == "* ":
        return form == "s" and place.before and count < 8
    if place.glued:
        return form == "s" and count < 6
    if mark in ("(", "["):
        told = place.following in ("is", "was", "are", "means")
        return form in ("s", "ing") and count <= 6 and (place.before or place.after) and not told
    whole = place.before and place.after
    if form == "s":
        done = not place.before and not place.after and _owned(piece) and not stage.telegraphic()
        return not done and _third_person(rules, stage, place)
    opens = place.before and place.following in rules.actions["clause_openers"]
    if form == "base":
        emote = stage.small or (len(mark) == 1 and not place.listed)
        single = count == 1 and (whole or opens)
        phrase = whole and stage.small and mark == "*" and not place.listed
        return (emote and (single or phrase)) or (first_person and whole)
    cough = head[0] in ("cough", "ahem", "coughing")
    return cough or (
        (whole or (opens and stage.small)) and (stage.small or stage.complement() or count == 1)
    )


def _third_person(rules: GuardRules, stage: Stage, place: Place) -> bool:
    if place.before and not place.after and len(stage.words) == 1:
        return place.following not in _NOUN_FOLLOWS
    opens = place.following in rules.actions["clause_openers"]
    return place.before or place.after or opens
