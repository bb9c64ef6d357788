"""Ordinary words and their case."""

from __future__ import annotations

import pytest

from mlx_companion.personality.lexicon import build_lexicon, is_word, ordinary_case


@pytest.mark.parametrize("word", ["AMAZING", "so", "Love", "DON'T", "I'M", "don\u2019t", "that's"])
def test_words(word: str) -> None:
    assert is_word(word)


@pytest.mark.parametrize("word", ["NASA", "HTTP", "xyzzy", "JSON", "", "NASA's"])
def test_no_words(word: str) -> None:
    assert not is_word(word)


def test_ordinary_case() -> None:
    assert ordinary_case("MONDAY") == "Monday"
    assert ordinary_case("HAPPY") == "happy"
    assert ordinary_case("I\u2019M") == "I\u2019m"
    assert ordinary_case("NASA") is None


def test_build_lexicon_leaves_names_and_acronyms_out() -> None:
    formal = ["The house was near the house of Marta. In the house Marta slept; Marta woke."]
    casual = ["nasa NASA NASA NASA house", "the house"]
    built = build_lexicon(formal, casual, least=2)
    assert "house" in built
    assert not {"marta", "Marta", "nasa"} & set(built)
