"""Words, sentences and content words, on cases whose answer a reader can see."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_companion.personality.words import (
    content_words,
    fold,
    new_words,
    sentences,
    word_count,
    words,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" \n\t ", []),
        ("...!?", []),
        ("It costs 1.5 dollars.", ["it", "costs", "1.5", "dollars"]),
        ("1,000 well-known facts", ["1,000", "well-known", "facts"]),
        ("one, two", ["one", "two"]),
        ("one,two", ["one", "two"]),
        ("calm\u2014and slow", ["calm", "and", "slow"]),
        ("don\u2019t stop", ["don't", "stop"]),
        ("\uff28\uff45\uff4c\uff4c\uff4f", ["hello"]),
        ("e.g. 10 a.m.", ["e.g", "10", "a.m"]),
        ("na\u00efve caf\u00e9", ["na\u00efve", "caf\u00e9"]),
        ("snake_case", ["snake", "case"]),
        ("\u6211\u559c\u6b22\u8336", list("\u6211\u559c\u6b22\u8336")),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected
    assert word_count(text) == len(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("One. Two? Three!", ["One.", "Two?", "Three!"]),
        ("Dr. Smith left. Why?", ["Dr. Smith left.", "Why?"]),
        ("It opens at 10 a.m. and closes late.", ["It opens at 10 a.m. and closes late."]),
        ("Take fruit, e.g. pears. Then rest.", ["Take fruit, e.g. pears.", "Then rest."]),
        ("J. R. Smith wrote it. So did I. Good.", ["J. R. Smith wrote it.", "So did I.", "Good."]),
        ('He said "go." Then he left.', ['He said "go."', "Then he left."]),
        ("It costs 1.5 dollars. Cheap.", ["It costs 1.5 dollars.", "Cheap."]),
        ("No end here", ["No end here"]),
        ("Really?! Yes...", ["Really?!", "Yes..."]),
        ("Yes\u3002", ["Yes."]),
        ("\u201cStop.\u201d He did.", ['"Stop."', "He did."]),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


@given(st.text(max_size=200))
def test_sentences_lose_nothing_but_outer_spaces(text: str) -> None:
    joined = "".join("".join(sentences(text)).split())
    assert joined == "".join(fold(text).split())


@given(st.lists(st.sampled_from(["The cat sleeps.", "Why not?", "It rains."]), max_size=6))
def test_sentences_undo_joining(parts: list[str]) -> None:
    assert sentences(" ".join(parts)) == parts


@given(st.lists(st.from_regex(r"[a-z]{1,8}", fullmatch=True), max_size=20))
def test_words_undo_joining(parts: list[str]) -> None:
    assert words(", ".join(parts)) == parts


def test_content_words_leave_out_what_fits_any_reply() -> None:
    assert content_words("There are many different things that you can do about it.") == []
    assert content_words("It is a warm blanket.") == ["warm", "blanket"]
    assert content_words("A bell is a bell.") == ["bell", "bell"]


def test_new_words_unmask_a_question_said_again() -> None:
    prompt = "How long do hamsters live?"
    assert new_words(prompt, "How long hamsters live is what you ask.") == []
    assert new_words(prompt, "Most hamsters live two or three years, or years more.") == [
        "two",
        "three",
        "years",
    ]
