"""How often a reply says the person's name.

With a name given, each use counts; a signature, somebody else who shares the first name, and a
word that only looks like the name ("Will you...") do not. Without one, a name is a capitalised word
that is no ordinary word and is spoken to: "Hi Sam,", "Well done, Sam!", "Sam, you...". It takes
two such places to call it overused, and an enumeration ("Paris, London and Rome") is none.
"""

from __future__ import annotations

import re
from collections import Counter

from mlx_companion.personality.lexicon import is_word
from mlx_companion.slm.guard_stage import verb_form
from mlx_companion.slm.guard_text import Draft, Finding, GuardRules, begins_sentence

NAME_OVERUSE = "name_overuse"
_NAME = r"[A-Z\u00c0-\u00de][a-z\u00df-\u00ff]+(?:[-'\u2019][A-Z]?[a-z]+)?"
_GREETING = (
    r"(?:[Hh]i|[Hh]ello|[Hh]ey|[Hh]iya|[Dd]ear|[Tt]hanks|[Tt]hank you|[Ss]orry|[Yy]es|[Nn]o|[Oo]kay"
    r"|[Oo][Kk]|[Ww]ell|[Ss]ure|[Gg]reat|[Ww]elcome|[Oo]h|[Aa]h|[Ll]isten|[Ll]ook|[Rr]ight|[Nn]ice"
    r"|[Cc]ongratulations|[Cc]ongrats|[Bb]ravo|[Gg]ood (?:morning|evening|afternoon|night|job|work"
    r"|question|luck)|[Ww]ell done|[Gg]oodbye|[Bb]ye|[Cc]heers|[Ww]elcome back|[Nn]ow|[Ss]o|[Aa]nd"
    r"|[Bb]ut|[Aa]lright|[Aa]bsolutely|[Oo]f course|[Hh]onestly|[Rr]emember|[Nn]ice work)"
)
_SPOKEN_TO = re.compile(
    rf"(?:^|(?<=[\s\"\u201c*_(])){_GREETING},?\s(?P<greeted>{_NAME})(?=[,.!?:;\u2014\u2013-]|\s*\n|$)"
    rf"|(?<=[\w)'\u2019\"\u201d%]),\s(?P<closing>{_NAME})(?=\s*[.!?;:\u2014\u2013]|\s*\n|\s*$)"
    rf"|(?<=[\w)'\u2019]),\s(?P<middle>{_NAME})(?=,)"
    rf"|(?:(?<=^)|(?<=[.!?\n*_]\s)|(?<=\n))(?P<opening>{_NAME})(?=[,!\u2014]\s|\s[\u2014\u2013]\s|!$)",
    re.MULTILINE,
)
_TITLED = re.compile(
    r"\b(?:Uncle|Aunt|Mr|Mrs|Ms|Dr|St|Saint|San|Lake|Mount|Big|King|Queen|Prince|Princess|Lady|Lord|"
    r"Sir|Captain|Pope|Little|Miss|Professor|President)\.?\s$"
)
_FIRST = re.compile(r"(?<![\w-])([A-Z][a-z]+) $")
_COMPANY = re.compile(r" & [A-Z]")
_BEGINNINGS = """
    i i'm i'd i'll you you're you've your it it's that that's this the let's let there here if
    when what how why we we're my don't just please remember keep take try think a an no yes is are
    do did can could would in on at for with
"""
_TALKS = frozenset(_BEGINNINGS.split())
_RELATED = """
    friend brother sister wife husband son daughter colleague boss dog cat partner mother father mom
    dad uncle aunt cousin neighbour neighbor teacher author manager
"""
_RELATIVES = frozenset(_RELATED.split())
_ARTICLES = frozenset(["a", "an", "the"])
# "the ivy", "each april": a name that is spoken to has no determiner.
_DETERMINED = frozenset([*_ARTICLES, "this", "that", "each", "every", "some", "any", "no"])
_MONTHS = frozenset(["april", "may", "june", "august", "january"])
_WHEN = """
    in on by until till since from of next last this every each early late mid before after during
    between
"""
_TIMES = frozenset(_WHEN.split())
_DAY = r"\d{1,2}(?:st|nd|rd|th)?"
_TOWNS_AND_LANDS = """
    paris florence sydney austin chelsea brooklyn victoria georgia savannah adelaide charlotte
    houston dallas phoenix jordan chad israel kenya india china asia madison lincoln jackson
    carolina virginia dakota montana verona siena vienna orlando santiago milan london kingston
    troy alexandria petra lima cairo devon chester preston bristol holland ireland geneva sofia
    valencia catalina regina boston denver memphis
"""
_PLACES = frozenset(_TOWNS_AND_LANDS.split())
_TOWARDS = frozenset(["in", "to", "from", "near", "around", "at", "through", "via", "of"])


