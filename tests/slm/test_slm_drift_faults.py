"""Broken and repeated replies: rules of the drift monitor."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from patience import not_hanging

from mlx_companion.slm.drift_anomaly import anomalies
from mlx_companion.slm.drift_repeat import (
    measure_repetition,
    repetition_excess,
    repetition_p,
)

BROKEN = [
    ("", "empty"),
    ("  \n ", "empty"),
    ("<|im_start|>assistant\nHello", "template_token"),
    ("Sure. [INST] next question [/INST]", "template_token"),
    ("The tea is ready.</s>", "template_token"),
    ("User: what now?\nAssistant: nothing", "template_token"),
    ("Dear {{ name }}, here is the list.", "template_token"),
    ("Traceback (most recent call last):\n  File", "error"),
    ("I donÃ©t know", "mojibake"),
    ("the the the the the the", "loop"),
    ("you can go on and on and on and on and on and on", "loop"),
    ("I am here. I am here. I am here. I am here.", "loop"),
    ("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "loop"),
    ("asdkjh qwlkejr zxmncb qpwkj the", "gibberish"),
    ("%$#@ ^&*( )_+ ;;; ::: %%% $$$ ### @@@ !!! ~~~ ^^^", "gibberish"),
    ("El tren sale a las nueve de la mañana y no hay otro hasta el lunes.", "language.es"),
    ("Das ist nicht der Weg, den ich mit der Karte gefunden habe.", "language.de"),
    ("Поезд отправляется в девять часов утра.", "script.cyrillic"),
    ("列车九点从二号站台发车。", "script.cjk"),
]
SOUND = [
    "Yes.",
    "42",
    "Ha ha ha!",
    "No, no, no. Use the other one.",
    "It's 3 + 4 = 7, and 7 * 6 = 42.",
    "```python\nfor i in range(3):\n    print(i, i, i, i, i, i)\n```",
    "| a | b |\n|---|---|\n| 1 | 2 |",
    "- eggs\n- flour\n- milk\n- sugar\n- butter\n- salt\n- vanilla\n- lemon\n- nuts\n- tea",
    "See https://example.org/xkcdqwrt/zzzz for the list.",
    "The café in São Paulo serves crème brûlée.",
    'In French you say "je ne sais pas ce que tu veux dire".',
    "\U0001f600\U0001f389",
    "Strengths and lengths: rhythm, myths, catchphrases.",
    "---------------------------------\nPart two",
    "Row, row, row your boat, gently down the stream.",
    "User stories help. The assistant manager writes them.",
]


@pytest.mark.parametrize(("text", "name"), BROKEN)
def test_broken_replies_are_named(text: str, name: str) -> None:
    assert name in anomalies(text)


@pytest.mark.parametrize("text", SOUND)
def test_sound_replies_are_left_alone(text: str) -> None:
    assert anomalies(text) == {}


@given(st.text(max_size=300))
@settings(max_examples=150, deadline=None)
def test_any_text_is_judged(text: str) -> None:
    assert all(isinstance(value, str) for value in anomalies(text).values())


@pytest.mark.parametrize("text", ["a " * 50_000, "<" * 100_000, "\n" * 100_000, "a" * 100_000])
def test_hostile_lengths_are_judged(text: str) -> None:
    with not_hanging():
        assert anomalies(text)
        measure_repetition([text, text])


def _different(count: int) -> list[str]:
    return [
        f"Answer {n} speaks of item{n}, and then of thing{n} at place{n}." for n in range(count)
    ]


def test_replies_about_different_things_do_not_repeat() -> None:
    plain = [
        "The train leaves at nine.",
        "Rice needs more water than that.",
        "Your second paragraph is too long.",
        "Tulips go in during autumn.",
        "A fixed rate is easier to plan for.",
        "The loop never ends, so add a counter.",
    ]
    found = measure_repetition(plain)
    assert (found.copies, found.openers) == (0, 0)
    assert repetition_excess(found, found, 6) == 0


def test_copies_and_stock_openers_are_found() -> None:
    baseline = measure_repetition(["One thing.", "Something else here.", "A third and last."])
    copies = ["I am always here to help you with that today."] * 6
    openers = [f"That is a great point about {what} indeed." for what in "abcdef"]
    assert repetition_excess(baseline, measure_repetition(copies), 6) == 1
    assert repetition_excess(baseline, measure_repetition(openers), 6) > 0.5
    assert "I am always here to help you with that today." in measure_repetition(copies).examples


def test_a_baseline_that_repeats_itself_as_much_excuses_it() -> None:
    always = measure_repetition(["I am always here to help you with that."] * 6)
    assert repetition_excess(always, always, 6) == 0


def test_a_single_reply_and_none_say_nothing() -> None:
    assert measure_repetition([]).copies == measure_repetition(["Only one."]).copies == 0
    assert measure_repetition(["", ""]).overlap == 0


def test_two_copies_count_less_than_many() -> None:
    none = measure_repetition(_different(3))
    twice = measure_repetition(["Same words once more."] * 2)
    assert repetition_excess(none, twice, 2) < repetition_excess(none, twice, 6)


def test_what_both_halves_repeat_is_no_excess_of_one() -> None:
    stock = ["I am always here to help you with that."] * 2
    assert repetition_p(_different(6) + stock, _different(6) + stock) > 0.2
    stuck = ["I am always here to help you with that."] * 6
    assert repetition_p(_different(8), _different(14)[12:] + stuck) <= 0.02
    assert repetition_p(_different(8), stuck) == repetition_p(_different(8), stuck)


def test_p_of_repetition_is_that_of_all_relabellings() -> None:
    # Two copies of one text among eight replies: both fall into the second half in 3 ways of 14.
    replies = [f"Only {'abcdef'[n]}{n} counts{n} here{n} now{n}." for n in range(6)]
    copies = ["The very same long answer once more."] * 2
    found = repetition_p(replies[:4], replies[4:] + copies, permutations=4000)
    assert found == pytest.approx(3 / 14, abs=0.03)


def test_short_answers_are_no_copies() -> None:
    assert measure_repetition(["Done.", "Done.", "Sure.", "Sure."]).copies == 0
