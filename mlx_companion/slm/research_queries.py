"""Queries made from templates: both answers to "does it need research?" in the same styles.

Collections of real queries tie the label to the style: assistant commands about the weather are
live, search questions about history are settled, and a head that learns the style fails on the
next collection. Here each style is laid over both labels alike::

    queries = generate_queries(per_template=12, seed=0)
    queries[0].text, queries[0].needs_research, queries[0].category

Templates and slots are in `data/research_templates.yaml`. Each query carries its template, so that
held-out folds never share one, and the date and cutoff that it is to be read against.
"""

from __future__ import annotations

import datetime
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from typing import Any

_CHOICE = re.compile(r"\(([^()]*\|[^()]*)\)")
_SLOT = re.compile(r"\{(\w+[+-]?)\}")
_SPACES = re.compile(r"\s+")
_SECTIONS = (("needs_research", True), ("answer_directly", False))
# Attempts at a template for each query wanted of it; a short one has few different fillings.
_ATTEMPTS = 4


@dataclass(frozen=True)
class Query:
    """A labelled query.

    Attributes:
        text: what a person would write.
        needs_research: the label.
        category: the template's, or empty.
        source: where it comes from.
        family: queries of one family are variants of each other.
        today, cutoff: what explicit years are read against; None for the defaults.
    """

    text: str
    needs_research: bool
    category: str = ""
    source: str = "generated"
    family: str = ""
    today: datetime.date | None = None
    cutoff: datetime.date | None = None


def generate_queries(per_template: int = 12, seed: int = 0) -> list[Query]:
    """Queries of all templates, none twice.

    Args:
        per_template: at most so many of each.
        seed: the same seed gives the same queries.
    """
    spec = _spec()
    seen: set[str] = set()
    found = []
    for section, label in _SECTIONS:
        for category, templates in spec[section].items():
            for at, template in enumerate(templates):
                family = f"{category}:{at}"
                # Of its own: a new template changes nothing about the others' queries.
                random_ = random.Random(f"{seed}:{template}")
                for text, today, cutoff in _fillings(template, spec, per_template, random_):
                    styled = _styled(text, spec["styles"], random_)
                    if (key := styled.lower()) not in seen:
                        seen.add(key)
                        found.append(
                            Query(styled, label, category, "generated", family, today, cutoff)
                        )
    return found


def _spec() -> dict[str, Any]:
    import yaml

    file = resources.files("mlx_companion.slm") / "data" / "research_templates.yaml"
    data: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return data


def _fillings(
    template: str, spec: dict[str, Any], count: int, random_: random.Random
) -> Iterator[tuple[str, datetime.date, datetime.date]]:
    texts: set[str] = set()
    for _ in range(count * _ATTEMPTS):
        if len(texts) == count:
            return
        today, cutoff = _dates(random_)
        text = fill(template, spec, today, cutoff, random_)
        if text not in texts:
            texts.add(text)
            yield text, today, cutoff


def fill(
    template: str,
    spec: dict[str, Any],
    today: datetime.date,
    cutoff: datetime.date,
    random_: random.Random,
) -> str:
    """A template with its choices made, innermost first, and its slots filled."""

    def slot(match: re.Match[str]) -> str:
        name = match[1]
        if name == "year+":
            return str(random_.randint(cutoff.year + 1, today.year + 1))
        if name == "year-":
            return str(random_.randint(max(1930, cutoff.year - 45), cutoff.year - 2))
        return str(random_.choice(spec["months"] if name == "month" else spec["slots"][name]))

    while (found := _CHOICE.search(template)) is not None:
        chosen = random_.choice(found[1].split("|"))
        template = template[: found.start()] + chosen + template[found.end() :]
    return _SPACES.sub(" ", _SLOT.sub(slot, template)).strip()


def _dates(random_: random.Random) -> tuple[datetime.date, datetime.date]:
    """A date and a cutoff: a year means what it means only beside them."""
    cutoff = datetime.date(random_.randint(2016, 2025), random_.randint(1, 12), 1)
    return cutoff + datetime.timedelta(days=random_.randint(120, 900)), cutoff


def _styled(text: str, styles: dict[str, Any], random_: random.Random) -> str:
    style = random_.choices(_STYLES, weights=[weight for weight, _ in _STYLES])[0][1]
    return style(text, styles, random_)


def _plain(text: str, styles: dict[str, Any], random_: random.Random) -> str:
    return text


def _written(text: str, styles: dict[str, Any], random_: random.Random) -> str:
    return f"{text[0].upper()}{text[1:]}{random_.choice('?.? ').strip()}"


def _asked(text: str, styles: dict[str, Any], random_: random.Random) -> str:
    return text + "?"


def _polite(text: str, styles: dict[str, Any], random_: random.Random) -> str:
    return random_.choice(styles["before"]) + text


def _with_ending(text: str, styles: dict[str, Any], random_: random.Random) -> str:
    return text + random_.choice(styles["after"])


def _told(text: str, styles: dict[str, Any], random_: random.Random) -> str:
    before, after = (
        random_.choice(styles["context_before"]),
        random_.choice(styles["context_after"]),
    )
    ends = random_.choice([(before, ""), ("", after), (before, after)])
    return ends[0] + _written(text, styles, random_) + ends[1]


def _following(text: str, styles: dict[str, Any], random_: random.Random) -> str:
    return random_.choice(styles["follow_up"]) + text


def _mistyped(text: str, styles: dict[str, Any], random_: random.Random) -> str:
    letters = list(text)
    for _ in range(1 + len(text) // 30):
        at = random_.randrange(len(letters))
        if not letters[at].isalpha():
            continue
        change = random_.randrange(3)
        if change == 0:
            letters[at] = ""
        elif change == 1:
            letters[at] *= 2
        elif at + 1 < len(letters):
            letters[at], letters[at + 1] = letters[at + 1], letters[at]
    return "".join(letters) or text


def _shouted(text: str, styles: dict[str, Any], random_: random.Random) -> str:
    return text.upper()


Style = Callable[[str, dict[str, Any], random.Random], str]
_STYLES: tuple[tuple[float, Style], ...] = (
    (0.34, _plain),
    (0.20, _written),
    (0.08, _asked),
    (0.12, _polite),
    (0.05, _with_ending),
    (0.09, _told),
    (0.05, _following),
    (0.06, _mistyped),
    (0.01, _shouted),
)
