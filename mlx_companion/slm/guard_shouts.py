"""What one word in capitals is: a shout, an acronym, a label, the name of a key, an order.

`role_of` judges a word by itself and by what stands right beside it; `guard_capitals` then lets
neighbours settle what is still open::

    token = Token(8, 15, "amazing")
    role_of(draft, rules, token)         # "shout"
"""

from __future__ import annotations

import re

from mlx_companion.personality.lexicon import is_word
from mlx_companion.slm.guard_labels import (
    is_counted,
    named_here,
    said_here,
    set_here,
    stands_for_sign,
    steers,
    used_keyword,
)
from mlx_companion.slm.guard_spheres import in_sphere
from mlx_companion.slm.guard_stage import verb_form
from mlx_companion.slm.guard_text import Draft, GuardRules, begins_sentence
from mlx_companion.slm.guard_warnings import instructs
from mlx_companion.slm.guard_wordforms import (
    STRETCHED,
    TOKEN,
    Token,
    attached,
    coined,
    part_of_word,
    plain_word,
    stretched,
)
from mlx_companion.slm.guard_written import also_called, copied, entered, is_doer

_ROMAN = re.compile(r"M{0,3}(?:CM|CD|D?C{0,3})(?:XC|XL|L?X{0,3})(?:IX|IV|V?I{0,3})")
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
    if part_of_word(draft, token):
        return "none" if draft.holds_near(_STRESS, token.start - 150, token.end + 150) else "shout"
    if attached(draft, token) or word in lists["legal"] or _of_contract(draft, token):
        return "none"
    inscribed = said_here(draft, token.start) or stands_for_sign(draft, token.start, token.end)
    if inscribed or entered(draft, token.start, token.end) or copied(draft, token.start):
        token.fixed = True
        return "named"
    if STRETCHED.search(word):
        return "shout" if stretched(rules, word) else "none"
    if word in lists["interjections"] or word in lists["chat"]:
        mentioned = _defined(draft, token) or named_here(draft, token.start, token.end, word)
        return "none" if mentioned else "shout"
    if not is_word(word) and word not in lists["acronyms"]:
        return "shout" if coined(word) else ("person" if word in rules.first_names else "none")
    if _is_numbered(draft, rules, token):
        return "none"
    if _does_it(draft, token):
        return "shout"
    if _in_field(draft, rules, token):
        return "named"
    roman = _ROMAN.fullmatch(word.upper()) and word not in ("mix", "did")
    if roman or _heads_line(draft, rules, token):
        return "none"
    calm = word not in lists["gushing"]
    if _on_screen(draft, rules, token) or (calm and _is_name(draft, token)):
        return "named"
    return _word_role(draft, rules, token)


def _is_name(draft: Draft, token: Token) -> bool:
    if is_doer(draft, *_at(token)):
        return True
    return named_here(draft, *_at(token)) or set_here(draft, token.start, token.end)


# Stress is spoken of: "re-CORD is the verb".
_STRESS = re.compile(r"\b(?:syllables?|stress(?:es|ed)?|pronounc\w+|accent|noun|verb)\b")


_PARTICLES = frozenset(["up", "down", "out", "in", "on", "off", "back"])


# "Portland, OR"
_TOWN = re.compile(r"\b[A-Z][a-z]{2,}, $")
_STATES_OF_US = frozenset(["or", "me", "in", "ok", "hi", "oh", "pa", "la", "id", "ma", "al"])
_TOWNLESS = frozenset(["yes", "no", "well", "okay", "right", "sure", "so", "look", "now", "hey"])


def _in_field(draft: Draft, rules: GuardRules, token: Token) -> bool:
    lists, word = rules.capitals, token.word
    if also_called(draft, token.start, token.end):
        return True
    common = any(word in lists[kind] for kind in ("emphatic", "gushing", "unnamed"))
    before = (draft.words_before(token.start, 1) or [""])[-1]
    town = word in _STATES_OF_US and before not in _TOWNLESS
    if town and _TOWN.search(draft.own, max(0, token.start - 20), token.start):
        return True
    doubtful = common or word in _PARTICLES or before in _DOERS or _stressed(draft, token)
    return in_sphere(draft, rules, token.start, token.end, word, doubtful=doubtful)


