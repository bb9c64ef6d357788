"""What a person says about themselves and how they want to be answered, as updates.

Only what is stated outright, in the present, by the person: "call me Max", "don't use emojis", "I
moved to Oslo". What is negated, quoted, supposed ("if I were vegetarian"), asked, said of another
or in a story gives nothing. Each update carries the words that say so, their place, a confidence
and the value before, which `undo` puts back::

    updates = find_updates("Call me Max, and please keep your answers short.")
    [(u.key, u.value) for u in updates]
    # [("person.name", "Max"), ("preference.reply_length", "short")]
    undo(updates[0])           # ContextUpdate("person.name", None, ..., previous="Max")

Keys are `person.*` for facts and `preference.*` for how to answer. The ways of saying things are in
`data/tracker_training/statements.yaml`.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from mlx_companion.slm.results import ContextUpdate
from mlx_companion.slm.tracker_texts import written

Value = Callable[[re.Match[str]], Any]


@dataclass(frozen=True)
class Statement:
    """One way of saying a thing.

    Attributes:
        key: what it is about; `*` is the thing that was named.
        pattern: the words.
        value: from the match; None when it is no such statement after all.
        sure: how far the words alone may be trusted.
    """

    key: str
    pattern: re.Pattern[str]
    value: Value
    sure: float


_NO_NAME_TEXT = """
    a an the not sure sorry tired happy sad back here there when if later tomorrow maybe crazy
    names out old young stupid lazy at in on by for and but so just very really what that this
    it your my his her their whatever anything something sometime today tonight again asap now
    whenever anytime soon please paranoid weird lucky spoiled naive cheap picky skeptical cynical