def find_name_overuse(draft: Draft, rules: GuardRules, limit: int) -> list[Finding]:
    """The uses of the person's name over `limit`; the first ones are kept.

    Args:
        draft: the reply; its `user_name` may be empty.
        rules: first names.
        limit: how many are allowed.
    """
    name = draft.user_name.strip()
    places = _uses(draft, rules, name) if name else _guessed(draft, rules)
    found, uses = [], Counter[str]()
    for start, end in places:
        said = name or draft.text[start:end]
        uses[said] += 1
        if uses[said] > limit:
            found.append(Finding(NAME_OVERUSE, start, end))
    return found


def _uses(draft: Draft, rules: GuardRules, name: str) -> list[tuple[int, int]]:
    names = {name, name.split()[0]}
    names |= {one[:1].upper() + one[1:] for one in names}
    names |= {one.upper() for one in names if not is_word(one)}
    bodies = "|".join(re.escape(one) for one in sorted(names, key=len, reverse=True))
    word = is_word(name.split()[0])
    ordinary = word or name.split()[0].lower() in _WORDY_NAMES
    cases = re.NOFLAG if ordinary else re.IGNORECASE
    pattern = re.compile(rf"(?<![\w@.#/-])(?:{bodies})(?![\w@]|[-./]\w)", cases)
    spoken = {span for span in _vocatives(draft, rules)} if word else set()
    places = []
    for found in pattern.finditer(draft.own):
        span = found.span()
        ambiguous = word and span not in spoken and begins_sentence(draft, span[0])
        ambiguous = ambiguous or (ordinary and not word and _is_the_word(draft, span))
        other = _someone_else(draft, rules, span) or _something_else(draft, span, ordinary)
        if not ambiguous and not other and not _signs(draft, span):
            places.append(span)
    return places


def _is_the_word(draft: Draft, span: tuple[int, int]) -> bool:
    """ "Max speed is 40", "Pat it dry": a word opens the sentence, and a noun follows."""
    found = re.match(r" ([a-z]+)\b", draft.own[span[1] : span[1] + 20])
    if found is None or not begins_sentence(draft, span[0]):
        return False
    return found[1] in _NO_VERB or not (found[1] in _DOES or verb_form(found[1]))


_NO_VERB = frozenset(["it", "them", "this", "that", "the", "a", "an", "your", "my", "his", "her"])
_DOES_WORDS = """
    is was has had can could will would should must may might did does and or with from in on at to
    for said asked told went came made took got gave knew saw left kept wrote called wants needs
"""
_DOES = frozenset(_DOES_WORDS.split())


def _something_else(draft: Draft, span: tuple[int, int], ordinary: bool) -> bool:
    """ "1 April", "the Rose Garden", "trains to Florence": the month, the thing, the town."""
    name = draft.text[span[0] : span[1]].lower()
    before = (draft.words_before(span[0], 1) or [""])[-1].lower()
    beside = draft.own[max(0, span[0] - 8) : span[0]].lower().endswith(f"{before} ")
    if name in _MONTHS:
        left, right = draft.own[max(0, span[0] - 8) : span[0]], draft.own[span[1] : span[1] + 8]
        dated = re.search(rf"\b{_DAY}(?: of)? $", left) or re.match(
            rf" (?:{_DAY}|\d{{4}})\b", right
        )
        if dated or (beside and before in _TIMES):
            return True
    if name in _PLACES and beside and before in _TOWARDS:
        return True
    return ordinary and beside and before in _DETERMINED


