"""The post-processor: what was learned is applied, and nothing else is touched."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_companion.errors import ConfigError
from mlx_companion.personality import Learned, postprocess, scan

CASES = [
    ("It is a movie.", Learned(words={"movie": "film"}), "It is a film."),
    ("Movie first.", Learned(words={"movie": "film"}), "Film first."),
    ("I do not know. It is late.", Learned(formality=0.1), "I don't know. It's late."),
    ("Yes, it is.", Learned(formality=0.1), "Yes, it is."),
    ("I don't know, I'm late.", Learned(formality=0.9), "I do not know, I am late."),
    ("It's been late.", Learned(formality=0.9), "It's been late."),
    ("Nice \U0001f389, really \U0001f600.", Learned(emoji=False), "Nice, really."),
    ("Great and great.", Learned(slang={"great": "lit"}), "Lit and great."),
    ("One. Two! Three?", Learned(max_sentences=2), "One. Two!"),
    ("Dr. Smith left. He did. Yes.", Learned(max_sentences=1), "Dr. Smith left."),
    ("- One. Two.\n- Three. Four.", Learned(max_sentences=1), "- One. Two.\n- Three. Four."),
]


@pytest.mark.parametrize(("reply", "learned", "expected"), CASES)
def test_what_was_learned_is_applied(reply: str, learned: Learned, expected: str) -> None:
    done = postprocess(reply, learned)
    assert done.text == expected
    assert bool(done.changes) == (reply != expected)
    assert postprocess(expected, learned).text == expected


@pytest.mark.parametrize(
    "reply",
    [
        "See `movie` and https://x.org/movie now.",
        "```\nmovie = 'do not'\n```",
        'She said "the movie".',
        "We saw the Movie Museum.",
        "my_movie and movie.py",
    ],
)
def test_code_links_quotations_and_names_stay(reply: str) -> None:
    assert postprocess(reply, Learned(words={"movie": "film"}, formality=0.1)).text == reply


def test_a_replacement_that_needs_replacing_is_left_out() -> None:
    learned = Learned(words={"film": "movie film", "sofa": "couch"})
    assert postprocess("A film on the sofa.", learned).text == "A film on the couch."


@pytest.mark.parametrize(
    "given",
    [{"formality": 1.5}, {"slang_uses": -1}, {"max_sentences": 0}, {"words": {" ": "x"}}],
)
def test_bad_values(given: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Learned(**given)  # type: ignore[arg-type]


_PIECES = st.sampled_from(
    ["It is late", "do not", "`it is`", "great", "movie", "3.5", "\U0001f389", '"great"', ". ",
     "https://x.org/a", "I am", "\n", ", ", " ", "It's", "Oslo"]
)  # fmt: skip


@settings(deadline=None)
@given(st.lists(_PIECES, max_size=25), st.sampled_from([0.0, 0.5, 1.0]))
def test_twice_is_once_and_protected_text_stays(pieces: list[str], formality: float) -> None:
    learned = Learned({"movie": "film"}, {"great": "lit"}, 1, formality, emoji=False)
    reply = " ".join(pieces)
    done = postprocess(reply, learned).text
    assert postprocess(done, learned).text == done
    assert re.findall(r"\d+", done) == re.findall(r"\d+", reply)
    kept = [[t[a:b] for a, b in scan(t).spans("code")] for t in (reply, done)]
    assert kept[0] == kept[1]