"""
_NO_NAME = frozenset(_NO_NAME_TEXT.split())
_TITLES = frozenset({"dr", "mr", "mrs", "ms", "prof", "professor", "sir"})


def _named(match: re.Match[str]) -> str | None:
    words = match["name"].strip(" '’-").split()
    # The pattern takes either case: of what follows a name, only capitals belong to it.
    titled = 1 + (words[:1] != [] and words[0].rstrip(".").lower() in _TITLES)
    while len(words) > titled and not words[-1][0].isupper():
        words.pop()
    name = " ".join(words)
    if not name or name.lower() in _NO_NAME or len(name) < 2:
        return None
    return name if name[0].isupper() else name.title()


def _thing(match: re.Match[str]) -> str | None:
    thing = re.sub(r"^(?:the|my|that|this|your)\s", "", match["thing"].strip(), flags=re.IGNORECASE)
    return thing.lower() if thing and thing.lower() not in ("it", "that", "this", "me") else None


def _place(match: re.Match[str]) -> str | None:
    place = match["place"].strip(" .,")
    return None if place.lower() in ("i", "monday", "a", "the") else place


def _degree(match: re.Match[str]) -> str:
    return ("less " if "less" in match.group().lower() else "more ") + match["thing"].lower()


_TAKES: dict[str, Value] = {
    "name": _named,
    "thing": _thing,
    "place": _place,
    "degree": _degree,
    "less": lambda match: f"less {match['thing'].lower()}",
    "none_of": lambda match: f"no {match['thing'].lower()}",
    "lower": lambda match: match["thing"].lower().replace("-", " "),
    "title": lambda match: match["thing"].title(),
    "number": lambda match: int(match["thing"]),
    "said": lambda match: match["thing"].strip(),
}


@functools.cache
def _statements() -> tuple[Statement, ...]:
    told = yaml.safe_load(written("statements"))
    return tuple(_statement(row, told["parts"]) for row in told["statements"])


def _statement(row: Mapping[str, Any], parts: Mapping[str, str]) -> Statement:
    pattern = row["pattern"]
    while (filled := _PART.sub(lambda part: parts[part[1]], pattern)) != pattern:
        pattern = filled
    flags = 0 if row.get("case") else re.IGNORECASE
    fixed = row.get("value")
    value: Value = _TAKES[row["take"]] if "take" in row else (lambda match: fixed)
    return Statement(row["key"], re.compile(pattern, flags), value, row["sure"])


# Named groups look alike, and are none.
_PART = re.compile(r"(?<!\?P)<(\w+)>")
_QUOTED = re.compile(
    r"\"[^\"\n]{1,300}\"|“[^”\n]{1,300}”|(?<!\w)[‘'][^'’\n]{3,300}[’'](?!\w)|`[^`\n]+`|^>.*$",
    re.MULTILINE,
)
_SUPPOSED = re.compile(
    r"\b(?:if|unless|suppose|supposing|imagine|pretend|what if|as though|as if|would you|wish|"
    r"hypothetically|let['’]?s say|in case|whether|when i was|used to|once i)\b",
    re.IGNORECASE,
)
_OTHERS = re.compile(
    r"\b(?:he|she|they|who|mom|dad|mum|boss|friend|wife|husband|brother|sister|teacher|character|"
    r"someone|somebody|people|everyone)\s(?:\w+\s)?"
    r"(?:said|says|told|asked|asks|wrote|writes|goes|was like|thinks|claims|wants)\b|"
    r"\b(?:write|tell|draft|compose|sing|translate|quote)\b.{0,40}\b(?:story|poem|letter|lyrics?|"
    r"novel|song|dialogue|sentence)\b|\btranslate\b|\blyrics\b",
    re.IGNORECASE,
)
_DENIED = re.compile(
    r"\b(?:not|never|don['’]?t|doesn['’]?t|didn['’]?t|isn['’]?t|ain['’]?t|no longer|stopped|"
    r"kidding|joking)"
    r"\W+(?:\w+\W+){0,3}$",
    re.IGNORECASE,
)
_POLITE = re.compile(r"\b(?:could|can|would|will) you\b", re.IGNORECASE)
_ASKED = re.compile(
    r"^\W*(?:do|does|did|am|is|are|should|why|what|how|where|who|when|have)\b", re.IGNORECASE
)
_HEDGED = re.compile(
    r"\b(?:maybe|perhaps|i think|kind of|kinda|sometimes|usually)\b", re.IGNORECASE
)
_TAKEN_BACK = re.compile(
    r"[\s,]*(?:is what|(?:he|she|they|my \w+) sa|would be|or not|lol jk|jk\b|not\b)"
)


def find_updates(
    text: str, known: Mapping[str, Any] | None = None, event_time: str | None = None
) -> list[ContextUpdate]:
    """What `text` states about the person and how to answer, in order of place.

    Args:
        text: one message of the person.
        known: what is known so far; what is said again gives no update.
        event_time: ISO 8601, when it was said.

    Returns:
        At most one update for each key: the last one said.
    """
    quoted = [match.span() for match in _QUOTED.finditer(text)]
    found: dict[str, ContextUpdate] = {}
    for statement in _statements():
        for match in statement.pattern.finditer(text):
            update = _update(statement, match, text, quoted, event_time)
            if update is None or (known or {}).get(update.key) == update.value:
                continue
            update = dataclasses.replace(update, previous=(known or {}).get(update.key))
            before = found.get(update.key)
            if before is None or before.span[0] < update.span[0]:
                found[update.key] = update
    return sorted(found.values(), key=lambda update: update.span)


def undo(update: ContextUpdate) -> ContextUpdate:
    """The update that takes `update` back."""
    return dataclasses.replace(update, value=update.previous, previous=update.value)


def _update(
    statement: Statement,
    match: re.Match[str],
    text: str,
    quoted: list[tuple[int, int]],
    event_time: str | None,
) -> ContextUpdate | None:
    start, end = match.span()
    value = statement.value(match)
    if value is None or any(first <= start < last for first, last in quoted):
        return None
    before = _clause_before(text, start)
    whole = _sentence(text, start, end)
    if _SUPPOSED.search(before) or _OTHERS.search(before) or _DENIED.search(before):
        return None
    if _TAKEN_BACK.match(text[end : end + 24]):
        return None
    polite = _POLITE.search(whole) is not None
    if (whole.endswith("?") or _ASKED.match(whole)) and not polite:
        return None
    key = _key(statement, match)
    if key.endswith("."):
        return None
    confidence = statement.sure - 0.2 * bool(_HEDGED.search(whole))
    return ContextUpdate(key, value, match.group().strip(), (start, end), confidence, event_time)


def _key(statement: Statement, match: re.Match[str]) -> str:
    if "*" not in statement.key:
        return statement.key
    groups = match.groupdict()
    thing = groups.get("rel") or _TAKES["thing"](match) or ""
    return statement.key.replace("*", re.sub(r"[^a-z0-9]+", "_", thing.lower()).strip("_"))


def _sentence(text: str, start: int, end: int) -> str:
    first = max(text.rfind(mark, 0, start) for mark in ".!?\n") + 1
    lasts = [at for at in (text.find(mark, max(end - 1, start)) for mark in ".!?\n") if at >= 0]
    return text[first : min(lasts) + 1 if lasts else len(text)].strip()


def _clause_before(text: str, start: int) -> str:
    first = max(text.rfind(mark, 0, start) for mark in ".!?\n;") + 1
    return text[first:start][-120:]
