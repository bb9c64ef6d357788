"""What was learned about a person's language, applied to a reply after it was written.

A prompt asks; this makes sure. The person's own words replace others ("film", not "movie"), slang
that the person uses may be used back, contractions follow the wanted formality, emoji go where they
are not wanted. Code, links, mathematics, quotations, numbers and names stay byte for byte, and
doing it twice changes nothing::

    learned = Learned(words={"movie": "film"}, formality=0.2, emoji=False)
    postprocess("It is a movie \U0001f3ac", learned).text      # "It's a film"
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mlx_companion.errors import ConfigError
from mlx_companion.personality.emoji import EMOJI
from mlx_companion.personality.markup import PROTECTED, QUOTED, Markup, scan

CASUAL, FORMAL = 0.35, 0.7
_SHORT_FORMS = {
    "do not": "don't",
    "does not": "doesn't",
    "did not": "didn't",
    "is not": "isn't",
    "are not": "aren't",
    "was not": "wasn't",
    "were not": "weren't",
    "have not": "haven't",
    "has not": "hasn't",
    "had not": "hadn't",
    "will not": "won't",
    "would not": "wouldn't",
    "should not": "shouldn't",
    "could not": "couldn't",
    "cannot": "can't",
    "i am": "I'm",
    "i will": "I'll",
    "i have": "I've",
    "you are": "you're",
    "you will": "you'll",
    "you have": "you've",
    "we are": "we're",
    "we will": "we'll",
    "they are": "they're",
    "they will": "they'll",
    "it is": "it's",
    "that is": "that's",
    "there is": "there's",
}
# "He's" may be "he has", "we'd" may be "we had": only what has one long form is written out.
_AMBIGUOUS = frozenset(["it's", "that's", "there's"])
_LONG_FORMS = {short.lower(): long for long, short in _SHORT_FORMS.items()}
# A contraction cannot end its clause ("Yes, it is.") or bear the stress of what was left out.
_GOES_ON = r"(?=[ \t]+[a-z])"


@dataclass(frozen=True)
class Learned:
    """What is known of how a person wants to be spoken to.

    Attributes:
        words: word or phrase to avoid -> the one that the person uses.
        slang: plain word -> the person's slang for it; used at most `slang_uses` times in a reply.
        slang_uses: see there.
        formality: 0 (casual: contractions) to 1 (formal: none); None leaves them as they are.
        emoji: False takes them out; None and True leave them.
        max_sentences: prose of more sentences is cut after so many; None for any number. A reply
            with code, lists or headings is never cut.

    Raises:
        ConfigError: a value out of its range, or an empty word.
    """

    words: Mapping[str, str] = field(default_factory=dict)
    slang: Mapping[str, str] = field(default_factory=dict)
    slang_uses: int = 1
    formality: float | None = None
    emoji: bool | None = None
    max_sentences: int | None = None

    def __post_init__(self) -> None:
        if self.formality is not None and not 0 <= self.formality <= 1:
            raise ConfigError(f"formality is {self.formality!r}; expected 0 to 1")
        if self.slang_uses < 0 or (self.max_sentences is not None and self.max_sentences < 1):
            raise ConfigError("slang_uses must be 0 or more, and max_sentences 1 or more")
        if not all(one.strip() for pairs in (self.words, self.slang) for one in pairs):
            raise ConfigError("a word to replace is empty; remove it")


@dataclass(frozen=True)
class Processed:
    """A reply after processing.

    Attributes:
        text: what is shown.
        changes: one entry per replacement: rule, before, after, in the order of rules.
    """

    text: str
    changes: tuple[dict[str, Any], ...] = ()


def postprocess(reply: str, learned: Learned) -> Processed:
    """Apply what was learned to a reply.

    Args:
        reply: as the model (and the guard) left it.
        learned: what is known.
    """
    changes: list[dict[str, Any]] = []
    text = reply
    if learned.max_sentences is not None:
        text = _cut(text, learned.max_sentences, changes)
    if learned.emoji is False:
        text = _replace(text, "emoji", _EMOJI_AND_SPACE, lambda found: "", changes)
    if learned.formality is not None and learned.formality <= CASUAL:
        text = _mapped(text, "formality", _SHORT_FORMS, changes, ending=_GOES_ON)
    elif learned.formality is not None and learned.formality >= FORMAL:
        long = {short: long for short, long in _LONG_FORMS.items() if short not in _AMBIGUOUS}
        text = _mapped(text, "formality", long, changes)
    text = _mapped(text, "words", _acyclic(learned.words), changes)
    used = sum(_times(text, term) for term in set(learned.slang.values()))
    left = max(0, learned.slang_uses - used)
    text = _mapped(text, "slang", _acyclic(learned.slang), changes, limit=left)
    return Processed(text, tuple(changes))


_EMOJI_AND_SPACE = re.compile(rf"(?:[ \t]*{EMOJI.pattern})+")


def _acyclic(pairs: Mapping[str, str]) -> dict[str, str]:
    """Without replacements that hold a word which is itself replaced: they would never settle."""
    avoided = [re.compile(rf"(?<!\w){re.escape(one)}(?!\w)", re.IGNORECASE) for one in pairs]
    return {
        one: said for one, said in pairs.items() if not any(bad.search(said) for bad in avoided)
    }


def _times(text: str, term: str) -> int:
    return len(re.findall(rf"(?<!\w){re.escape(term)}(?!\w)", text, re.IGNORECASE))


def _mapped(
    text: str,
    rule: str,
    pairs: Mapping[str, str],
    changes: list[dict[str, Any]],
    *,
    ending: str = "",
    limit: int | None = None,
) -> str:
    if not pairs or limit == 0:
        return text
    known = {" ".join(one.lower().split()): said for one, said in pairs.items()}
    bodies = sorted(known, key=lambda one: (-len(one), one))
    joined = "|".join(re.escape(one).replace("'", "['\u2019]") for one in bodies)
    pattern = re.compile(rf"(?<![\w@/.'\u2019-])(?:{joined})(?![\w@'\u2019/-]){ending}", re.I)

    def say(found: re.Match[str]) -> str:
        plain = found.group().lower().replace("\u2019", "'")
        return _cased(known.get(plain, found.group()), found.group())

    return _replace(text, rule, pattern, say, changes, limit)


def _cased(said: str, before: str) -> str:
    if before[0].isupper() and before[:2] != "I ":
        return said[:1].upper() + said[1:]
    if said[:2] in ("i ",):
        return "I" + said[1:]
    return said


def _replace(
    text: str,
    rule: str,
    pattern: re.Pattern[str],
    say: Callable[[re.Match[str]], str],
    changes: list[dict[str, Any]],
    limit: int | None = None,
) -> str:
    markup = scan(text)
    pieces, last, made = [], 0, 0
    for found in _allowed(text, markup, pattern):
        after = say(found)
        if after == found.group() or (limit is not None and made >= limit):
            continue
        made += 1
        changes.append({"rule": rule, "before": found.group(), "after": after})
        pieces += [text[last : found.start()], after]
        last = found.end()
    return "".join([*pieces, text[last:]])


def _allowed(text: str, markup: Markup, pattern: re.Pattern[str]) -> Iterable[re.Match[str]]:
    for found in pattern.finditer(text):
        if not markup.touches(*found.span(), (*PROTECTED, *QUOTED)) and not _is_name(text, found):
            yield found


def _is_name(text: str, found: re.Match[str]) -> bool:
    """A capital in the middle of a sentence makes a name, except "I"."""
    first = found.group()[0]
    if not first.isupper() or found.group()[:2] in ("I ", "I'", "I\u2019"):
        return False
    before = text[max(0, found.start() - 12) : found.start()].rstrip(" \t*_\"'(\u201c#>-")
    return bool(before) and before[-1] not in ".!?:\n\u2026"


_LAYOUT = re.compile(r"^\s*(?:[-*+#>|]|\d{1,3}[.)]\s|```)", re.MULTILINE)
_STOP = re.compile(r"[.!?]+[\"'\u201d)]*(?=\s+[A-Z\"'\u201c(])")


def _cut(text: str, most: int, changes: list[dict[str, Any]]) -> str:
    if _LAYOUT.search(text) or scan(text).holds("code"):
        return text
    stops = [
        found.end()
        for found in _STOP.finditer(text)
        if not re.search(
            r"\b(?:Dr|Mr|Mrs|Ms|Prof|St|e\.g|i\.e|vs|[A-Z])$", text[: found.start()][-5:]
        )
    ]
    if len(stops) < most:
        return text
    changes.append({"rule": "max_sentences", "before": text[stops[most - 1] :], "after": ""})
    return text[: stops[most - 1]]
