"""Training of the context tracker on the packaged texts alone, and the registers' rules."""

from __future__ import annotations

import random

import pytest

from mlx_companion.errors import DataError
from mlx_companion.slm.formality import rule_score, style_features
from mlx_companion.slm.tracker import ContextTracker
from mlx_companion.slm.tracker_card import tracker_card
from mlx_companion.slm.tracker_register import careful, casual
from mlx_companion.slm.tracker_sources import Sources, Texts, encoder_vectors, smoke_vectors
from mlx_companion.slm.tracker_train import train_tracker


def test_a_smoke_run_makes_a_pack_that_works(tmp_path):
    sources = Sources(None, smoke_vectors(), max_steps=2)
    pack = train_tracker(sources, tmp_path / "pack", card=tracker_card)
    assert set(pack.metrics) == {"slang", "formality", "mood", "topic", "depth"}
    assert "Context tracker" in (tmp_path / "pack" / "README.md").read_text()
    result = ContextTracker(tmp_path / "pack").process("ngl I live in Oslo")
    assert result.slang_detected[0]["term"] == "ngl"
    assert result.updates[0].value == "Oslo"


def test_missing_sources_are_named(tmp_path):
    with pytest.raises(DataError, match="labels"):
        Texts.read(Sources(tmp_path, smoke_vectors()))
    with pytest.raises(DataError, match="MiniLM"):
        encoder_vectors(tmp_path)


def test_careful_mends_what_is_casual():
    text = careful("i dont know lol but its kinda weird", random.Random(3))
    assert text[0].isupper()
    assert text.endswith(".")
    assert "do not know" in text
    assert "it is" in text
    assert "lol" not in text


def test_casual_always_changes_something():
    rng = random.Random(0)
    for _ in range(50):
        assert casual("I do not know whether that is correct.", rng) != (
            "I do not know whether that is correct."
        )


def test_style_counts_what_it_says():
    plain = style_features("It is late.")
    assert style_features("it's late")[1] == 1
    assert plain[1] == 0
    assert style_features("it is late")[6] == 1
    assert style_features("It is late!!")[10] == 1
    assert rule_score("") == 0.5