_CONTRACT = re.compile(
    r"\b(?:WARRANT\w+|LIABLE|LIABILITY|MERCHANTABILITY|HEREBY|HEREIN|PROVIDED AS|DISCLAIM\w*|"
    r"INDEMNI\w+|AS[ -]IS)\b"
)


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
        return "shout" if asks or not instructs(draft, *_at(token)) else "emphatic"
    if word in lists["labels"]:
        stressed = word in lists["qualities"] and (_stressed(draft, token) or _told(draft, token))
        return "shout" if stressed else "label"
    return "shout"


def _at(token: Token) -> tuple[int, int, str]:
    return token.start, token.end, token.word


# "DAY 3", "PART II": what is counted is a label.
_NUMBERED = re.compile(r"\s(?:#?[A-Z]?\d+\b(?!\s?%)|[IVX]+\b(?!['\u2019]))(?! (?:times|more|of)\b)")


def _is_numbered(draft: Draft, rules: GuardRules, token: Token) -> bool:
    found = _NUMBERED.match(draft.text, token.end)
    if token.word in rules.capitals["emphatic"] or token.word in rules.capitals["gushing"]:
        return False
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


_TOLD = frozenset(["well", "and", "all", "have", "has", "you've", "i've", "we've", "get", "got"])


def _told(draft: Draft, token: Token) -> bool:
    """ "Well DONE", "And DONE.": a label that stands in a sentence."""
    before = [word.replace("\u2019", "'") for word in draft.words_before(token.start, 1)]
    return bool(_TOLD.intersection(before))


_DOERS = frozenset(["i", "he", "she", "we", "they"])
_OBJECTS = """
    the a an my your his her its our their this that it him them me us you down up out on in off
    over into to for at with every all some
"""
_DONE_TO = frozenset(_OBJECTS.split())
_WONDERS = frozenset(["guess", "know", "knows", "tell", "see", "wonder", "remember", "ask", "is"])


def _does_it(draft: Draft, token: Token) -> bool:
    """Tell whether it is the verb of its sentence: "he LEFT his keys"."""
    before = (draft.words_before(token.start, 1) or [""])[-1]
    following = (draft.words_after(token.end, 1) or [""])[0]
    return before in _DOERS and following in _DONE_TO


def _only_a_word(draft: Draft, rules: GuardRules, token: Token) -> bool:
    """Tell whether what could be an acronym is a shout after all."""
    before = (draft.words_before(token.start, 1) or [""])[-1]
    after = draft.text[token.end : token.end + 1]
    if token.word == "am":
        return before == "i"
    if f"{before} {token.word}" in rules.phrases:
        return True
    if token.word == "who" and (before in _WONDERS or _asks_who(draft, token)):
        return True
    if token.word == "us" and before == "of":
        return draft.words_before(token.start, 2)[0] in _SHARES
    if token.word in ("it", "in", "on", "me", "us", "who"):
        ends = bool(after) and after in "!"
        # "Guess who won. ME!" is all of its sentence.
        return ends and (before in rules.capitals["doing"] or begins_sentence(draft, token.start))
    if token.word not in rules.capitals["plain"]:
        return False
    ends = not after or after in ".!,?\u2026"
    whole = begins_sentence(draft, token.start) and ends
    # "I type FAST." says how; "they use SMART." and "part of FAST." name what.
    closes = ends and after != "," and before not in _LEADS and len(before) > 1
    return whole or closes or _stressed(draft, token)


def _asks_who(draft: Draft, token: Token) -> bool:
    following = draft.text[token.end : token.end + 20].lstrip()[:1]
    end = draft.sentence(token.start)[1]
    last = draft.text[max(token.start, end - 40) : end].rstrip()[-1:]
    return begins_sentence(draft, token.start) and following.islower() and last == "?"


