"""Factors of a query: what in its words speaks for research, and what against.

Each factor is a handful of patterns with the words that explain it ("asks about the weather"); two
more come from explicit years, read against today's date and the model's cutoff. The factors are
the classifier's explanation, part of its features, and with the decision table its fallback::

    rules = load_rules(text)
    found = rules.read("who is the mayor of oslo", today, cutoff)     # Factors
    found.strengths                     # {"office_holder": 0.5}
    rules.decide(found)                 # Ruling(research=True, category="office_holder")

`data/research_classifier/rules.yaml` holds patterns and table.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mlx_companion.errors import SLMError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

_YEAR = re.compile(
    r"(?<![\d$.,])(1[5-9]\d\d|20\d\d)(?!\d|[.,]\d|s?\b ?(?:people|dollars|miles|km))"
)
_WORD = re.compile(r"\w+")
# Matches beyond the third change nothing.
_MOST_HITS = 3
AFTER_CUTOFF, NEAR_CUTOFF, SETTLED_YEAR = "after_cutoff", "near_cutoff", "settled_year"
_SAYS = {
    AFTER_CUTOFF: "names a time after the model's cutoff",
    NEAR_CUTOFF: "names a time close to the model's cutoff",
    SETTLED_YEAR: "names a year that is long past",
}
# Measures of form: they help the head and explain nothing.
_FORM = ("short", "long", "asks", "digits", "first_person")

# What a model may know, where nobody says what the one at hand does.
CUTOFF = "2023-12-31"


class Ruling(NamedTuple):
    """What the decision table says.

    Attributes:
        research: needs research.
        category: of the query.
        row: which row of the table decided; None when none did.
    """

    research: bool
    category: str
    row: int | None


@dataclass(frozen=True)
class Factors:
    """What fired in one query.

    Attributes:
        strengths: factor -> 1 - 0.5^(matches), 0.5 to 0.875.
        form: measures of form, 0 to 1, one for each of `_FORM`.
    """

    strengths: dict[str, float]
    form: tuple[float, ...] = field(repr=False, default=())


@dataclass(frozen=True)
class Factor:
    """One factor: its name, its patterns in one, its direction, its words, its category."""

    name: str
    pattern: re.Pattern[str]
    research: bool
    says: str
    category: str | None


@dataclass(frozen=True)
class TableRow:
    """A row of the decision table: all of `when` fired and none of `unless`."""

    when: frozenset[str]
    unless: frozenset[str]
    research: bool
    category: str


@dataclass(frozen=True)
class Rules:
    """Factors and decision table; made by `load_rules`."""

    factors: tuple[Factor, ...]
    table: tuple[TableRow, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Columns of `vector`."""
        return (*(f.name for f in self.factors), *_SAYS, *_FORM)

    def read(self, query: str, today: datetime.date, cutoff: datetime.date) -> Factors:
        """The factors of a query."""
        text = query.lower()
        strengths = {f.name: s for f in self.factors if (s := _strength(f.pattern, text))}
        if (dated := dated_factor(text, today, cutoff)) is not None:
            strengths[dated] = 1.0
        return Factors(strengths, _form(text))

    def vector(self, found: Factors) -> np.ndarray:
        """Features (F,) float32: strengths in the order of `names`, then form."""
        named = self.names[: len(self.names) - len(_FORM)]
        return np.array(
            [*(found.strengths.get(name, 0.0) for name in named), *found.form], dtype=np.float32
        )

    def pairs(self, found: Sequence[Factors]) -> csr_matrix:
        """Which two factors fired together: CSR (N, n (n - 1) / 2) of ones, n named factors."""
        from scipy.sparse import csr_matrix

        named = self.names[: len(self.names) - len(_FORM)]
        at = {name: i for i, name in enumerate(named)}
        fired = [sorted(at[name] for name in one.strengths) for one in found]
        columns = [
            [second * (second - 1) // 2 + first for first, second in combinations(row, 2)]
            for row in fired
        ]
        ends = np.cumsum([0, *map(len, columns)])
        flat = np.array([column for row in columns for column in row], dtype=np.int32)
        shape = (len(found), len(named) * (len(named) - 1) // 2)
        return csr_matrix((np.ones(len(flat), np.float32), flat, ends), shape=shape)

    def decide(self, found: Factors) -> Ruling:
        """What the table says; without a row that fits, no research."""
        fired = found.strengths.keys()
        for at, row in enumerate(self.table):
            if row.when <= fired and not row.unless & fired:
                return Ruling(row.research, row.category, at)
        return Ruling(False, "other", None)

    def category(self, found: Factors, research: bool) -> str:
        """The category that fits a decision made elsewhere: the table's, where it agrees."""
        fired = found.strengths.keys()
        for row in self.table:
            if row.research == research and row.when <= fired and not row.unless & fired:
                return row.category
        agreeing = [f for f in self.factors if f.research == research and f.name in fired]
        agreeing.sort(key=lambda f: -found.strengths[f.name])
        return next((f.category for f in agreeing if f.category), "other")

    def reasons(self, found: Factors, research: bool) -> tuple[list[str], list[str]]:
        """Words of the factors that speak for a decision, and of those that speak against it."""
        words: dict[bool, list[str]] = {True: [], False: []}
        for factor in self.factors:
            if factor.name in found.strengths:
                words[factor.research].append(factor.says)
        for name, says in _SAYS.items():
            if name in found.strengths:
                words[name != SETTLED_YEAR].insert(0, says)
        return words[research], words[not research]


def load_rules(text: str) -> Rules:
    """Rules of a YAML text.

    Raises:
        SLMError: not YAML, a key missing, a pattern that cannot be read, or a table that names a
            factor that does not exist.
    """
    import yaml

    try:
        data = yaml.safe_load(text)
        factors = tuple(_factor(name, entry) for name, entry in data["factors"].items())
        table = tuple(_row(entry) for entry in data["table"])
    except (yaml.YAMLError, KeyError, TypeError, AttributeError, re.error) as error:
        raise SLMError(f"the rules of the research classifier cannot be read: {error!r}") from error
    known = {factor.name for factor in factors} | _SAYS.keys()
    for row in table:
        if unknown := (row.when | row.unless) - known:
            raise SLMError(f"the decision table names '{min(unknown)}', which is no factor")
    return Rules(factors, table)


def dated_factor(text: str, today: datetime.date, cutoff: datetime.date) -> str | None:
    """How the latest year that a text names lies to the model's cutoff; None without a year."""
    years = [int(year) for year in _YEAR.findall(text)]
    years = [year for year in years if year <= today.year + 10]
    if not years:
        return None
    latest = max(years)
    if latest > cutoff.year or latest >= today.year:
        return AFTER_CUTOFF
    return NEAR_CUTOFF if latest == cutoff.year else SETTLED_YEAR


def _strength(pattern: re.Pattern[str], text: str) -> float:
    hits = 0
    for _ in pattern.finditer(text):
        hits += 1
        if hits == _MOST_HITS:
            break
    return 1 - 0.5**hits


def _form(text: str) -> tuple[float, ...]:
    words = _WORD.findall(text[:2000])
    first = words[0] if words else ""
    asks = first in {"who", "what", "when", "where", "which", "how", "why", "is", "are", "did"}
    own = sum(word in {"i", "me", "my", "we", "our"} for word in words)
    digits = sum(word.isdigit() for word in words)
    return (
        float(len(words) <= 3),
        min(len(words) / 60, 1.0),
        float(asks),
        min(digits / 4, 1.0),
        min(own / 3, 1.0),
    )


def _factor(name: str, entry: Mapping[str, Any]) -> Factor:
    pattern = re.compile(r"(?<!\w)(?:" + "|".join(_alternatives(entry["patterns"])) + ")")
    leads = {"research": True, "answer": False}[entry["leads"]]
    return Factor(name, pattern, leads, entry["says"], entry.get("category"))


def _alternatives(patterns: Sequence[str]) -> list[str]:
    # Each alone first: the message then names the one that is wrong.
    return [re.compile(pattern).pattern for pattern in patterns]


def _row(entry: Mapping[str, Any]) -> TableRow:
    research = {"research": True, "answer": False}[entry["decide"]]
    when, unless = frozenset(entry["when"]), frozenset(entry.get("unless", ()))
    return TableRow(when, unless, research, entry["category"])
