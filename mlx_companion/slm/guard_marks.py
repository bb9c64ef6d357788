"""Exclamation marks and emoji: which ones count, and which are over the limit.

A mark counts when it ends something that is said. `!=`, `![image]`, `!important`, `5! = 120`,
`sudo !!`, "Yahoo!" and the exclamations of people who are quoted do not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from mlx_companion.personality.emoji import EMOJI, is_sign
from mlx_companion.slm.guard_text import Draft, Finding, GuardRules

EXCLAMATION_OVERUSE = "exclamation_overuse"
EMOJI_OVERUSE = "emoji_overuse"
_MARKS = re.compile(r"[!\uff01\u2757\u2755\u203c\ufe57]")
_RUN = re.compile(r"[!?\uff01\uff1f\u203c\ufe57]+")
_ODD_TOKEN = re.compile(r"[@#$%^&+=~\\|<>]")
_FACTORIAL = re.compile(r"\s*(?:[=+\-*/^<>\u00d7\u00f7\u2248)\]]|(?:is|equals|means|ways|grows)\b)")
_CHESS = re.compile(
    r"(?<!\w)(?:[KQRBN][a-h1-8]?x?[a-h][1-8]|[a-h]x?[a-h]?[1-8]|O-O(?:-O)?)[+#]?[!?]?$"
)
# "A bang (!) at the end": the sign itself.
_SIGN_OF = frozenset(["bang", "mark", "marks", "sign", "symbol", "point", "operator", "character"])
# Of Rust, named without their arguments.
_MACRO = re.compile(
    r"(?<!\w)(?:e?println|eprint|vec|format|panic|assert(?:_eq|_ne)?|writeln|todo|unimplemented|"
    r"unreachable|dbg|include_str|macro_rules)$"
)
_ABOUT_MARK = frozenset(["the", "a", "operator", "symbol", "prefix", "an", "use", "using", "with"])


def exclamations(draft: Draft, rules: GuardRules) -> list[int]:
    """Positions of the exclamation marks that count, in order; that of a double mark twice.

    Args:
        draft: the reply.
        rules: names that end in the mark.
    """
    places = [found.start() for found in _MARKS.finditer(draft.own)]
    if not places:
        return []
    other = _named(draft, rules.names_with_mark) | _history(draft)
    counted = [at for at in places if at not in other and _counts(draft, at)]
    return [at for at in counted for _ in range(1 + (draft.text[at] == "\u203c"))]


def find_exclamations(draft: Draft, rules: GuardRules, limit: int) -> list[Finding]:
    """The exclamation marks over `limit`; the first ones are kept.

    A doubled mark keeps the limit of 1 only when it loses its second half.
    """
    over = dict.fromkeys(exclamations(draft, rules)[limit:])
    return [Finding(EXCLAMATION_OVERUSE, at, at + 1) for at in over]


def _named(draft: Draft, names: Iterable[str]) -> set[int]:
    places = set()
    for name in names:
        at = draft.text.find(name)
        while at >= 0:
            places |= {at + i for i, character in enumerate(name) if character == "!"}
            at = draft.text.find(name, at + len(name))
    return places


def _counts(draft: Draft, at: int) -> bool:
    text = draft.text
    if text[at] in "\u2757\u2755":
        return False
    before, after = text[at - 1 : at] if at else "", text[at + 1 : at + 2]
    if text[at] == "\uff01":
        return True
    if after in ("=", "[", "$") and after:
        return False
    if before == "(" and after == ")" and _SIGN_OF.intersection(draft.words_before(at - 1, 1)):
        return False
    if _MACRO.search(text, max(0, at - 16), at):
        return False
    if _CHESS.search(text, max(0, at - 10), at):
        return False
    if after and after in "!?\uff01":
        return True
    if after.isalnum() or (after in ("_", "-", "/", ":", "(") and after):
        joined = before.isalpha() and before.islower() and after.isupper()
        return bool(joined) or (after in "-(" and before.isalpha() and _ends_word(draft, at, after))
    if not before or before.isspace():
        return _set_apart(draft, at, after)
    return not (_is_factorial(text, at) or _is_command(text, at))


def _history(draft: Draft) -> set[int]:
    """Marks of `sudo !!` and of a bare `!!`, which are history expansion of a shell."""
    places = set()
    for found in _RUN.finditer(draft.own):
        start, end = found.span()
        before = draft.text[max(0, start - 6) : start]
        apart = before.rstrip() != before and end - start == 2
        goes_on = draft.text[end : end + 1] == " " and draft.text[end + 1 : end + 2].islower()
        if apart and (before.strip().endswith("sudo") or goes_on):
            places |= {start, start + 1}
    return places


def _ends_word(draft: Draft, at: int, after: str) -> bool:
    # `println!("x")` is a macro, "wow!(really)" a missing space.
    return after == "-" and draft.text[at + 2 : at + 3] in ("-", " ")


def _set_apart(draft: Draft, at: int, after: str) -> bool:
    if draft.words_before(at, 1) and draft.words_before(at, 1)[-1] in _ABOUT_MARK:
        return False
    following = draft.text[at + 1 : at + 3].strip()[:1]
    return bool(draft.text[max(0, at - 3) : at].strip()) and not following.islower()


def _is_factorial(text: str, at: int) -> bool:
    word = re.search(r"[\w)\]]{1,20}$", text[max(0, at - 20) : at])
    number = word is not None and (word[0].isdigit() or word[0] in ("n", "k", "m", "r", "x"))
    if word is None or not number:
        bracket = text[at - 1] in ")]" and _FACTORIAL.match(text, at + 1)
        return bool(bracket and text[at + 1 : at + 3].strip()[:1] in ("=", "/", "*"))
    goes_on = re.match(r" [a-z]", text[at + 1 : at + 3])
    return not word[0].isdigit() or bool(goes_on) or bool(_FACTORIAL.match(text, at + 1))


def _is_command(text: str, at: int) -> bool:
    token = re.search(r"\S{1,40}$", text[max(0, at - 40) : at])
    word = token[0] if token else ""
    if word.startswith(":") and 1 < len(word) < 6:
        return True
    following = text[at + 1 : at + 8].lstrip().lower()
    if following.startswith("macro"):
        return True
    # A password such as `P@ss#1!`: signs between letters. Emphasis around a word is none.
    core = word.strip("*_~()[]\"'\u201c\u201d#@$")
    return _ODD_TOKEN.search(core) is not None and any(letter.isalpha() for letter in core)


def find_emoji(draft: Draft, limit: int) -> list[Finding]:
    """The emoji over `limit`; the first ones are kept, signs such as check boxes do not count."""
    places = [
        found.span()
        for found in EMOJI.finditer(draft.text)
        if not is_sign(found.group()) and draft.free(*found.span())
    ]
    return [Finding(EMOJI_OVERUSE, start, end) for start, end in places[limit:]]
