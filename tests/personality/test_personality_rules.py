"""Each style rule on texts that break it and on look-alikes that must pass."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rule_cases import BROKEN, KEPT

from mlx_companion.loop.packaged import load_qa_pairs
from mlx_companion.personality import (
    RULES,
    Profile,
    Violation,
    check,
    is_hedge,
    load_profile,
    substantial_words,
)


@pytest.fixture(scope="module")
def profile() -> Profile:
    return load_profile()


def _cases(table: dict[str, list[str]]) -> list[tuple[str, str]]:
    return [(rule, text) for rule, texts in table.items() for text in texts]


@pytest.mark.parametrize(("rule", "text"), _cases(BROKEN))
def test_breaks(profile: Profile, rule: str, text: str) -> None:
    reason = RULES[rule](text, **profile.rules[rule])
    assert reason, f"{rule} let {text!r} pass"
    assert "\n" not in reason
    assert len(reason) < 120


@pytest.mark.parametrize(("rule", "text"), _cases(KEPT))
def test_keeps(profile: Profile, rule: str, text: str) -> None:
    assert RULES[rule](text, **profile.rules[rule]) is None


def test_every_rule_has_cases_and_is_in_the_default_profile(profile: Profile) -> None:
    assert set(RULES) == set(BROKEN) == set(KEPT) == set(profile.rules)


def test_no_written_answer_breaks_the_default_profile(profile: Profile) -> None:
    # 300 natural answers are the broadest check against false alarms that there is.
    broken = [(pair.answer, check(profile, pair.answer)) for pair in load_qa_pairs()]
    assert [entry for entry in broken if entry[1]] == []


def test_check_reports_every_broken_rule_in_order(profile: Profile) -> None:
    found = check(profile, "Sure! Here you go")
    assert [violation.rule for violation in found] == [
        "complete_sentences",
        "no_exclamation",
        "no_filler",
        "substance",
    ]
    assert found[2] == Violation("no_filler", "filler opener 'sure'")


@pytest.mark.parametrize(
    ("rule", "parameters", "text", "breaks"),
    [
        ("max_words", {"limit": 3}, "One two three four.", True),
        ("max_words", {"limit": 4}, "One two three four.", False),
        ("min_words", {"limit": 5}, "One two three four.", True),
        ("substance", {"least": 4}, "Boil the rice slowly.", True),
        ("substance", {"least": 3}, "Boil the rice slowly.", False),
        ("no_repetition", {"ngram": 2, "times": 1}, "The cat saw the cat.", True),
        ("no_repetition", {"ngram": 2, "times": 2}, "The cat saw the cat.", False),
        ("no_prompt_echo", {"ngram": 2, "prompts": ("Be calm",)}, "You should be calm.", True),
        ("no_prompt_echo", {"ngram": 3, "prompts": ("Be calm",)}, "You should be calm.", False),
        ("readable", {"letters_percent": 90}, "A, b, c.", True),
    ],
)
def test_parameters_matter(
    rule: str, parameters: dict[str, object], text: str, breaks: bool
) -> None:
    assert bool(RULES[rule](text, **parameters)) is breaks


@pytest.mark.parametrize("text", BROKEN["substance"][1:16])
def test_hedges(text: str) -> None:
    assert is_hedge(text)


@pytest.mark.parametrize("text", ["", "Boil it slowly.", *KEPT["substance"][1:3]])
def test_not_hedges(text: str) -> None:
    assert not is_hedge(text)


def test_substantial_words_leave_out_the_hedge() -> None:
    text = "I'm not sure, but oak is harder than pine, and oak lasts."
    assert substantial_words(text) == ["oak", "harder", "pine", "lasts"]


PIECES = st.sampled_from(
    [text for texts in (*BROKEN.values(), *KEPT.values()) for text in texts] + ["\n", " ", "!", "("]
)


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.text(), st.lists(PIECES, max_size=4).map("".join)))
def test_no_text_makes_a_rule_raise(profile: Profile, text: str) -> None:
    for violation in check(profile, text):
        assert violation.rule in profile.rules
        assert violation.reason


@settings(max_examples=60, deadline=None)
@given(st.lists(PIECES, min_size=1, max_size=3).map(" ".join))
def test_check_does_not_depend_on_outer_spaces(profile: Profile, text: str) -> None:
    kept = {violation.rule for violation in check(profile, text.strip())}
    assert {violation.rule for violation in check(profile, f"  {text.strip()} ")} == kept


UNITS = [
    " ", ".", "(", ")", "[", "{", "<", "</", "*", "**a", "*a", "_", "#", "`", "|", ":", '"', "'",
    "\n", "\n- ", "|\n", "1) ", "1. ", "a", "a ", "a-", "a'", "1,", "A. ", "Dr. ", "? ", "very ",
    "- ", " \t", "as an ", "as a b ", "i am a ", "sure ", "what a really ", "there are many ",
    "it depends on ", "I'm not sure. ", "\u2026", "\u3002", "\u8336", "\u0301", "\U0001f600",
]  # fmt: skip


@pytest.mark.parametrize("rule", sorted(RULES))
def test_time_is_linear(profile: Profile, rule: str, cpu_seconds: Callable[[], float]) -> None:
    """100 000 characters cost well under a second; quadratic time would cost many."""
    for unit in UNITS:
        text = (unit * 100_000)[:100_000] + "x"
        start = cpu_seconds()
        RULES[rule](text, **profile.rules[rule])
        assert cpu_seconds() - start < 1.5, f"{rule} is slow on {unit!r}"


@pytest.fixture
def cpu_seconds() -> Callable[[], float]:
    # CPU time of this process: another busy program on the machine does not count.
    return time.process_time
