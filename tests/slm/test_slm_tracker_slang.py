"""The slang lexicon, spelling, the sense features, and learning new terms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_companion.errors import SLMError
from mlx_companion.slm.linear import Calibration, LinearHead
from mlx_companion.slm.slang import SenseHead, SlangDetector
from mlx_companion.slm.slang_learn import TermLearner
from mlx_companion.slm.slang_lexicon import Lexicon
from mlx_companion.slm.slang_sense import COLUMNS, DENSE, Place, dense_row, sparse_row
from mlx_companion.slm.tracker_texts import written
from mlx_companion.slm.tracker_words import WordTable, tokens, unstretched

LEXICON = Lexicon.parse(written("lexicon"))
DETECTOR = SlangDetector(LEXICON)


def found(text: str) -> list[str]:
    return [item["term"] for item in DETECTOR.detect(text)]


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("ngl that was lowkey bussin", ["ngl", "lowkey", "bussin"]),
        ("Lowkey goated, he's on fleek", ["lowkey", "goated", "on fleek"]),
        ("LOLLLL u kidding", ["lol"]),
        ("that's sooooo good", ["soooo" + "o"]),
        ("gr8 m8", ["m8"]),
        ("he left me on read smh", ["left me on read", "smh"]),
        ("I'm knackered, innit", ["knackered", "innit"]),
        ("this arvo", ["arvo"]),
        ("she soft-launched him", ["soft-launched"]),
        ("he was yeeting rocks", ["yeeting"]),
        ("nerfed again", ["nerfed"]),
        ("luv ya, ttyl", ["ttyl"]),
        ("that was straight fire", ["fire"]),
        ("you bailed on us, weird flex but ok", ["bailed", "flex"]),
        ("a good natter with the missus", ["natter", "missus"]),
        ("spill the tea, he's throwing shade", ["spill the tea", "throwing shade"]),
        ("Hubby's hangry", ["hubby", "hangry"]),
        ("she said 'bruh' twice", ["bruh"]),
        ("hella fine, and mad tired", ["hella", "fine", "mad"]),
    ],
)
def test_unambiguous_terms_are_found(text, terms):
    assert found(text) == terms


@pytest.mark.parametrize(
    "text",
    [
        "I'm gonna be there, kinda late.",
        "The U.S. economy grew in 500 BC terms.",
        "Hey guys, yeah, the kids are cool.",
        "He is an RN at the hospital.",
        "ahhhh hmmm ooooh",
        "Please send it ASAP, FYI.",
        "It can't and won't rain.",
        "can u bring it b4 2moro plz, thx",
        "They gutted the house after the flood.",
    ],
)
def test_what_counts_as_no_slang(text):
    assert found(text) == []


def test_reduced_spellings_are_counted_apart():
    text = "can u bring it 2moro plz, lol"
    assert found(text) == ["lol"]
    assert DETECTOR.spellings(text) == 3
    assert DETECTOR.spellings("Can you bring it tomorrow, please?") == 0


@pytest.mark.parametrize(
    "text", ["it serves him right", "the wait is killing us", "a piece of cake", "on sick leave"]
)
def test_plain_phrases_reach_no_head(text):
    assert all(match.entry.plain for match in LEXICON.matches(tokens(text)))


def test_ambiguous_terms_need_a_head():
    assert found("this song is fire") == []
    with pytest.raises(SLMError, match="no sense check"):
        DETECTOR.probabilities([])


def test_the_lexicon_has_no_term_twice_and_covers_its_registers():
    terms = [entry.whole for entry in LEXICON.entries]
    assert len(terms) == len(set(terms))
    assert len(terms) > 2000
    assert {"texting", "internet", "aave", "british", "australian", "gaming", "older"} <= {
        entry.origin for entry in LEXICON.entries
    }


def test_every_ambiguous_term_has_sentences_of_both_senses():
    trained = {}
    for line in written("senses").splitlines():
        if not line.startswith("#"):
            term, rest = line.split(" + ", 1)
            counts = [part.count(" / ") + 1 for part in rest.split(" - ", 1)]
            trained[term] = [a + b for a, b in zip(trained.get(term, (0, 0)), counts, strict=True)]
    shown = {e.term for e in LEXICON.entries if e.ambiguous and "x" not in e.flags}
    assert shown <= set(trained)
    assert all(min(counts) >= 1 for counts in trained.values())


@pytest.mark.parametrize(
    "line", ["lol", "lol | q | laughing", "lol |  | laughing", "a (lol | u | laughing"]
)
def test_a_malformed_line_is_named(line):
    with pytest.raises(SLMError, match="line 2"):
        Lexicon.parse(f"# head\n{line}")


def test_the_longest_entry_wins():
    lexicon = Lexicon.parse("cap | u | lie\nno cap | u | no lie")
    assert [m.entry.term for m in lexicon.matches(tokens("no cap, all cap"))] == ["no cap", "cap"]


def test_forms_of_phrases():
    lexicon = Lexicon.parse("crash out | up | lose control\nblow off | up | ignore")
    for text in ("he crashed out", "crashing out again", "they blew off", "crash-out"):
        assert list(lexicon.matches(tokens(text))), text


def test_of_a_phrase_only_the_slang_is_named():
    lexicon = Lexicon.parse("extra | a | more\n(so) extra, (no) cap (at all) | u | over the top")
    detector = SlangDetector(lexicon)
    text = "she is so extra, no cap at all"
    assert [text[slice(*one["span"])] for one in detector.detect(text)] == ["extra", "cap"]
    assert [one["term"] for one in detector.detect(text)] == ["extra", "cap"]
    assert detector.detect("an extra day, no cap") == []


def test_slang_around_a_term_is_found_as_well():
    lexicon = Lexicon.parse("hella, af | u | very\n(hella) fine (af) | u | attractive")
    assert [m.entry.term for m in lexicon.matches(tokens("hella fine af"))] == [
        "hella",
        "fine",
        "af",
    ]


def test_forms_of_verbs():
    lexicon = Lexicon.parse("slap | uv | good\nvibe | uv | relax\ndiss | uv | insult")
    for form in ("slaps", "slapped", "slapping", "vibing", "vibed", "disses", "slappin'"):
        assert lexicon.get(form), form


@given(st.text(max_size=80))
def test_tokens_lie_where_they_say(text):
    at = 0
    for token in tokens(text):
        assert text[token.start : token.end] == token.text
        assert token.start >= at
        at = token.end


def test_a_quotation_is_no_apostrophe_of_its_word():
    assert [t.low for t in tokens("'drippy' he said, 'cause it's 'em")] == [
        "'", "drippy", "'", "he", "said", ",", "'cause", "it's", "'em",
    ]  # fmt: skip


def test_a_listed_term_counts_before_the_form_of_another():
    lexicon = Lexicon.parse("piss | av | mockery\npissed | a | angry")
    assert lexicon.get("pissed").sense == "angry"
    assert lexicon.get("pisses").sense == "mockery"


def test_each_kind_of_term_has_its_threshold():
    head = SenseHead(
        LinearHead((np.zeros((1, 1), np.float32),), np.zeros(1, np.float32)),
        Calibration(1.0, 0.0),
        threshold=0.8,
        unpractised=0.9,
        usual=0.5,
    )
    assert [head.least(flags) for flags in ("a", "av", "ax", "am", "amv")] == [
        0.8, 0.8, 0.9, 0.5, 0.5,
    ]  # fmt: skip


def test_unstretching():
    assert unstretched("soooo") == ["soo", "so"]
    assert unstretched("book") == []


def table() -> WordTable:
    rng = np.random.default_rng(0)
    words = ["that", "is", "so", "good", "great", "house", "music", "day", "nice", "one", "again"]
    return WordTable.build({w: rng.standard_normal(64) for w in words}, ["known"])


def test_words_survive_storage():
    first = table()
    again = WordTable.from_arrays(first.to_arrays())
    assert "house" in again
    assert "known" in again
    assert "glorp" not in again
    assert again.vector("known") is None
    np.testing.assert_array_equal(again.vector("house"), first.vector("house"))
    assert np.linalg.norm(again.vector("house")) == pytest.approx(1, abs=1e-5)
    with pytest.raises(SLMError, match=r"words\.hashes"):
        WordTable.from_arrays({})


def test_sense_features_tell_sides_apart():
    words = tokens("the house is on fire")
    place = Place(words, 4, 5, "fire")
    row = sparse_row(place)
    assert (np.diff(row) > 0).all()
    assert row.max() < COLUMNS
    assert not np.array_equal(row, sparse_row(Place(tokens("fire is on the house"), 0, 1, "fire")))
    assert dense_row(place, table()).shape == (DENSE,)


def test_names_typos_and_known_words_are_not_learned():
    learner = TermLearner(table(), LEXICON)
    for _ in range(4):
        assert learner.observe("that is Glorpina, nice houze, lol known, mussic") == []
    assert learner.learned == {}


def test_a_term_needs_several_uses_and_messages():
    learner = TermLearner(table(), Lexicon([]))
    assert learner.observe("zorpy zorpy zorpy zorpy") == []
    (update,) = learner.observe("so zorpy", "2026-01-01T00:00:00+00:00")
    assert (update.key, update.evidence) == ("slang.zorpy", "zorpy")
    assert learner.observe("zorpy") == []
    learner.forget("zorpy")
    assert TermLearner(table(), Lexicon([]), state=learner.to_dict()).observe("zorpy") == []


def test_learners_that_share_a_state_count_as_one_would():
    one, first, second = (TermLearner(table(), Lexicon([])) for _ in range(3))
    state = None
    for n, text in enumerate(["so zorpi", "glorpin", "zorpi glorpin", "vlimpo", "zorpi", "vlimpo"]):
        one.observe(text)
        learner = (first, second)[n % 2]
        learner.observe(text)
        # What is shared and not kept is offered again, and counted once.
        learner.share(state)
        if n % 3:
            state = learner.share(state)
            learner.kept()
    state = second.share(first.share(state))
    assert state["seen"] == one.to_dict()["seen"]
    assert state["learned"].keys() == one.learned.keys() == {"zorpi"}
    assert first.share(second.to_dict()) == second.to_dict()
    # What was forgotten by one is forgotten by all.
    second.forget("zorpi")
    first.share(second.share(None))
    assert first.learned == {}
    assert first.observe("zorpi zorpi") == []


def test_a_state_that_is_none_is_refused():
    with pytest.raises(SLMError, match="to_dict"):
        TermLearner(table(), LEXICON, state={"seen": {"a": 3}})
