"""Each judge alone, and the panel against replies that keep every rule of style and say nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from word_encoder import WordEncoder

from mlx_companion.loop.judges import (
    Candidate,
    DuplicateJudge,
    EchoJudge,
    FeedbackJudge,
    Panel,
    RelevanceJudge,
    Score,
    StockJudge,
    StyleJudge,
    TruncationJudge,
    Verdict,
    normalized,
    similarity,
)
from mlx_companion.loop.judges.style import normalized as style_normalized
from mlx_companion.loop.packaged import load_qa_pairs
from mlx_companion.personality import load_profile

GOOD = [
    (
        "How do I mend a bicycle tyre?",
        "Find the hole in the tyre by holding it under water, then glue a rubber patch over it.",
    ),
    (
        "What is the capital of Portugal?",
        "Lisbon is the capital of Portugal, on the wide mouth of the Tagus.",
    ),
    (
        "When should I plant my beans?",
        "Plant beans once the nights stay above ten degrees, usually late in May.",
    ),
    (
        "Why does bread rise in the oven?",
        "Yeast fills bread dough with gas, and the heat makes those bubbles swell before they set.",
    ),
]


def candidates(replies):
    """These replies to the good prompts, each a prompt of its own."""
    return [
        Candidate(f"prompt-{i}", prompt, reply)
        for i, ((prompt, _), reply) in enumerate(zip(GOOD, replies, strict=True))
    ]


@pytest.fixture(scope="module")
def panel():
    """The judges of the gate's objective, with a stand-in for the sentence encoder."""
    judges = [
        StyleJudge(load_profile()),
        TruncationJudge(),
        EchoJudge(least=2),
        StockJudge(),
        RelevanceJudge(WordEncoder(), 0.05),
    ]
    return Panel(judges)


def failed(verdict):
    return {score.judge for score in verdict.scores if not score.passed}


def test_good_replies_pass_every_judge(panel):
    for verdict in panel.judge(candidates([reply for _, reply in GOOD])):
        assert verdict.good, verdict.reason
        assert verdict.reason == ""


CHEATS = {
    "not sure": ["I'm not sure."] * 4,
    "varied hedges": [
        "I'm not sure about that.",
        "It depends on many different factors.",
        "That is a difficult question to answer.",
        "There are several ways you can think about it.",
    ],
    "prompt said back": [prompt for prompt, _ in GOOD],
    "prompt as a statement": [
        "You want to mend a bicycle tyre.",
        "You ask what the capital of Portugal is.",
        "You wonder when you should plant your beans.",
        "You ask why bread rises in the oven.",
    ],
    "one fine sentence": ["A cup of warm tea and a walk along the river will do you good."] * 4,
    "a fine sentence behind an answer": [
        f"{reply.split(',')[0]}. The morning light will show you the rest of it."
        for _, reply in GOOD
    ],
    "one sentence with a slot": [
        f"A {thing} rewards patience, good light and a steady hand."
        for thing in ("bicycle tyre", "capital in Portugal", "row of beans", "loaf of bread")
    ],
    "off topic": [reply for _, reply in [*GOOD[1:], GOOD[0]]],
    "repeated text": ["The weather is fine today. " * 6] * 4,
    "repeated words": [f"{prompt[:-1]} mend plant rise." * 3 for prompt, _ in GOOD],
    "nothing": [" "] * 4,
    "list": [f"- {reply}\n- {reply}" for _, reply in GOOD],
    "flattery": [f"What a great question! {reply}" for _, reply in GOOD],
}  # fmt: skip


@pytest.mark.parametrize("kind", CHEATS)
def test_cheats_are_refused(panel, kind):
    verdicts = panel.judge(candidates(CHEATS[kind]))
    assert not any(verdict.good for verdict in verdicts), kind
    for verdict in verdicts:
        judge, _, told = verdict.reason.partition(": ")
        assert judge in failed(verdict)
        assert told


@pytest.mark.parametrize(
    ("kind", "judge"),
    [
        ("not sure", "stock"),
        ("not sure", "echo"),
        ("not sure", "relevance"),
        ("prompt said back", "echo"),
        ("prompt as a statement", "echo"),
        ("one fine sentence", "stock"),
        ("one fine sentence", "relevance"),
        ("a fine sentence behind an answer", "stock"),
        ("one sentence with a slot", "stock"),
        ("off topic", "relevance"),
        ("repeated text", "style"),
    ],
)
def test_more_than_one_judge_may_see_through_a_cheat(panel, kind, judge):
    assert all(judge in failed(verdict) for verdict in panel.judge(candidates(CHEATS[kind])))


