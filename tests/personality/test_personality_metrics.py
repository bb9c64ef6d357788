"""Measures of style, against values worked out by hand or by the formula."""

from __future__ import annotations

import subprocess
import sys

import pytest
from patience import LONG

from mlx_companion.personality import text_metrics
from mlx_companion.personality.metrics import formality, grade_level
from mlx_companion.personality.words import words

BLOCKED = """
import socket
def refuse(*arguments, **named): raise RuntimeError("network")
socket.socket = refuse
import mlx_companion.personality as personality
import sys
assert not {"textstat", "vaderSentiment", "nltk"} & set(sys.modules)
print(personality.text_metrics("Extraordinary weather, is it not? Lovely!").grade > 0)
assert "nltk" not in sys.modules
"""


def test_counts_and_rates() -> None:
    measured = text_metrics("Perhaps we should WAIT. Is it late? Yes! \U0001f389")
    assert (measured.words, measured.sentences) == (8, 4)
    assert measured.hedges == measured.capitals == pytest.approx(100 / 8)
    assert measured.exclamations == measured.emoji == pytest.approx(100 / 8)
    assert measured.questions == pytest.approx(1 / 4)


def test_grade_is_the_formula() -> None:
    # 6 words, 1 sentence, 6 syllables (Kincaid et al., 1975).
    assert grade_level("The cat sat on the mat.") == pytest.approx(0.39 * 6 + 11.8 * 1 - 15.59)


def test_sentiment_has_a_sign() -> None:
    assert text_metrics("I love this wonderful day.").sentiment > 0.5
    assert text_metrics("I hate this terrible day.").sentiment < -0.5


def test_formality_ranks() -> None:
    casual = words("yeah i'm gonna go, you know it's really fun lol")
    plain = words("We walked to the shop and bought some bread for dinner.")
    formal = words("The allocation of resources requires the approval of the committee.")
    assert formality(casual) < formality(plain) < formality(formal)
    assert formality([]) == 0.5


def test_owners_are_no_contractions() -> None:
    assert text_metrics("The committee's report is here.").contractions == 0
    assert text_metrics("It's here, and we're late.").contractions == pytest.approx(40)


def test_code_is_not_measured() -> None:
    assert text_metrics("Fine.\n```\nWOW!!! GREAT!!!\n```").exclamations == 0
    assert text_metrics("```\nx\n```") == text_metrics("")


def test_neither_network_nor_download() -> None:
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", BLOCKED], capture_output=True, text=True, timeout=LONG
    )
    assert run.stdout.strip() == "True", run.stderr