def _someone_else(draft: Draft, rules: GuardRules, span: tuple[int, int]) -> bool:
    # "Sam Smith" is not Sam, unless that is the name; nor is "Uncle Sam".
    after = re.match(r"\s([A-Z][a-z]+)", draft.text[span[1] : span[1] + 30])
    before = _TITLED.search(draft.own, max(0, span[0] - 12), span[0])
    surname = after is not None and after[1].lower() not in _TALKS
    # "James Dean", "Ben & Jerry's"
    first = _FIRST.search(draft.own, max(0, span[0] - 20), span[0])
    called = first is not None and first[1].lower() in rules.first_names
    return surname or called or before is not None or _COMPANY.match(draft.own, span[1]) is not None


def _signs(draft: Draft, span: tuple[int, int]) -> bool:
    start, end = draft.line(span[0])
    if end - start > 200:
        return False
    alone = draft.text[start:end].strip(" *_,-\u2014.[]") == draft.text[span[0] : span[1]]
    return alone and draft.ends_at(end) and start > 0


def _vocatives(draft: Draft, rules: GuardRules) -> list[tuple[int, int]]:
    places = []
    for found in _SPOKEN_TO.finditer(draft.own):
        kind = str(found.lastgroup)
        if _is_spoken_to(draft, rules, kind, *found.span(kind)):
            places.append(found.span(kind))
    return places


def _is_spoken_to(draft: Draft, rules: GuardRules, kind: str, start: int, end: int) -> bool:
    text = draft.text
    if kind == "greeted":
        return True
    if kind == "opening":
        following = (draft.words_after(end, 1) or [""])[0]
        known = _can_be_name(rules, text[start:end])
        talks = following in _TALKS and (known or following not in _ARTICLES)
        return text[end] == "!" or talks or (known and text[end + 1 : end + 3].strip().islower())
    # "Paris, France." and "apples, Pears, ..." are enumerations: a capital stands before the comma.
    before = draft.text[max(0, start - 40) : start - 2]
    last = re.findall(r"[^\W_]+(?:['\u2019-][^\W_]+)*", before)
    listed = (
        bool(last)
        and last[-1][0].isupper()
        and not begins_sentence(draft, start - 2 - len(last[-1]))
    )
    if kind == "middle":
        after = (draft.words_after(end, 1) or [""])[0]
        known = _can_be_name(rules, text[start:end])
        related = bool(last) and last[-1].lower() in _RELATIVES
        talks = after in _TALKS and after not in _ARTICLES
        return not listed and not related and (talks or known)
    return not listed


def _guessed(draft: Draft, rules: GuardRules) -> list[tuple[int, int]]:
    spoken = [
        span
        for span in _vocatives(draft, rules)
        if not is_word(draft.text[span[0] : span[1]])
        or _can_be_name(rules, draft.text[span[0] : span[1]])
    ]
    counts = Counter(draft.text[start:end] for start, end in spoken)
    return [span for span in spoken if counts[draft.text[span[0] : span[1]]] > 1]


def _can_be_name(rules: GuardRules, word: str) -> bool:
    """Tell first names, those that are words as well (Grace, Mark, Will) included."""
    return word.lower() in rules.first_names or word.lower() in _WORDY_NAMES


_WORDY = """
    will mark grace hope faith joy may june april rose lily violet ruby pearl jack bill bob rob
    frank grant drew chase hunter mason cooper carter parker summer autumn dawn eve iris ivy jade
    amber olive daisy heather holly robin ray art pat sue drew miles max sky skye sunny rich dean
    dale cliff glen heath lance wade clay reed brook penny ginger sandy candy melody harmony charity
    destiny angel christian jordan victor norman earl duke carol gene guy josh nick pierce ward
"""
_WORDY_NAMES = frozenset(_WORDY.split())
