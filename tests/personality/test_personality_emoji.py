"""Which characters are emoji: by default, on demand, and never."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_companion.personality.emoji import EMOJI, is_sign
from mlx_companion.slm.guard import PersonalityGuard

TEXT = (
    "\u266f\u266d\u266e\u266a\u266b\u2660\u2663\u2665\u2666\u265f\u2654\u2713\u2717\u2610\u2611\u2192\u00a9"
    "\u2122\u00ae\u00b0\u2640\u2642\u2606\u2605\u2020\u00a7\u2318\u2764\u2600\u2708"
)
GUARD = PersonalityGuard(use_encoder=False)


@given(st.lists(st.sampled_from(TEXT), min_size=3, max_size=9), st.sampled_from(["", " ", "a"]))
def test_signs_of_text_stay(signs: list[str], between: str) -> None:
    text = "F" + between.join(signs) + " and more."
    result = GUARD.process(text)
    assert (result.violations_detected, result.rewritten_response) == ([], text)


@given(st.characters(max_codepoint=0x1EFFF, exclude_categories=["Cs"]))
def test_what_is_no_symbol_is_no_emoji(character: str) -> None:
    found = EMOJI.fullmatch(character)
    assert found is None or unicodedata.category(character) in ("So", "Sk")


@pytest.mark.parametrize(
    "emoji",
    [
        "\U0001f389",
        "\u2b50",
        "\u2764\ufe0f",
        "\u263a\ufe0f",
        "\u261d\U0001f3fd",
        "\U0001f44b\U0001f3fd",
        "\U0001f469\u200d\U0001f469\u200d\U0001f467",
        "\U0001f575\ufe0f\u200d\u2642\ufe0f",
        "\U0001f3f3\ufe0f\u200d\U0001f308",
        "\U0001f1e9\U0001f1ea",
        "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
    ],
)
def test_one_emoji_is_found_whole(emoji: str) -> None:
    assert [found.group() for found in EMOJI.finditer(f"So {emoji}.")] == [emoji]
    assert not is_sign(emoji)


@pytest.mark.parametrize(
    "sign", ["1\ufe0f\u20e3", "\u2611\ufe0f", "\u2705", "\u2122\ufe0f", "\u27a1\ufe0f"]
)
def test_signs_and_numbers_do_not_count(sign: str) -> None:
    assert all(is_sign(found.group()) for found in EMOJI.finditer(sign))