def test_keeping_the_style_is_not_enough(panel):
    for kind in ("one fine sentence", "off topic"):
        for verdict in panel.judge(candidates(CHEATS[kind])):
            assert verdict.passes("style")
            assert not verdict.good


def test_a_truncated_reply_is_refused_however_good(panel):
    cut = [replace(c, truncated=True) for c in candidates([reply for _, reply in GOOD])]
    for verdict in panel.judge(cut):
        assert failed(verdict) == {"complete"}
        assert verdict.reason == "complete: cut off at the length limit"


def test_style_counts_the_rules_kept():
    profile = load_profile()
    (score,) = StyleJudge(profile).score([Candidate("a", "Hi?", "Wow! **Great** 🙂")])
    broken = score.reason.split("; ")
    assert {reason.split(": ")[0] for reason in broken} >= {"no_exclamation", "no_emoji"}
    assert score.value == pytest.approx(1 - len(broken) / len(profile.rules))
    assert not score.passed


def test_echo_counts_new_content_words():
    asked = "How warm should the kettle be?"
    replies = {
        "The kettle should be warm.": 0,
        "Eighty degrees.": 2,
        "Eighty degrees suit leaves of green tea.": 6,
        "": 0,
    }
    for reply, count in replies.items():
        (score,) = EchoJudge(least=2).score([Candidate("a", asked, reply)])
        assert score.value == count, reply
        assert score.passed == (count >= 2)


def test_stock_compares_sentences_by_their_words():
    judge = StockJudge()

    def passed(*replies, ids=None):
        ids = ids or range(len(replies))
        pairs = zip(ids, replies, strict=True)
        return [s.passed for s in judge.score([Candidate(str(i), "?", r) for i, r in pairs])]

    stock = "Rest and water help most."
    assert passed(stock, f"Oak is hard. {stock.upper()}", "Pine is soft, and it dents.") == [
        False, False, True,
    ]  # fmt: skip
    assert passed(stock, stock, ids=["a", "a"]) == [True, True], "samples of one prompt may agree"
    assert passed("Yes.", "Yes.", "Not at all.") == [True] * 3, "short sentences are free"
    assert passed() == []
    scores = judge.score([Candidate(str(i), "?", stock) for i in range(4)])
    assert {score.value for score in scores} == {0.25}
    assert "given to 4 prompts" in scores[0].reason


def test_stock_sees_through_a_slot_and_small_changes():
    judge = StockJudge()
    rows = [
        ("Does tea help?", "Tea rewards patience and a steady hand."),
        ("And chess?", "Chess always rewards a steady, trained hand and patience."),
        ("And sleep?", "Sleep rewards early dinners and dark rooms."),
        ("And walking?", "A walk along the river rewards patience."),
    ]
    scores = judge.score([Candidate(prompt, prompt, reply) for prompt, reply in rows])
    assert [score.passed for score in scores] == [False, False, True, True]
    assert [score.value for score in scores] == [0.5, 0.5, 1.0, 1.0]
    strict = StockJudge(most_shared=0.9)
    assert all(score.passed for score in strict.score([Candidate(p, p, r) for p, r in rows]))


def test_written_answers_are_no_stock():
    pairs = load_qa_pairs()
    scores = StockJudge().score([Candidate(p.id, p.question, p.answer) for p in pairs])
    assert all(score.passed for score in scores)


def test_feedback_refuses_only_what_the_person_refused():
    judge = FeedbackJudge([("Why?", "Because."), ("Who?", "Nobody knows.")])
    asked = [("why", "because!"), ("Why?", "Nobody knows."), ("Who?", "Because.")]
    scores = judge.score([Candidate("x", prompt, reply) for prompt, reply in asked])
    assert [score.passed for score in scores] == [False, True, True]
    assert [score.value for score in scores] == [0.0, 1.0, 1.0]
    assert FeedbackJudge([]).score([Candidate("x", "a", "b")])[0].passed


def test_duplicates_are_those_of_one_prompt_after_the_first():
    judge = DuplicateJudge(WordEncoder(), most_similar=0.8)
    tea = "Green leaves want cooler water than black ones"
    rows = [
        ("a", tea), ("a", tea + " often"), ("b", tea), ("a", "Boil rice slowly instead"),
        ("a", tea),
    ]  # fmt: skip
    scores = judge.score([Candidate(name, "?", reply) for name, reply in rows])
    assert [score.passed for score in scores] == [True, False, True, True, False]
    assert scores[0].value == 1.0
    assert scores[4].value == pytest.approx(0.0, abs=1e-6)
    assert "cosine" in scores[1].reason
    assert judge.score([]) == []


