"""Training of the context tracker on the packaged texts alone, and the registers' rules."""

from __future__ import annotations

import json
import random

import pytest

from mlx_companion.errors import DataError
from mlx_companion.slm.formality import rule_score, style_features
from mlx_companion.slm.tracker import ContextTracker
from mlx_companion.slm.tracker_register import careful, casual
from mlx_companion.slm.tracker_rows import formality_rows
from mlx_companion.slm.tracker_sources import Sources, Texts, encoder_vectors, smoke_vectors
from recipes import train_tracker


def test_the_recipes_smoke_run_makes_a_pack_that_works(tmp_path):
    train_tracker.main(["--smoke", "--out", str(tmp_path)])
    report = json.loads((tmp_path / "report.json").read_text())
    assert set(report) == {"slang", "formality", "mood", "topic", "depth"}
    assert "# Context tracker" in (tmp_path / "pack" / "README.md").read_text()
    result = ContextTracker(tmp_path / "pack").process("ngl I live in Oslo")
    assert result.slang_detected[0]["term"] == "ngl"
    assert result.updates[0].value == "Oslo"


def test_registers_share_their_contents():
    rng = random.Random(0)
    texts = Texts(["i dont know lol"] * 40, [], ["He was of another mind."], [], set(), 1, rng)
    rows = [row for row in formality_rows(texts) if row[2] != "pairs"]
    assert {label for _, label, _, content in rows if content == "i dont know lol"} == {0, 1}
    assert len({text for text, label, _, _ in rows if label == 0}) > 1


def test_missing_sources_are_named(tmp_path):
    with pytest.raises(DataError, match="labels"):
        Texts.read(Sources(tmp_path, smoke_vectors()))
    with pytest.raises(DataError, match="MiniLM"):
        encoder_vectors(tmp_path)


def test_careful_mends_what_is_casual():
    text = careful("i dont know lol but it's kinda weird", random.Random(3))
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
