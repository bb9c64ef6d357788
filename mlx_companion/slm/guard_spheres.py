"""Fields that write ordinary words in capitals: pins, SQL, forms, dials, boot loaders, ciphers.

"The line goes HIGH" and "black to NO" name a level and a contact, "it is HIGH time" shouts. Each
sphere of `rules.yaml` has cues, patterns that tell the field, and the words that it writes so::

    in_sphere(draft, rules, start, end, "no")      # True beside "relay" and COM

A word of every sentence (NOT, ALL, IS) needs more than a cue: another word of the sphere, or one
that is no English, in capitals as well.
"""

from __future__ import annotations

import re

from mlx_companion.personality.lexicon import is_word
from mlx_companion.slm.guard_text import Draft, GuardRules

_NEAR = 160
_CAPITALS = re.compile(r"(?<![^\W_])[A-Z]{2,}(?![^\W_])")
_EVERY = frozenset(["*"])
_STRUCTURAL_WORDS = "that this is so are was it you i the your my we they he she very really too"
_STRUCTURAL = frozenset(_STRUCTURAL_WORDS.split())


def in_sphere(
    draft: Draft, rules: GuardRules, start: int, end: int, word: str, *, doubtful: bool
) -> bool:
    """Tell whether the word at [start, end) belongs to a field that is spoken of near by.

    Args:
        draft: the reply.
        rules: the spheres.
        start, end: the span of the word.
        word: it in lower case.
        doubtful: the word is one of every sentence, or is said of something ("is FULL").
    """
    if draft.text[end : end + 1] == "!":
        return False
    near = max(0, start - _NEAR), end + _NEAR
    for cues, words in rules.spheres:
        if (word in words or words == _EVERY) and draft.holds_near(cues, *near):
            certain = word not in rules.capitals["gushing"] | rules.capitals["emphatic"]
            if (
                not doubtful
                or (words == _EVERY and certain)
                or (word not in _STRUCTURAL and _in_company(draft, rules, words, word, near))
            ):
                return True
    return False


def _in_company(
    draft: Draft, rules: GuardRules, words: frozenset[str], word: str, near: tuple[int, int]
) -> bool:
    """Tell whether other capitals stand near: words of the sphere, or what is no English."""
    gushing = rules.capitals["gushing"] - words
    for found in _CAPITALS.finditer(draft.own, *near):
        other = found.group().lower()
        if (
            other != word
            and other not in gushing
            and (other in words or words == _EVERY or not is_word(other))
        ):
            return True
    return False
