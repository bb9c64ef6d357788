"""Factors and the decision table: what fires, how years are read, and rules that are wrong."""

from __future__ import annotations

import datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_companion.errors import SLMError
from mlx_companion.slm.packs import RULES, packaged
from mlx_companion.slm.research_factors import Rules, dated_factor, load_rules

TODAY, CUTOFF = datetime.date(2026, 3, 1), datetime.date(2024, 6, 30)


@pytest.fixture(scope="module")
def rules() -> Rules:
    return load_rules((packaged("research_classifier") / RULES).read_text())


@pytest.mark.parametrize(
    ("query", "factor"),
    [
        ("who is the mayor of Oslo", "office_holder"),
        ("is it TRUE that bees sleep", "verification"),
        ("what's the weather in rome", "weather"),
        ("bitcoin price", "prices"),
        ("what is my balance", "own_data"),
        ("write a poem about rain", "writing"),
        ("latest version of ubuntu", "software"),
        ("17 * 23", "mathematics"),
        ("how do you say hello in french", "translation"),
        ("why is the sky blue", "explanation"),
    ],
)
def test_a_query_shows_its_factor(rules: Rules, query: str, factor: str) -> None:
    assert factor in rules.read(query, TODAY, CUTOFF).strengths


@pytest.mark.parametrize(
    ("query", "version"),
    [
        ("\u0643\u0645 \u064a\u0633\u0627\u0648\u064a 12.5 \u0645\u062a\u0631", False),
        ("12.5", False),
        ("what is 3.5 + 2", False),
        ("a 2.4 mile run", False),
        ("born on 12.5.1984", False),
        ("v12.5", True),
        ("v 2.0 of it", True),
        ("what changed in python 3.12", True),
        ("is ios 17.4 any good", True),
        ("ubuntu-24.04", True),
        ("node.js 18.2.1", True),
        ("install 1.26.4", True),
        ("the 5.2 release", True),
        ("which version is 12.5", True),
    ],
)
def test_a_decimal_number_is_a_version_beside_a_word_of_one(
    rules: Rules, query: str, version: bool
) -> None:
    assert ("software" in rules.read(query, TODAY, CUTOFF).strengths) is version


def test_words_within_words_do_not_count(rules: Rules) -> None:
    # rain in brain, news in newsprint's middle, now in known, price in caprice
    found = rules.read("a brain known for caprice", TODAY, CUTOFF).strengths
    assert not {"weather", "present_state", "prices"} & found.keys()


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("who won the cup in 2025", "after_cutoff"),
        ("who won the cup in 2024", "near_cutoff"),
        ("who won the cup in 1998", "settled_year"),
        ("from 1998 to 2026", "after_cutoff"),
        ("who won the cup", None),
        ("a thing that costs 2025 dollars", None),
        ("bake at 1800.5 or for $1990", None),
        ("the year 2099", None),
        ("room 12025", None),
    ],
)
def test_years_are_read_against_the_cutoff(query: str, expected: str | None) -> None:
    assert dated_factor(query, TODAY, CUTOFF) == expected


def test_the_same_year_changes_sides_with_the_cutoff() -> None:
    later = datetime.date(2027, 1, 1)
    assert dated_factor("news of 2025", TODAY, CUTOFF) == "after_cutoff"
    assert dated_factor("news of 2025", datetime.date(2029, 1, 1), later) == "settled_year"
    # Without a later cutoff, this year is never settled.
    assert dated_factor("news of 2026", TODAY, datetime.date(2026, 12, 31)) == "after_cutoff"


@pytest.mark.parametrize(
    ("query", "research", "category"),
    [
        ("who is the president of france", True, "office_holder"),
        ("will it rain tomorrow", True, "weather"),
        ("search the web for bread recipes", True, "search"),
        ("fact check: bats are blind", True, "verification"),
        ("explain how inflation works", False, "explanation"),
        ("who wrote hamlet", False, "history"),
        ("remind me to call mum", False, "personal_data"),
        ("translate good morning to german", False, "writing"),
        ("12 + 30", False, "mathematics"),
        ("zxcv", False, "other"),
    ],
)
def test_the_table_decides(rules: Rules, query: str, research: bool, category: str) -> None:
    ruling = rules.decide(rules.read(query, TODAY, CUTOFF))
    assert (ruling.research, ruling.category) == (research, category)
    assert (ruling.row is None) == (category == "other")


@settings(max_examples=80, deadline=None)
@given(st.text(max_size=200))
def test_every_text_can_be_read(rules: Rules, text: str) -> None:
    found = rules.read(text, TODAY, CUTOFF)
    vector = rules.vector(found)
    assert vector.shape == (len(rules.names),)
    assert vector.min() >= 0
    assert vector.max() <= 1
    fired = len(found.strengths)
    assert rules.pairs([found]).nnz == fired * (fired - 1) // 2


def test_pairs_have_columns_of_their_own(rules: Rules) -> None:
    queries = ["price of gold today", "why is gold yellow", "latest news about the election"]
    found = [rules.read(query, TODAY, CUTOFF) for query in queries]
    matrix = rules.pairs(found).toarray()
    named = [name for name in rules.names if name in {n for f in found for n in f.strengths}]
    expected = {(a, b) for f in found for a in f.strengths for b in f.strengths if a < b}
    assert matrix.any(axis=0).sum() == len(expected)
    assert set(np.unique(matrix)) == {0, 1}
    assert len(named) > 3


def test_reasons_name_what_fired_and_nothing_else(rules: Rules) -> None:
    found = rules.read("who is the current mayor of oslo", TODAY, CUTOFF)
    speaking, against = rules.reasons(found, True)
    says = {factor.name: factor.says for factor in rules.factors}
    assert set(speaking) | set(against) == {says[name] for name in found.strengths}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("factors: [", "cannot be read"),
        ("table: []", "cannot be read"),
        ("factors: {a: {leads: up, says: x, patterns: [b]}}\ntable: []", "cannot be read"),
        ("factors: {a: {leads: answer, says: x, patterns: ['(']}}\ntable: []", "cannot be read"),
        (
            "factors: {a: {leads: answer, says: x, patterns: [b]}}\n"
            "table: [{when: [c], decide: answer, category: d}]",
            "'c', which is no factor",
        ),
    ],
)
def test_wrong_rules_are_refused(text: str, problem: str) -> None:
    with pytest.raises(SLMError, match=problem):
        load_rules(text)
