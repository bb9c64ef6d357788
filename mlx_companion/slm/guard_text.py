"""What the guard's detectors look at: a reply with its regions, sentences and word tables.

A `Draft` is scanned once and read by every detector; a `Finding` is one place that breaks a rule.
`GuardRules` holds the word lists of the pack's `rules.yaml`. Detectors are functions
`(draft, rules, settings) -> list[Finding]`, with spans [start, end) in the draft's text.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import yaml

from mlx_companion.errors import SLMError
from mlx_companion.personality.markup import PROTECTED, QUOTED, Markup, scan

# Where a rule about the companion's own voice does not look.
NOT_OWN = (*PROTECTED, *QUOTED)
_SENTENCE_END = re.compile(r"[.!?\u2026]++[\"'\u201d\u2019)\]*_]*+(?=\s|$)|\n+")
_NEAR_WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")


@dataclass(frozen=True)
class Finding:
    """One place that breaks a rule.

    Attributes:
        violation: the rule's name in results.
        start, end: its span in the text.
        detail: what an edit needs to know, such as a replacement.
    """

    violation: str
    start: int
    end: int
    detail: dict[str, Any] = field(default_factory=dict)


class Draft:
    """A reply under examination.

    Args:
        text: the reply.
        user_name: the person's name, where it is known.
        prompt: what the person said.
    """

    def __init__(self, text: str, user_name: str = "", prompt: str = "") -> None:
        self.text = text
        self.user_name = user_name
        self.prompt = prompt
        # Of words with a capital: whether they are names, once that was asked.
        self.named: dict[str, bool] = {}
        self._places: dict[re.Pattern[str], list[int]] = {}

    @cached_property
    def markup(self) -> Markup:
        """The regions of the text."""
        return scan(self.text)

    @cached_property
    def prose(self) -> str:
        """The text with what no edit may change blanked out; offsets stay."""
        return self.markup.prose()

    @cached_property
    def own(self) -> str:
        """The text with protected regions and the words of others blanked out; offsets stay."""
        return self.markup.prose(NOT_OWN)

    @cached_property
    def _sentence_ends(self) -> list[int]:
        ends = [found.end() for found in _SENTENCE_END.finditer(self.prose)]
        return [*ends, len(self.text)]

    def sentence(self, position: int) -> tuple[int, int]:
        """The span of the sentence or line that holds `position`, closing mark included."""
        at = bisect_right(self._sentence_ends, position)
        at = min(at, len(self._sentence_ends) - 1)
        start = self._sentence_ends[at - 1] if at else 0
        return start, self._sentence_ends[at]

    def sentences(self) -> list[tuple[int, int]]:
        """The spans of all sentences that hold more than spaces, in order."""
        starts = [0, *self._sentence_ends]
        return [
            (start, end)
            for start, end in zip(starts, self._sentence_ends, strict=False)
            if self.text[start:end].strip()
        ]

    def line(self, position: int) -> tuple[int, int]:
        """The span of the line that holds `position`, without its line break."""
        breaks = self._breaks
        at = bisect_left(breaks, position)
        start = breaks[at - 1] + 1 if at else 0
        return start, breaks[at] if at < len(breaks) else len(self.text)

    def ends_at(self, position: int) -> bool:
        """Tell whether nothing but space follows `position`."""
        return position >= len(self.text) - self._trailing

    def starts_at(self, position: int) -> bool:
        """Tell whether nothing but space stands before `position`."""
        return position <= self._leading

    @cached_property
    def _trailing(self) -> int:
        return len(self.text) - len(self.text.rstrip())

    @cached_property
    def _leading(self) -> int:
        return len(self.text) - len(self.text.lstrip())

    @cached_property
    def _breaks(self) -> list[int]:
        return [found.start() for found in re.finditer("\n", self.text)]

    def words_before(self, position: int, count: int = 2) -> list[str]:
        """Up to `count` words before `position` in its line, lower case, the nearest last."""
        window = self.text[max(self.line(position)[0], position - 40) : position]
        return [word.lower() for word in _NEAR_WORD.findall(window)[-count:]]

    def words_after(self, position: int, count: int = 2) -> list[str]:
        """Up to `count` words after `position` in its line, lower case, the nearest first."""
        window = self.text[position : min(self.line(position)[1], position + 40)]
        return [word.lower() for word in _NEAR_WORD.findall(window)[:count]]

    def holds_near(self, pattern: re.Pattern[str], start: int, end: int) -> bool:
        """Tell whether a match of `pattern` begins in [start, end).

        The text is searched once for each pattern, so asking at every word stays linear.
        """
        places = self._places.get(pattern)
        if places is None:
            places = [found.start() for found in pattern.finditer(self.text)]
            self._places[pattern] = places
        at = bisect_left(places, start)
        return at < len(places) and places[at] < end

    def free(self, start: int, end: int) -> bool:
        """Tell whether [start, end) is the companion's own prose."""
        return not self.markup.touches(start, end, NOT_OWN)


