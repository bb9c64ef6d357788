"""What a word is by its place: entries, tables, signs, lines to copy, names; and what it costs."""

from __future__ import annotations

import time

import pytest

from mlx_companion.slm.guard import PersonalityGuard

GUARD = PersonalityGuard(use_encoder=False)

FOUND = [
    ("coffee_reference", "3. **7:40** Coffee and two pages of the book."),
    ("coffee_reference", "09:30 \u2013 Espresso with the team"),
    ("coffee_reference", "Tuesday: Coffee with Ann."),
    ("coffee_reference", "| Drink | Price |\n|---|---|\n| cola | 3 |\n| americano | 4 |"),
    ("coffee_reference", "Have a Black Coffee on the way home."),
    ("caps_enthusiasm", "Guess who finished level 9! ME! Fine."),
    ("caps_enthusiasm", "She CANNOT enter your flat unless there is a fire."),
]
CLEAN = [
    "We met at Stone Bridge Coffee on the corner.",
    "Red Door Coffee opens at seven.",
    "The tram stops at Caf\u00e9 Zentral around the clock.",
    "| Language | Year |\n|---|---|\n| Java | 1995 |\n| Ada | 1980 |",
    "NEVER open the lid unless the pressure has gone.",
    "Two signs hang there. The second one, STOP, is red.",
    "Print this on the crate:\n\nHANDLE WITH CARE\nGLASS\n\nThen tape it shut.",
    "Key of D: F\u266f and C\u266f. B\u266d is the odd one, A\u266d too.",
    "_nods_ is emphasis here, and so is _leans back_.",
]


@pytest.mark.parametrize(("violation", "text"), FOUND)
def test_found(violation: str, text: str) -> None:
    assert violation in GUARD.process(text).violations_detected


@pytest.mark.parametrize("text", CLEAN)
def test_clean(text: str) -> None:
    result = GUARD.process(text)
    assert (result.violations_detected, result.rewritten_response) == ([], text)


def test_terms_of_one_substitute_are_told_apart() -> None:
    said = GUARD.process("Lattes cost 4, flat whites 3, cortados 2.").rewritten_response
    assert said == "Teas cost 4, other teas 3, third teas 2."
    text = "- Espresso: 30 ml\n- Latte: 240 ml\n- Espresso: twice"
    done = GUARD.process(text).rewritten_response
    assert done == "- Tea: 30 ml\n- Another tea: 240 ml\n- Tea: twice"


def test_whom_a_sentence_calls_is_no_praise() -> None:
    guard = PersonalityGuard()
    row = {"text": "Film everything, Joanna, before you sweep.", "user_name": "Joanna"}
    assert guard.process(row).violations_detected == []
    row = {"text": "You are amazing, Joanna!", "user_name": "Joanna"}
    assert guard.process(row).violations_detected == ["tone_cheerleader"]


def test_strict_says_a_word_once() -> None:
    guard = PersonalityGuard(level="strict", use_encoder=False)
    text = "What an absolutely INCREDIBLE, mind-blowing idea for 4 people!"
    assert guard.process(text).rewritten_response == "What a decent idea for 4 people."


UNITS = {
    "replies": "*nods* That is SO good!! Coffee, anyone? Take the tram at 9. \U0001f389\n\n",
    "one line": "WHO goes there and a latte for Sam, you did it! (so) *grins* and ",
    "table": "| coffee | 3 |\n",
}


@pytest.mark.parametrize("unit", UNITS.values(), ids=UNITS)
def test_cost_grows_with_the_length(unit: str) -> None:
    def cost(size: int) -> float:
        text, best = unit * (size // len(unit)), float("inf")
        for _ in range(3):
            start = time.process_time()
            GUARD.process({"text": text, "user_name": "Sam"})
            best = min(best, time.process_time() - start)
        return best

    cost(1000)
    # Quadratic growth would be sixteen times.
    assert cost(40_000) < 9 * cost(10_000)
