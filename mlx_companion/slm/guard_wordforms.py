"""Words in capitals by their form: where one begins and ends, what is part of it, what was coined.

`TOKEN` finds them; "SOOO" is stretched, "abso-LUTELY" a part, "AWESOMENESS" coined of a word, and
what hangs on a sign (`MAX_SIZE`, `$HOME`, `TR-808`) is attached and no word of prose::

    token = Token(8, 12, "sooo")
    stretched(rules, token.word)         # True
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from mlx_companion.personality.lexicon import is_word
from mlx_companion.slm.guard_text import Draft, GuardRules

_U = "A-Z\u00c0-\u00d6\u00d8-\u00de"
TOKEN = re.compile(
    rf"(?<![^\W_])(?<!\w['\u2019])(?:[{_U}]+(?:['\u2019][{_U}]+)+|[{_U}]{{2,}}|[AI])(?![^\W_])"
)
STRETCHED = re.compile(r"(.)\1{2,}")
_ATTACHED_BEFORE = "_@#$\\/=%+<{~&^|"
_ATTACHED_AFTER = "_@#$\\/=%+({[<&^|~"


@dataclass
class Token:
    """A word in capitals; role: shout, acronym, emphatic, label, single, named, person or none.

    `fixed`: it is named by what is done with it, and so is all that stands beside it.
    """

    start: int
    end: int
    word: str
    role: str = ""
    titled: bool = False
    fixed: bool = False


def plain_word(word: str) -> str:
    """`word` in lower case, with a straight apostrophe."""
    return word.replace("\u2019", "'").lower()


def part_of_word(draft: Draft, token: Token) -> bool:
    """ "abso-LUTELY", "un-BE-LIEVABLE": the pieces make one word."""
    text = draft.text
    if "-" not in (text[token.start - 1 : token.start], text[token.end : token.end + 1]):
        return False
    left = re.search(r"(?:[^\W\d_]+-)*$", text[max(0, token.start - 30) : token.start])
    right = re.match(r"(?:-[^\W\d_]+)*", text[token.end : token.end + 30])
    whole = (left[0] if left else "") + token.word.upper() + (right[0] if right else "")
    mixed = any(one.islower() for one in whole) or whole.count("-") > 1
    return mixed and len(whole) > 6 and (is_word(whole.replace("-", "")) or _tmesis(whole))


def _tmesis(whole: str) -> bool:
    """ "abso-freaking-LUTELY": a word with another one put into it."""
    first, *_, last = whole.split("-")
    return whole.count("-") == 2 and is_word(first + last)


def attached(draft: Draft, token: Token) -> bool:
    text = draft.text
    before, after = text[token.start - 1 : token.start], text[token.end : token.end + 1]
    if before and before in _ATTACHED_BEFORE and not _emphasis(text, token.start - 1, -1):
        return True
    if after and after in _ATTACHED_AFTER and not _emphasis(text, token.end, 1):
        return True
    if before in ("-", ":", ".", "\u2011") and text[token.start - 2 : token.start - 1].isalnum():
        return not (before == "-" and _shouted_part(text, token.start - 1, -1))
    if after in ("-", ":", ".", "\u2011") and text[token.end + 1 : token.end + 2].isalnum():
        return not (after == "-" and _shouted_part(text, token.end, 1))
    listed = text[max(0, token.start - 10) : token.start].upper()
    return bool(re.search(r"\b(?:NYSE|NASDAQ|LSE|TICKER):?\s*$", listed))


def _emphasis(text: str, at: int, step: int) -> bool:
    # `_SO_` is emphasis where the underscore has no letter on its other side.
    beyond = text[at + step] if 0 <= at + step < len(text) else " "
    return text[at] in "_~" and not beyond.isalnum()


def _shouted_part(text: str, hyphen: int, step: int) -> bool:
    near = text[hyphen + 1 : hyphen + 30] if step > 0 else text[max(0, hyphen - 30) : hyphen]
    parts = re.findall(r"[^\W_]+", near)
    part = (parts[0] if step > 0 else parts[-1]) if parts else ""
    return len(part) > 1 and part.isupper() and is_word(part)


def stretched(rules: GuardRules, word: str) -> bool:
    if len(set(word)) == 1:
        return word[0] in "oah" and len(word) > 3
    once, twice = STRETCHED.sub(r"\1", word), STRETCHED.sub(r"\1\1", word)
    known = rules.capitals["interjections"]
    return any(is_word(one) or one in known for one in (once, twice)) or _mostly_vowel(word)


def _mostly_vowel(word: str) -> bool:
    return sum(letter in "aeiouh" for letter in word) * 2 > len(word) and len(word) > 4


_ENDINGS = ("ing", "tastic", "licious", "ously", "ingly", "tacular", "azing", "some", "ful", "edly")


def coined(word: str) -> bool:
    if not word.isalpha() or len(word) < 6:
        return False
    return (len(word) > 7 and word.endswith(_ENDINGS)) or _derived(word)


_SUFFIXES = """
    ling lings hood s es ed d er r est ing ly ness less able ous ious ies ied ier iest ily ment ish
    y
"""
_DERIVED = tuple(sorted(_SUFFIXES.split(), key=len, reverse=True))


def _derived(word: str) -> bool:
    """Tell whether it is an ordinary word with an ending: "AWESOMENESS", "YUMMIEST"."""
    for ending in _DERIVED:
        stem = word.removesuffix(ending)
        if stem != word and len(stem) > 3 and any(map(is_word, (stem, stem + "e", stem + "y"))):
            return True
    return False