_SHARES = frozenset(["both", "all", "two", "three", "most", "some", "any", "none", "one", "each"])
_LEAD_WORDS = """
    the a an in of on by via to with for called use uses used using from at and or as is are than
    like into onto under per no any join joined take takes took follow follows
"""
_LEADS = frozenset(_LEAD_WORDS.split())


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
    if token.word in rules.capitals["emphatic"] or token.word in _ADVERBS:
        near = {*before[-1:], *draft.words_after(token.end, 1)}
        return bool(near & _NAMING) or (token.word not in _ADVERBS and _stated(draft, token))
    ends = draft.text[token.end : token.end + 1] in (".", "!", "?", "\u2026")
    after = [] if ends else draft.words_after(token.end, 1)
    if draft.text[token.end : token.end + 1] == "!" and begins_sentence(draft, token.start):
        # "... level 40! ME!": what the sentence before ends with names nothing here.
        before = []
    never = token.word in rules.capitals["gushing"] or token.word in rules.capitals["unnamed"]
    if never or token.word.endswith(("ly", "'re", "'m", "'ve")):
        return False
    if before and before[-1] in _DEGREES:
        # "The test was HARD" is a shout, "the flag is HIGH" none.
        context = rules.capitals["stateful"]
        if not _can_be_state(rules, token.word):
            context -= _HARDWARE
    # "a build that WORKS", "the query took HOURS", "my code COMPILED": told of, and not named so.
    if before and (_tells(draft, token, before[-1]) or (len(before) > 1 and _parts(before[-1]))):
        before = []
    return any(word in context for word in (*after, *before)) or _stated(draft, token)


def _can_be_state(rules: GuardRules, word: str) -> bool:
    """Tell whether a field or a label knows the word: a switch is LOW, and not STUCK."""
    known = rules.capitals["labels"] | rules.capitals["keywords"] | _LIGHTS
    return word in known or any(word in words for _, words in rules.spheres)


_HARDWARE = frozenset(["gate", "switch", "button", "light", "indicator", "lock", "pin", "register"])
_LIGHTS = frozenset(["red", "green", "amber", "yellow", "blue", "white", "steady", "flashing"])
_WHEN = """
    once twice first last now then soon later early late today tomorrow tonight yesterday everywhere
    next
"""
_ADVERBS = frozenset(_WHEN.split())
_NAMING_WORDS = """
    press hit click key keys button operator operators keyword called named marked labelled labeled
    gate gates clause symbol function option mode command circuit
"""
_NAMING = frozenset(_NAMING_WORDS.split())
_PREDICATED = """
    test tests build builds code query file files server servers commit branch scan exam trial card
    bus type response text magazine environment script model form sign
"""
_PREDICATE_OF = frozenset(_PREDICATED.split())
_RELATIVE = frozenset(["that", "which", "who", "i", "you", "he", "she", "we", "they", "it"])


def _tells(draft: Draft, token: Token, previous: str) -> bool:
    """Tell whether the word is what the noun before it does: "the test PASSES"."""
    word = token.word
    verbal = bool(verb_form(word)) or (word.endswith("ed") and is_word(word[:-2] + "ing"))
    state = word in ("failed", "passed", "closed", "merged")
    own = draft.words_before(token.start, 2)[0] in ("my", "your", "our", "his", "her", "their", "i")
    return previous in _PREDICATE_OF and not state and (verbal or own)


def _parts(previous: str) -> bool:
    """Tell whether a word between a noun and capitals parts them: "a server that RESPONDS"."""
    return previous in _RELATIVE or previous in _TOOK


_TOOK = frozenset(
    ["took", "takes", "take", "got", "actually", "really", "finally", "just", "even", "only"]
)


_STATES = re.compile(r"\b(?:state machine|states?(?! of\b)|status|statuses|modes?|phases?)\b")


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
    if token.word in rules.capitals["emphatic"] or token.word in rules.capitals["gushing"]:
        return False
    window = max(0, token.start - 400), token.end + 400
    return draft.holds_near(_TECHNICAL, *window) or draft.markup.holds("code")
