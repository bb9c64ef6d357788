"""NOT, NEVER and their like where they do not shout: warnings of danger, orders, logic, standards.

"Do NOT mix bleach with vinegar" is a warning of safety, "you do NOT owe him that" is a shout. What
tells them apart is danger that is spoken of near by, and who is bidden to do what::

    instructs(draft, start, end, "not")         # True in the first sentence
"""

from __future__ import annotations

import re

from mlx_companion.slm.guard_text import Draft, begins_sentence

# Danger to life, wherever it is spoken of near by; and to goods, in the sentence itself.
_DEADLY = re.compile(
    r"\b(?:warning|caution|beware|danger\w*|poison\w*|toxic|bleach|ammonia|acids?|chlorine|lye|"
    r"overdos\w+|doses?|dosage|voltage|electri\w+|flammable|fumes|explo\w+|lethal|fatal|deadly|"
    r"burns?|scalds?|fires?|chok\w+|suffocat\w+|drown\w*|injur\w+|blind|shock|gas|mains|capacitors?|"
    r"allerg\w+|pregnan\w+|botulism|salmonella|venom\w*|rabies|infect\w+|bleed\w*|seizures?|"
    r"carbon monoxide|asbestos|mou?ld|solvents?|radiat\w+|pressure|emergency|911|112|999)\b",
    re.IGNORECASE,
)
_HAZARDS = re.compile(
    r"\b(?:careful|delet\w+|eras\w+|overwrit\w+|unplug\w*|doctor|medic\w+|tablets?|pills?|mg|"
    r"irreversibl\w+|permanent\w*|passwords?|backups?|passcode|scam\w*|root|production|warranty|"
    r"edible|drinkable|waterproof|harm\w*|eat|swallow|inhale|seed phrase|private key|wire money)\b",
    re.IGNORECASE,
)
_EXCEPTION = re.compile(r"\b(?:unless|except|excepting|barring|short of)\b")
_BIDS = re.compile(r"(?:^|[.!?:;,*\n(-] ?|\b(?:and|then|but|so|please) )[Dd]o $")
_MODALS = re.compile(r"\b(?:MUST|SHOULD|SHALL|MAY|REQUIRED|OPTIONAL)\b")
_MODAL_WORDS = frozenset(["must", "should", "may", "not"])
_SOCIAL_WORDS = """
    let tell text reply apologise apologize ask call email message answer argue explain worry feel
    forget say give skip miss listen compare read think buy sign agree accept pay thank wait rush go
    believe trust judge blame assume start quit write send post share skip promise settle be get
    underestimate overthink compare
"""
_SOCIAL = frozenset(_SOCIAL_WORDS.split())
_SUBJECTS = (["i"], ["you"], ["we"], ["they"], ["people"], ["who"])
_WARNING_WORDS = """
    not never don't do must always only cannot can't before after without no any all
"""
_WARNING = frozenset(_WARNING_WORDS.split())
_PROHIBITS = frozenset(["not", "never", "don't", "do", "must", "cannot"])
_FORBIDS = frozenset(["do", "must", "should", "shall", "may", "can", "could", "is", "are"])


def instructs(draft: Draft, start: int, end: int, word: str) -> bool:
    """Tell whether an emphatic word is part of a warning of danger or a formula of logic.

    Args:
        draft: the reply.
        start, end: the span of the word.
        word: it in lower case.
    """
    first, last = draft.sentence(start)
    near = max(first, start - 200), min(last, end + 200)
    if word in _OPERATORS and draft.holds_near(_LOGIC, *near):
        return True
    if word in _MODAL_WORDS and _speaks_rfc(draft, *near):
        return True
    if word not in _WARNING:
        return False
    before = draft.words_before(start, 2)
    deadly = draft.holds_near(_DEADLY, *near) and not _excepted(draft, before, end, near)
    if word in ("not", "do") and (before[-1:] or ["."])[0] not in _FORBIDS:
        return word == "do" and begins_sentence(draft, start)
    if deadly and (word != "not" or before[-1] != "is" or not before[0].startswith("it")):
        return True
    prohibits = word in _PROHIBITS and before[:1] not in _SUBJECTS
    if not prohibits:
        return False
    if _excepted(draft, before, end, near):
        return False
    if draft.holds_near(_HAZARDS, *near) or draft.holds_near(_DEADLY, start - 200, end + 200):
        return True
    following = (draft.words_after(end, 1) or [""])[0]
    bids = _BIDS.search(draft.own, max(0, start - 12), start) is not None
    return word == "not" and bids and following not in _SOCIAL


def _excepted(draft: Draft, before: list[str], end: int, near: tuple[int, int]) -> bool:
    """ "He CANNOT come in unless it is on fire": a right of somebody's, the danger an exception."""
    if before[-1:] not in (["he"], ["she"], ["they"], ["i"], ["we"]):
        return False
    exception = _EXCEPTION.search(draft.prose, end, near[1])
    return exception is not None and not draft.holds_near(_DEADLY, near[0], exception.start())


def _speaks_rfc(draft: Draft, start: int, end: int) -> bool:
    return len({found.group() for found in _MODALS.finditer(draft.own, start, end)}) > 1


_OPERATORS = frozenset(
    ["and", "or", "not", "if", "then", "else", "either", "any", "all", "is", "no"]
)
_LOGIC = re.compile(
    r"\b(?:AND|OR|XOR|NAND|NOR)\b[^\n]{0,40}\b(?:AND|OR|NOT|XOR|NAND|NOR)\b"
    r"|\b(?:gates?|search(?:es)?|filters?|truth|expressions?|conditions?|logic|circuits?)\b"
)
