"""What one word in capitals is: a shout, an acronym, a label, the name of a key, an order.

`role_of` judges a word by itself and by what stands right beside it; `guard_capitals` then lets
neighbours settle what is still open::

    token = Token(8, 15, "amazing")
    role_of(draft, rules, token)         # "shout"
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from mlx_companion.personality.lexicon import is_word
from mlx_companion.slm.guard_labels import (
    is_counted,
    named_here,
    said_here,
    set_here,
    steers,
    used_keyword,
)
from mlx_companion.slm.guard_text import Draft, GuardRules

_U = "A-Z\u00c0-\u00d6\u00d8-\u00de"
TOKEN = re.compile(
    rf"(?<![^\W_])(?<!\w['\u2019])(?:[{_U}]+(?:['\u2019][{_U}]+)+|[{_U}]{{2,}}|[AI])(?![^\W_])"
)
STRETCHED = re.compile(r"(.)\1{2,}")
_ROMAN = re.compile(r"M{0,3}(?:CM|CD|D?C{0,3})(?:XC|XL|L?X{0,3})(?:IX|IV|V?I{0,3})")
_ATTACHED_BEFORE = "_@#$\\/=%+<{~&^|"
_ATTACHED_AFTER = "_@#$\\/=%+({[<&^|~"
_EXCITED = """
    i you we my your so love yes wow best happy proud this that is are was it's i'm you're get ready
    guess listen
"""
_EXCITED_LINE = frozenset(_EXCITED.split())
_SQL = frozenset(
    ["select", "where", "join", "having", "group", "insert", "values", "delete", "create"]
)
_TECHNICAL = re.compile(
    r"\b(?:SQL|HTTP|API|REST|query|queries|database|boolean|operator|endpoint|keyboard|"
    r"shortcut|git|code|loop|commit|syntax|branch|script|compiler|constraints?|keywords?|RFC|schemas?)\b",
    re.IGNORECASE,
)
_DEFINES = re.compile(r"\b(?:stands for|acronym|abbreviat\w+|short for|mnemonic)\b", re.IGNORECASE)


@dataclass
class Token:
    """A word in capitals; role: shout, acronym, emphatic, label, single, named, person or none."""

    start: int
    end: int
    word: str
    role: str = ""
    titled: bool = False


def plain_word(word: str) -> str:
    """`word` in lower case, with a straight apostrophe."""
    return word.replace("\u2019", "'").lower()


def role_of(draft: Draft, rules: GuardRules, token: Token) -> str:
    """What the word at `token` is, judged without its neighbours.

    Args:
        draft: the reply.
        rules: acronyms, labels and the like.
        token: the word.
    """
    word, lists = token.word, rules.capitals
    if len(word) == 1:
        return "single"
    if _part_of_word(draft, token):
        return "shout"
    if _attached(draft, token) or word in lists["legal"] or _of_contract(draft, token):
        return "none"
    if said_here(draft, token.start):
        return "named"
    if STRETCHED.search(word):
        return "shout" if _stretched(rules, word) else "none"
    if word in lists["interjections"] or word in lists["chat"]:
        mentioned = _defined(draft, token) or named_here(draft, token.start, token.end, word)
        return "none" if mentioned else "shout"
    if not is_word(word) and word not in lists["acronyms"]:
        return "shout" if _coined(word) else ("person" if word in rules.first_names else "none")
    if _is_numbered(draft, token):
        return "none"
    roman = _ROMAN.fullmatch(word.upper()) and word not in ("mix", "did")
    if roman or _heads_line(draft, rules, token):
        return "none"
    calm = word not in lists["gushing"]
    if _on_screen(draft, rules, token) or (calm and _is_name(draft, token)):
        return "named"
    return _word_role(draft, rules, token)


def _is_name(draft: Draft, token: Token) -> bool:
    return named_here(draft, *_at(token)) or set_here(draft, token.start, token.end)


_CONTRACT = re.compile(r"\b(?:WARRANT\w+|LIABLE|LIABILITY|MERCHANTABILITY|HEREBY|HEREIN)\b")


def _of_contract(draft: Draft, token: Token) -> bool:
    return draft.holds_near(_CONTRACT, token.start - 300, token.end + 300)


def _word_role(draft: Draft, rules: GuardRules, token: Token) -> str:
    """The role of an ordinary word that nothing else names."""
    word, lists = token.word, rules.capitals
    defined = _defined(draft, token)
    if defined or (word in lists["acronyms"] and word not in lists["emphatic"]):
        return "shout" if not defined and _only_a_word(draft, rules, token) else "acronym"
    used = word not in lists["gushing"] and used_keyword(draft, token.start)
    if word in lists["keywords"] and (used or _in_keywords(draft, rules, token)):
        return "named"
    if steers(draft, token.start, word):
        return "emphatic"
    if word in lists["emphatic"]:
        asks = word in _ASKS and draft.text[token.end : token.end + 1] in ("?", "!")
        return "shout" if asks or not _instructs(draft, token) else "emphatic"
    if word in lists["labels"]:
        stressed = word in lists["qualities"] and _stressed(draft, token)
        return "shout" if stressed else "label"
    return "shout"


def _at(token: Token) -> tuple[int, int, str]:
    return token.start, token.end, token.word


# "DAY 3", "PART II": what is counted is a label.
_NUMBERED = re.compile(r"\s(?:#?\d+\b(?!\s?%)|[IVX]+\b(?!['\u2019]))(?! (?:times|more|of)\b)")


def _is_numbered(draft: Draft, token: Token) -> bool:
    found = _NUMBERED.match(draft.text, token.end)
    # "EVERYTHING I hoped for" is not the first of its kind.
    return found is not None and (found[0].strip() != "I" or is_counted(token.word))


_ASKS = frozenset(["what", "why", "how", "who", "when", "where"])


_DEGREE_WORDS = """
    so very really super most too more extremely truly quite such how that's it's was were be
    is are am i'm you're he's she's we're they're this's feels felt seems looks looked sounds
    sounded got gets getting becomes became been being stay stays what