def test_what_is_refused_as_a_duplicate_refuses_nothing():
    # B is like A, C is like B but not like A: C stays, for B is not among the kept ones.
    a, b, c = "apple bread", "apple bread cheese", "bread cheese dates cheese"
    judge = DuplicateJudge(WordEncoder(), most_similar=0.8)
    passed = [score.passed for score in judge.score([Candidate("p", "?", r) for r in (a, b, c)])]
    assert passed == [True, False, True]


def test_relevance_is_the_cosine_of_prompt_and_reply():
    judge = RelevanceJudge(WordEncoder(), 0.45)
    pairs = [("kettle water", "water kettle"), ("kettle water", "kettle milk"), ("tyre", "moon?")]
    scores = judge.score([Candidate(str(i), p, r) for i, (p, r) in enumerate(pairs)])
    assert [round(score.value, 6) for score in scores] == [1.0, 0.5, 0.0]
    assert [score.passed for score in scores] == [True, True, False]
    assert scores[2].reason == "0.000 < 0.450"
    assert judge.score([]) == []


def test_similarity_pairs_texts_in_order():
    left, right = ["kettle water", "tyre patch"], ["kettle", "kettle"]
    np.testing.assert_allclose(similarity(WordEncoder(), left, right), [0.5**0.5, 0.0], atol=1e-6)
    assert similarity(WordEncoder(), [], []).shape == (0,)


class CountingJudge:
    """Passes replies that hold its letter, and remembers what it saw."""

    def __init__(self, letter):
        self.name = letter
        self.seen = []

    def score(self, candidates):
        self.seen += [c.reply for c in candidates]
        return [Score(self.name, 1.0, self.name in c.reply, f"no {self.name}") for c in candidates]


@given(st.lists(st.text("abc", max_size=3), max_size=8))
def test_a_panel_spares_judges_what_failed_before(replies):
    a, b, c = (CountingJudge(letter) for letter in "abc")
    panel = Panel([a, b, c], {"b": ["a"], "c": ["a", "b"]})
    verdicts = panel.judge([Candidate(str(i), "?", r) for i, r in enumerate(replies)])
    assert a.seen == replies
    assert b.seen == [r for r in replies if "a" in r]
    assert c.seen == [r for r in replies if "a" in r and "b" in r]
    for reply, verdict in zip(replies, verdicts, strict=True):
        assert verdict.good == ({"a", "b", "c"} <= set(reply))
        assert verdict.passes("a", "b") == ({"a", "b"} <= set(reply))
        assert verdict.value("b") == (1.0 if "a" in reply else None)
        missing = next((letter for letter in "abc" if letter not in reply), None)
        assert verdict.reason == (f"{missing}: no {missing}" if missing else "")


def test_a_judge_without_needs_sees_everything():
    a, b = CountingJudge("a"), CountingJudge("b")
    (verdict,) = Panel([a, b]).judge([Candidate("x", "?", "b")])
    assert (a.seen, b.seen) == (["b"], ["b"])
    assert verdict.passes("b")
    assert not verdict.passes("a", "b")
    assert verdict.passes()
    assert not verdict.passes("unknown")
    assert Verdict(tuple(Score(**s) for s in verdict.as_dict().values())) == verdict


def test_a_judge_that_skips_a_candidate_is_an_error():
    class Lazy:
        name = "lazy"

        def score(self, candidates):
            return []

    with pytest.raises(ValueError, match="zip"):
        Panel([Lazy()]).judge([Candidate("x", "?", "!")])


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("I'm NOT sure!", "i m not sure"),
        ("  a\n\tb--c  ", "a b c"),
        ("Café, 你好。", "café 你好"),
        ("!?", ""),
    ],
)
def test_normalized_keeps_words_alone(text, plain):
    assert normalized(text) == plain
    assert style_normalized is normalized
    assert normalized(plain) == plain


def test_the_word_encoder_of_these_tests_is_no_coin():
    real = similarity(WordEncoder(), *zip(*GOOD, strict=True))
    turned = similarity(WordEncoder(), [p for p, _ in GOOD], [r for _, r in [*GOOD[1:], GOOD[0]]])
    assert stats.mannwhitneyu(real, turned, alternative="greater").pvalue < 0.05
