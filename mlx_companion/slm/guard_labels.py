"""Words in capitals that name something: what a sign says, a level of a log, a field of a form.

The word alone cannot tell: "it is HOT" shouts, "the knob goes from LOW to HIGH" does not. These
tests look at the sentence around it. `guard_shouts` asks them before it calls a word a shout::

    named_here(draft, start, end, "high")      # True in the second sentence
"""

from __future__ import annotations

import re

from mlx_companion.slm.guard_text import Draft

# What has states, values and words written on it.
_BEARERS = re.compile(
    r"\b(?:levels?|enums?|values?|constants?|options?|propert(?:y|ies)|columns?|knobs?|dials?|"
    r"switch(?:es)?|labels?|buttons?|forms?|fields?|margins?|signs?|stamps?|stickers?|screens?|"
    r"displays?|panels?|box(?:es)?|menus?|keywords?|states?|status(?:es)?|modes?|phases?|flags?|"
    r"settings?|banners?|posters?|doors?|placards?|arguments?|parameters?|types?)\b",
    re.IGNORECASE,
)
_BEARS = re.compile(
    r"(?:\b(?:says?|said|reads?|asks? for|asks|means|called|named|from|to|takes?|are|be|has|have|"
    r"stamped|printed|marked|labell?ed|values?|levels?|states?|modes?|colou?rs?|between|than|"
    r"[A-Z]{2,},? (?:and|or)|[A-Z]{2,},)|:|=)\s(?:(?:your|the|an?|its)\s)?$"
)
# Such words are values of nothing: "check the value BEFORE you use it".
_STRESSED_WORDS = """
    before after never always only must should not if then else either without don't do is are will
    can cannot may
"""
_STRESSED = frozenset(_STRESSED_WORDS.split())
_CALLS = re.compile(
    r"(?:\b(?:says?|said|reads?|called|named|stamped|printed|marked|labell?ed)|:|=)\s$"
)
_WRITTEN = re.compile(
    r"(?:\s[A-Z]+){0,5}\s(?:was|is|were|are|had been)\s(?:\w+ )?"
    r"(?:stamped|printed|written|painted|engraved|displayed)\b"
)
_MEANS = re.compile(r"\s(?:means|stands for|denotes|indicates)\b")
_LABEL_BEFORE = re.compile(
    r"\b(?:CAUTION|WARNING|DANGER|NOTICE|NOTE|ATTENTION|IMPORTANT|ALERT|REMINDER)\s?:(?:\s[A-Z]+)*\s$"
)
_COUNTED_WORDS = """
    part chapter book act day phase level type volume section title stage class war step unit
    lesson round episode season figure table appendix article grade group zone gate track scene
    verse exit box room aisle row seat floor lane stop bay dock pier exhibit annex runway code page
"""
_COUNTED = frozenset(_COUNTED_WORDS.split())
_NUMBER = re.compile(r"\s(?:ONE|TWO|THREE|FOUR|FIVE|SIX|SEVEN|EIGHT|NINE|TEN|[IVX]+)\b")
# What carries words and says them: "step 3 says MIX WELL", "the lid reads KEEP COLD".
SAYERS = (
    r"(?:signs?|labels?|lids?|steps?|recipes?|instructions?|manuals?|rules?|lines?|pages?|leaflets?|"
    r"notes?|cards?|letters?|notices?|tickets?|box|boxes|bottles?|jars?|bags?|tins?|packets?|"
    r"packag(?:e|es|ing)|stickers?|stamps?|banners?|posters?|doors?|screens?|displays?|panels?|"
    r"headlines?|subject|headers?|shirts?|mugs?|caps?|badges?|tags?|plates?|maps?|forms?|columns?|"
    r"fields?|buttons?|status|boards?|billboards?|wrappers?|covers?|cartons?|tubes?|clauses?)"
)
_SAID = re.compile(
    rf"\b{SAYERS}\b[^.!?;:\n]{{0,25}}\b(?:says?|said|reads?|warns?|shows?|states)"
    r"(?: (?:to|in \w+(?: \w+)?))?[,:]? [\"'\u201c]?(?:[A-Z'\u2019]+,? ){0,6}$",
    re.IGNORECASE,
)
_VALUE_OF = re.compile(r"\s*(?:[-*+\u2022]|\d{1,3}[.)])\s[^:!?.\n]{1,40}:\s(?:[A-Z]+ ){0,3}$")
_VALUE_ENDS = re.compile(r"(?: [A-Z]+){0,3}\s*(?:$|[\n(|,;])")
_IN_CAPITALS = re.compile(
    r"\b(?:themselves|itself|names?|titles?|written|writes?|spell(?:s|ed|t)|styled?s?|printed|set)\b"
    r"[^.!?\n]{0,40}\bin (?:all |full |block )?(?:capitals|caps|capital letters|upper ?case)\b"
)
_OF_MINE = re.compile(r"\b(?:I|I'm|I've|me|my|My)\b")
_WAY_WORDS = """
    left right up down on off in out forward forwards backward backwards clockwise anticlockwise
    counterclockwise north south east west
"""
_WAYS = frozenset(_WAY_WORDS.split())
_STEERS = re.compile(
    r"\b(?:[Tt]urn|[Rr]otate|[Tt]wist|[Ss]pin|[Ss]lide|[Pp]ush|[Pp]ull|[Ff]lip|[Ss]teer|[Bb]ear|"
    r"[Ss]crew|[Uu]nscrew|[Mm]ove|[Tt]ilt|[Dd]ial)\b"
)
# A key that is held, and what follows: "hold MODE until it blinks"; "push HARD" is none.
_HELD = re.compile(r"\b(?:[Hh]old(?: down)?|[Pp]ress(?: and hold)?)\s(?:the\s)?$")
_HELD_FOR = re.compile(r"\s(?:and|or|for|until|till|then|while|again|twice)\b|\s?[,.;]")
# Spelling is the matter: "two Ls in HELLO", "nine letters: could it be OBSTINATE?"
_LETTERS = re.compile(
    r"\b(?:letters|[A-Z]s|vowels?|consonants?|syllables?|anagrams?|crosswords?|palindromes?|rhymes?)\b"
)
_SPELT = re.compile(r"(?:\b(?:in|be|of|with|from|word|spells?|spelled|spelt|gives?|for)|:)\s$")
_BEFORE = 160
_USES = frozenset(["use", "using", "uses", "send", "sends", "via", "call", "an", "a"])