def begins_sentence(draft: Draft, position: int) -> bool:
    """Tell whether a sentence, line or list item begins at `position`."""
    start, _ = draft.line(position)
    left = draft.text[max(start, position - 100) : position].rstrip(" \t*_\"'\u201c\u2018([~")
    left = re.sub(r"^[\s>]*(?:[-*+\u2022]|\d{1,3}[.)]|#{1,6})?\s*", "", left[-80:])
    return not left or (left[-1] in ".!?\u2026:" and not left.endswith((":", "...", "\u2026")))


@dataclass(frozen=True)
class TopicRule:
    """A topic, ready for matching; see `rules.yaml`."""

    terms: dict[str, str]
    exceptions: tuple[str, ...] = ()
    weak: frozenset[str] = frozenset()
    company: frozenset[str] = frozenset()
    strangers: frozenset[str] = frozenset()
    doubtful: frozenset[str] = frozenset()
    proper: frozenset[str] = frozenset()
    products: frozenset[str] = frozenset()
    beside: frozenset[str] = frozenset()
    describing: frozenset[str] = frozenset()
    colours: frozenset[str] = frozenset()
    senses: Mapping[str, frozenset[str]] = field(default_factory=dict)


class GuardRules:
    """The word lists of a pack.

    Args:
        text: `rules.yaml`.

    Raises:
        SLMError: not YAML, or a list is missing.
    """

    def __init__(self, text: str) -> None:
        try:
            tree = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
            self.actions = {k: _words(v) for k, v in tree["actions"].items()}
            self.pieces = frozenset(tree["actions"]["pieces"])
            self.phrases = frozenset(tree["capitals"].pop("phrases"))
            self.capitals = {k: _words(v) for k, v in tree["capitals"].items()}
            self.names_with_mark = tuple(tree["exclamations"]["names"])
            self.first_names = _words(tree["names"]["first"])
            self.spheres = tuple(map(_sphere, tree["spheres"].values()))
            self.topics = {name: _topic(rule) for name, rule in tree["topics"].items()}
            self.forms = {
                kind: _all_forms(self.actions[kind]) for kind in ("expressive", "physical")
            }
        except (yaml.YAMLError, KeyError, TypeError, AttributeError, re.error) as error:
            raise SLMError(
                f"the guard's rules cannot be read ({error!r}); restore the pack"
            ) from error


def _words(value: str | list[str]) -> frozenset[str]:
    return frozenset(value.split() if isinstance(value, str) else value)


def _sphere(rule: Mapping[str, str]) -> tuple[re.Pattern[str], frozenset[str]]:
    cues = "|".join(rule["cues"].split())
    return re.compile(rf"\b(?:{cues})(?!\w)", re.IGNORECASE), _words(rule["words"])


def _topic(rule: Mapping[str, Any]) -> TopicRule:
    default = rule.get("substitute", "")
    return TopicRule(
        {term: default if said is None else said for term, said in rule["terms"].items()},
        tuple(rule.get("exceptions", ())),
        _words(rule.get("weak", "")),
        _words(rule.get("company", "")),
        _words(rule.get("strangers", "")),
        _words(rule.get("doubtful", "")),
        _words(rule.get("proper", "")),
        _words(rule.get("products", "")),
        _words(rule.get("beside", "")),
        _words(rule.get("describing", "")),
        _words(rule.get("colours", "")),
        {term: _words(words) for term, words in rule.get("senses", {}).items()},
    )


def third_person(verb: str) -> str:
    """The form of the third person singular: "wave" -> "waves", "cry" -> "cries"."""
    if verb.endswith(("s", "sh", "ch", "x", "z")):
        return verb + "es"
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return verb[:-1] + "ies"
    return verb + "s"


def _all_forms(verbs: frozenset[str]) -> dict[str, str]:
    """Inflected form -> "base", "s", "ing" or "ed"."""
    forms = dict.fromkeys(verbs, "base")
    forms |= {third: "s" for verb, third in (("do", "does"), ("go", "goes")) if verb in verbs}
    for verb in sorted(verbs):
        soft = verb[:-1] if verb.endswith("e") and not verb.endswith("ee") else verb
        short = len(verb) > 2 and verb[-1] in "bdgmnpt" and verb[-2] in "aeiou"
        double = verb + verb[-1] if short and verb[-3] not in "aeiou" else soft
        past = verb[:-1] + "ied" if verb.endswith("y") and verb[-2] not in "aeiou" else ""
        forms |= {third_person(verb): "s", soft + "ing": "ing", double + "ing": "ing"}
        forms |= {past or soft + "ed": "ed", double + "ed": "ed"}
    return forms
