"""Hashed n-grams: against a plain count of n-grams, the same in every process, and quick."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from patience import LONG, slowness

from mlx_companion.errors import ConfigError
from mlx_companion.slm.ngrams import NGramConfig, NGrams

_WIDE = NGramConfig(char_columns=1 << 30, word_columns=1 << 30)


def _plain_counts(text: str, lengths: tuple[int, int]) -> list[int]:
    """Counts of character n-grams, sorted: what hashing must keep when nothing collides."""
    padded = f" {' '.join(text.split()).casefold()} "
    runs = [
        padded[at : at + n]
        for n in range(lengths[0], lengths[1] + 1)
        for at in range(len(padded) - n + 1)
    ]
    return sorted(runs.count(run) for run in set(runs))


@pytest.mark.parametrize("text", ["who won the game", "aaaa aaa", "Ünïcödé 漢字 🙂", "x"])
def test_counts_are_those_of_the_n_grams(text: str) -> None:
    config = NGramConfig(char=(2, 4), words=(0, 0), char_columns=1 << 30)
    _, values = NGrams(config).row(text)
    counts = np.array(_plain_counts(text, (2, 4)))
    expected = np.sort(1 + np.log(counts))
    np.testing.assert_allclose(np.sort(values), expected / np.linalg.norm(expected), rtol=1e-5)


def test_words_and_pairs_of_words_are_counted() -> None:
    config = NGramConfig(char=(0, 0), words=(1, 2), word_columns=1 << 30)
    columns, _ = NGrams(config).row("is it, it is?")
    # is, it, comma, question mark; "is it", "it ,", ", it", "it is", "is ?"
    assert len(columns) == 4 + 5


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60))
def test_every_text_gives_a_row_of_length_one_or_none(text: str) -> None:
    features = NGrams(NGramConfig(char_columns=512, word_columns=128))
    matrix = features.transform([text])
    assert matrix.shape == (1, 640)
    assert matrix.dtype == np.float32
    length = float(np.sqrt(matrix.multiply(matrix).sum()))
    assert length == pytest.approx(1.0, abs=1e-5) if text.strip() else length == 0
    assert matrix.has_sorted_indices


def test_case_matters_only_where_it_is_wanted() -> None:
    plain, cased = NGrams(), NGrams(NGramConfig(casefold=False))
    assert (plain.transform(["Hello"]) != plain.transform(["hello"])).nnz == 0
    assert (cased.transform(["Hello"]) != cased.transform(["hello"])).nnz > 0


def test_different_texts_differ_and_order_matters() -> None:
    rows = NGrams(_WIDE).transform(["dog bites man", "man bites dog", "dog bites man"])
    assert (rows[0] != rows[2]).nnz == 0
    assert (rows[0] != rows[1]).nnz > 0


def test_columns_are_the_same_in_another_process() -> None:
    code = (
        "from mlx_companion.slm.ngrams import NGrams;"
        "print(NGrams().row('who is the president')[0].tolist())"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=LONG
    )
    assert run.stdout.strip() == str(NGrams().row("who is the president")[0].tolist())


def test_columns_never_change() -> None:
    # Shipped weights are tied to these numbers.
    columns, values = NGrams(NGramConfig(char=(2, 3), words=(1, 1))).row("ab c")
    expected = [723, 747, 7202, 14785, 20434, 22704, 22747, 25099, 28384, 34005, 37696]
    assert columns.tolist() == expected
    assert float(values @ values) == pytest.approx(1, abs=1e-6)


def test_long_texts_keep_both_ends() -> None:
    features = NGrams(NGramConfig(max_chars=100))
    text = "start " + "filler " * 1000 + "end"
    ends = text[:50] + " " + text[-50:]
    assert (features.transform([text]) != features.transform([ends])).nnz == 0


def test_no_texts_and_one_text() -> None:
    assert NGrams().transform([]).shape == (0, NGrams().columns)
    with pytest.raises(TypeError, match="list of texts"):
        NGrams().transform("one")


@pytest.mark.parametrize(
    "bad", [{"char": (3, 2)}, {"words": (0, 2)}, {"char_columns": 0}, {"max_chars": 1}]
)
def test_bad_configurations_are_refused(bad: dict) -> None:
    with pytest.raises(ConfigError):
        NGramConfig(**bad)


def test_a_short_text_takes_less_than_a_millisecond() -> None:
    features = NGrams()
    features.row("warm up")
    took = []
    for _ in range(30):
        start = time.thread_time()
        features.row("who is the current prime minister of the united kingdom")
        took.append(time.thread_time() - start)
    assert min(took) < 2e-3 * slowness()