def named_here(draft: Draft, start: int, end: int, word: str) -> bool:
    """Tell whether the sentence makes the word at [start, end) the name of something.

    Args:
        draft: the reply.
        start, end: the span of the word.
        word: it in lower case.
    """
    first, last = draft.sentence(start)
    left = draft.own[max(first, start - 100) : start]
    right = draft.own[end : min(last, end + 60)]
    if right.lstrip().startswith("!"):
        return False
    bears = _CALLS if word in _STRESSED else _BEARS
    borne = bears.search(left) is not None and _BEARERS.search(left) is not None
    return (
        borne
        or _counted(left, right, word)
        or any(one is not None for one in (_WRITTEN.match(right), _MEANS.match(right)))
        or _LABEL_BEFORE.search(left) is not None
        or _spoken_of(draft, start, left, right, word)
    )


def _spoken_of(draft: Draft, start: int, left: str, right: str, word: str) -> bool:
    """A key that is held, or a word whose letters are the matter, also of the sentence before."""
    if _HELD.search(left):
        return word not in _WAYS and _HELD_FOR.match(right) is not None
    near = draft.own[max(0, start - _BEFORE) : start] + right
    return _SPELT.search(left) is not None and _LETTERS.search(near) is not None


def _counted(left: str, right: str, word: str) -> bool:
    """ "PART TWO", "CHAPTER IV": what is counted, and the number after it."""
    before = re.search(r"([A-Z]+) $", left)
    if before and before[1].lower() in _COUNTED and _NUMBER.match(f" {word.upper()}"):
        return True
    return word in _COUNTED and _NUMBER.match(right) is not None


def is_counted(word: str) -> bool:
    """Tell whether a word stands before numbers: "part", "chapter"."""
    return word in _COUNTED


def used_keyword(draft: Draft, start: int) -> bool:
    """Tell whether the word at `start` is something to be used: "use GET for reading"."""
    return (draft.words_before(start, 1) or [""])[-1] in _USES


def said_here(draft: Draft, start: int) -> bool:
    """Tell whether a thing says the word at `start`: "the lid reads KEEP COLD"."""
    left = draft.own[max(draft.sentence(start)[0], start - 100) : start]
    found = _SAID.search(left)
    # The pattern takes any case for the thing; what it says is in capitals all the way.
    return found is not None and all(
        word.isupper() for word in re.findall(r"[^\W\d_]+", left[_said_end(found[0], left) :])
    )


# "The one after it, STOP, is the only octagon": another name of what was just spoken of.
_ONE_OF_THEM = re.compile(
    r"\b(?:[Tt]he|[Tt]his|[Tt]hat|[Aa]n?) (?:[\w-]+ ){1,5}?[\w-]+, (?:[A-Z]+ ){0,3}$"
)
_IS_ONE = re.compile(r"(?: [A-Z]+){0,3}, (?:is|are|was|were|has|means|comes|stands|hangs|tells)\b")
_SIGNS = re.compile(
    r"\b(?:signs?|labels?|stickers?|buttons?|keys?|lights?|lamps?|switch(?:es)?|settings?|banners?|"
    r"posters?|notices?|plates?|signals?|markings?|gears?|keywords?|commands?)\b",
    re.IGNORECASE,
)


def stands_for_sign(draft: Draft, start: int, end: int) -> bool:
    """Tell whether a word in apposition names a sign: "the next one, STOP, is red"."""
    first, last = draft.sentence(start)
    left = draft.own[max(first, start - 100) : start]
    if _IS_ONE.match(draft.own[end : min(last, end + 60)]) is None:
        return False
    return _ONE_OF_THEM.search(left) is not None and draft.holds_near(
        _SIGNS, start - _BEFORE, start
    )


_SAYS = re.compile(
    r"\b(?:says?|said|reads?|warns?|shows?|states)(?: (?:to|in [a-z]+(?: [a-z]+)?))?\b"
)


def _said_end(clause: str, left: str) -> int:
    last = [found.end() for found in _SAYS.finditer(clause)][-1:]
    return len(left) - len(clause) + (last[0] if last else 0)


def set_here(draft: Draft, start: int, end: int) -> bool:
    """Tell whether it is a value in a list, "- Attack: BITE (2d6)", or one of a remark on case."""
    first, last = draft.line(start)
    right = draft.own[end : min(last, end + 60)]
    if _VALUE_OF.fullmatch(draft.text[first:start][:100]) and _VALUE_ENDS.match(right):
        return True
    first, last = draft.sentence(start)
    near = draft.own[max(first, start - 150) : min(last, end + 150)]
    return _IN_CAPITALS.search(near) is not None and not _OF_MINE.search(near)


def steers(draft: Draft, start: int, word: str) -> bool:
    """Tell whether the word is a direction of an order: "turn it LEFT, then RIGHT"."""
    if word not in _WAYS:
        return False
    first, _ = draft.sentence(start)
    return _STEERS.search(draft.own, max(first, start - 120), start) is not None