"""
_DEGREES = frozenset(_DEGREE_WORDS.split())


def _stressed(draft: Draft, token: Token) -> bool:
    """Tell whether a degree or a form of "to be" comes right before: "that was FAST"."""
    before = draft.words_before(token.start, 2)
    last = before[-1].replace("\u2019", "'") if before else ""
    # "What a NICE surprise", "such a SMART move"
    exclaims = last in ("a", "an") and before[0] in ("what", "such", "quite")
    return last in _DEGREES or exclaims


_DOERS = frozenset(["i", "he", "she", "we", "they"])
_OBJECTS = """
    the a an my your his her its our their this that it him them me us you down up out on in off
    over into to for at with every all some
"""
_DONE_TO = frozenset(_OBJECTS.split())
_WONDERS = frozenset(["guess", "know", "knows", "tell", "see", "wonder", "remember", "ask", "is"])


def _only_a_word(draft: Draft, rules: GuardRules, token: Token) -> bool:
    """Tell whether what could be an acronym is a shout after all."""
    before = (draft.words_before(token.start, 1) or [""])[-1]
    after = draft.text[token.end : token.end + 1]
    if token.word == "am":
        return before == "i"
    if before in _DOERS and (draft.words_after(token.end, 1) or [""])[0] in _DONE_TO:
        return True
    if token.word == "who" and before in _WONDERS:
        return True
    if token.word in ("it", "in", "on", "me", "us", "who"):
        ends = bool(after) and after in "!"
        return ends and before in rules.capitals["doing"]
    if token.word not in rules.capitals["plain"]:
        return False
    whole = begins_sentence(draft, token.start) and (not after or after in ".!,?\u2026")
    return whole or _stressed(draft, token)


_HAZARDS = re.compile(
    r"\b(?:warning|caution|note|careful|beware|danger\w*|delet\w+|eras\w+|overwrit\w+|unplug\w*|"
    r"poison\w*|toxic|bleach|ammonia|acid|dos(?:e|age)s?|doctor|medic\w+|pregnan\w+|voltage|"
    r"electric\w*|flammable|irreversibl\w+|permanent\w*|password|backups?|passcode|scam\w*|"
    r"allerg\w+|tablets?|pills?|mg|fumes|explo\w+|mains|gas|root|production|data|"
    r"required|mandatory|warranty|safe|recommended|allowed|permitted|supported|refundable|legal|"
    r"covered|edible|drinkable|waterproof|advice|overdose|harm\w*|risks?|injur\w+|emergency|"
    r"deadline|expires?|submit|passport)\b",
    re.IGNORECASE,
)


def _instructs(draft: Draft, token: Token) -> bool:
    """Tell whether an emphatic word is part of an order, a warning or a formula of logic."""
    first, last = draft.sentence(token.start)
    near = max(first, token.start - 200), min(last, token.end + 200)
    if any(draft.holds_near(one, *near) for one in (_HAZARDS, _TECHNICAL, _LOGIC)):
        return True
    before = (draft.words_before(token.start, 1) or [""])[-1]
    following = (draft.words_after(token.end, 1) or [""])[0]
    if token.word == "not":
        return before in ("do", "must", "should", "shall", "may")
    if token.word in ("don't", "do"):
        return begins_sentence(draft, token.start) or following == "not"
    orders = token.word in ("never", "always", "only", "before", "after", "if", "without")
    return orders and begins_sentence(draft, token.start) and following not in _EXCITED_LINE


_LOGIC = re.compile(
    r"\b(?:AND|OR|XOR|NAND|NOR)\b[^\n]{0,40}\b(?:AND|OR|NOT|XOR|NAND|NOR)\b"
    r"|\b(?:gates?|search(?:es)?|filters?|truth|expressions?|conditions?|logic|circuits?)\b"
)


def _part_of_word(draft: Draft, token: Token) -> bool:
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


def _attached(draft: Draft, token: Token) -> bool:
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
    return bool(re.search(r"(?:NYSE|NASDAQ|LSE|TICKER):?\s*$", listed))


def _emphasis(text: str, at: int, step: int) -> bool:
    # `_SO_` is emphasis where the underscore has no letter on its other side.
    beyond = text[at + step] if 0 <= at + step < len(text) else " "
    return text[at] in "_~" and not beyond.isalnum()


def _shouted_part(text: str, hyphen: int, step: int) -> bool:
    near = text[hyphen + 1 : hyphen + 30] if step > 0 else text[max(0, hyphen - 30) : hyphen]
    parts = re.findall(r"[^\W_]+", near)
    part = (parts[0] if step > 0 else parts[-1]) if parts else ""
    return len(part) > 1 and part.isupper() and is_word(part)


def _stretched(rules: GuardRules, word: str) -> bool:
    if len(set(word)) == 1:
        return word[0] in "oah" and len(word) > 3
    once, twice = STRETCHED.sub(r"\1", word), STRETCHED.sub(r"\1\1", word)
    known = rules.capitals["interjections"]
    return any(is_word(one) or one in known for one in (once, twice)) or _mostly_vowel(word)


def _mostly_vowel(word: str) -> bool:
    return sum(letter in "aeiouh" for letter in word) * 2 > len(word) and len(word) > 4


_ENDINGS = ("ing", "tastic", "licious", "ously", "ingly", "tacular", "azing", "some", "ful", "edly")


def _coined(word: str) -> bool:
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


# "BEHOLD: a budget that balances" is no label.
_ANNOUNCING = frozenset(["behold", "twist", "surprise", "breaking", "presenting", "introducing"])


def _heads_line(draft: Draft, rules: GuardRules, token: Token) -> bool:
    """A label ("PROS: ...") or a line that is a heading without being marked as one."""
    start, end = draft.line(token.start)
    if token.start - start > 100:
        return False
    line = draft.text[start : min(end, start + 200)].strip()
    left = draft.text[start : token.start].strip(" \t*_#>-+\u2022.)[(0123456789")
    right = draft.text[token.end : min(end, token.end + 60)]
    label = re.match(r"(?:\s+[A-Z0-9]+){0,4}\s*[\])]?(?:\*{1,3}|_{1,2})?:", right)
    if label and (not left or left.isupper()):
        phrase = set(re.findall(r"[a-z']+", f"{left} {token.word} {label[0]}".lower()))
        announced = phrase & _ANNOUNCING and not phrase & {"change", "changes"}
        return not announced and not phrase & {*_EXCITED_LINE, *_ASKS}
    if len(line) > 80 or "!" in line or line.upper() != line:
        return False
    words = set(re.findall(r"[a-z']+", line.lower()))
    if words & (_EXCITED_LINE | rules.capitals["gushing"]) or line[-1] in ".?,":
        return False
    # What heads nothing is no heading, unless it closes the text as "THE END" does.
    return draft.text[end : end + 400].strip() != "" or words <= {"the", *rules.capitals["labels"]}


def _on_screen(draft: Draft, rules: GuardRules, token: Token) -> bool:
    context = rules.capitals["context"]
    before = draft.words_before(token.start, 3)
    if before[-1:] != ["as"]:
        before = before[-2:]
    ends = draft.text[token.end : token.end + 1] in (".", "!", "?", "\u2026")
    after = [] if ends else draft.words_after(token.end, 1)
    if token.word in rules.capitals["gushing"] or token.word.endswith(("ly", "'re", "'m", "'ve")):
        return False
    if before and before[-1] in _DEGREES:
        # "The test was HARD" is a shout, "the flag is HIGH" none.
        context = rules.capitals["stateful"]
    return any(word in context for word in (*after, *before)) or _stated(draft, token)


_STATES = re.compile(r"\b(?:state machine|states?|status|statuses|modes?|phases?)\b")


def _stated(draft: Draft, token: Token) -> bool:
    """ "The state machine goes from IDLE to RUNNING to DONE"."""
    first, last = draft.sentence(token.start)
    others = draft.own[token.end : min(last, token.end + 40)]
    said = draft.holds_near(_STATES, max(first, token.start - 80), token.start)
    return said and not others.lstrip().startswith("!")


def _defined(draft: Draft, token: Token) -> bool:
    text = draft.text
    bracketed = (
        text[token.start - 1 : token.start] == "(" and text[token.end : token.end + 1] == ")"
    )
    before = draft.text[max(0, token.start - 60) : token.start - 1]
    initials = "".join(word[0] for word in re.findall(r"[^\W\d_]+", before))[-len(token.word) :]
    if bracketed and initials.lower() == token.word:
        return True
    first, last = draft.sentence(token.start)
    near = (max(first, token.start - 200), min(last, token.end + 200))
    return draft.holds_near(_DEFINES, *near)


def _in_keywords(draft: Draft, rules: GuardRules, token: Token) -> bool:
    first, last = draft.sentence(token.start)
    near = draft.own[max(first, token.start - 200) : min(last, token.end + 200)]
    shouted = {plain_word(found.group()) for found in TOKEN.finditer(near)}
    keywords = shouted & rules.capitals["keywords"]
    if keywords & _SQL and len(keywords) > 1:
        return True
    window = max(0, token.start - 400), token.end + 400
    return draft.holds_near(_TECHNICAL, *window) or draft.markup.holds("code")


def begins_sentence(draft: Draft, position: int) -> bool:
    """Tell whether a sentence, line or list item begins at `position`."""
    start, _ = draft.line(position)
    left = draft.text[max(start, position - 100) : position].rstrip(" \t*_\"'\u201c\u2018([~")
    left = re.sub(r"^[\s>]*(?:[-*+\u2022]|\d{1,3}[.)]|#{1,6})?\s*", "", left[-80:])
    return not left or (left[-1] in ".!?\u2026:" and not left.endswith((":", "...", "\u2026")))
