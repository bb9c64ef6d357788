"""Log-probabilities and perplexity against numpy over the logits of the whole model."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import CORPUS, tiny_llama

from mlx_companion.errors import GenerationError, Stopped
from mlx_companion.models import scoring
from mlx_companion.models.load import load
from mlx_companion.models.scoring import Row, RowScore, perplexity, score_rows, scored_logits
from mlx_companion.runtime.stop import StopSwitch


@pytest.fixture(scope="module", params=["own head", "tied head"])
def lm(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    return load(tiny_llama(folder, tie_word_embeddings=request.param == "tied head"))


def log_softmax(logits):
    logits = logits.astype(np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def logprob_by_hand(lm, row):
    """Summed log-probability of the scored tokens, from the logits of the row alone."""
    table = log_softmax(np.array(lm.model(mx.array([list(row.tokens)]))[0]))
    return sum(table[i - 1, row.tokens[i]] for i in range(row.start, len(row.tokens)))


def random_rows(seed, lengths, shared=0):
    """Rows of these lengths that begin alike and are scored from different places on."""
    rng = np.random.default_rng(seed)
    beginning = rng.integers(0, 380, shared).tolist()
    rows = []
    for length in lengths:
        tokens = [*beginning, *rng.integers(0, 380, length).tolist()]
        rows.append(Row(tokens, int(rng.integers(max(1, shared), len(tokens)))))
    return rows


def check_against_numpy(lm, rows, scores, atol=2e-4):
    assert [score.count for score in scores] == [len(row.tokens) - row.start for row in rows]
    expected = [logprob_by_hand(lm, row) for row in rows]
    np.testing.assert_allclose([s.logprob for s in scores], expected, rtol=1e-4, atol=atol)


@pytest.mark.parametrize("shared", [0, 5, 30], ids="{} tokens shared".format)
def test_rows_equal_numpy(lm, shared):
    rows = random_rows(0, [2, 3, 40, 7, 7, 25, 2], shared)
    check_against_numpy(lm, rows, score_rows(lm, rows))


def test_what_all_rows_share_runs_once(lm, monkeypatch):
    shared, run = [], scoring.run_prefixed
    monkeypatch.setattr(
        scoring, "run_prefixed", lambda model, tokens, n: shared.append(n) or run(model, tokens, n)
    )
    score_rows(lm, [Row([7] * 30 + [n, n], 30) for n in (8, 9)])
    score_rows(lm, random_rows(0, [9, 4, 7], shared=5))
    assert shared == [29]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(2, 24), min_size=1, max_size=7),
    st.sampled_from([0, 4, 12]),
    st.sampled_from([1, 30, 100, 5000]),
    st.integers(0, 100),
)
def test_batches_change_nothing(lm, lengths, shared, batch_tokens, seed):
    rows = random_rows(seed, lengths, shared)
    together = score_rows(lm, rows, batch_tokens=batch_tokens)
    alone = [score_rows(lm, [row])[0] for row in rows]
    assert [s.count for s in together] == [s.count for s in alone]
    np.testing.assert_allclose(
        [s.logprob for s in together], [s.logprob for s in alone], rtol=1e-4, atol=2e-4
    )


def test_a_row_that_is_scored_right_after_what_all_share(lm):
    rows = [Row([*range(10, 22), last], 12) for last in (5, 6, 7)]
    check_against_numpy(lm, rows, score_rows(lm, rows))
    same = [Row(list(range(10, 24)), 3)] * 3
    check_against_numpy(lm, same, score_rows(lm, same))


def test_logits_come_row_after_row(lm):
    rows = random_rows(3, [12, 4, 9], shared=10)
    logits = np.array(scored_logits(lm, rows))
    assert logits.dtype == np.float32
    at = 0
    for row in rows:
        full = np.array(lm.model(mx.array([row.tokens]))[0])
        expected = full[row.start - 1 : len(row.tokens) - 1]
        np.testing.assert_allclose(logits[at : at + len(expected)], expected, atol=2e-5)
        at += len(expected)
    assert at == len(logits)


def test_mean_is_per_token():
    assert RowScore(-6.0, 4).mean == -1.5


def test_batches_hold_every_row_once_and_keep_to_the_limit():
    rows = [Row([1] * length) for length in (9, 2, 40, 5, 5, 3, 100)]
    batches = list(scoring._batches(rows, 50))
    assert sorted(i for batch in batches for i in batch) == list(range(7))
    for batch in batches:
        padded = len(batch) * max(len(rows[i].tokens) for i in batch)
        assert padded <= 50 or len(batch) == 1
    assert len(batches) < 5


def test_no_rows_give_no_scores(lm):
    assert score_rows(lm, []) == []


@pytest.mark.parametrize(
    "row", [Row([], 1), Row([5], 1), Row([5, 6], 0), Row([5, 6], 2), Row([5, 6, 7], -1)]
)
def test_a_row_with_nothing_to_score_is_refused(lm, row):
    told = f"{len(row.tokens)} tokens with start={row.start}"
    with pytest.raises(GenerationError, match=told):
        score_rows(lm, [Row([1, 2, 3]), row])


def test_the_kill_switch_is_heard_between_batches(lm, monkeypatch):
    switch, batches = StopSwitch(), []
    score = scoring.linear_cross_entropy

    def counted(hidden, head, targets, **options):
        batches.append(len(targets))
        switch.request("enough")
        return score(hidden, head, targets, **options)

    monkeypatch.setattr(scoring, "linear_cross_entropy", counted)
    with pytest.raises(Stopped):
        score_rows(lm, [Row([1, 2, 3])] * 4, batch_tokens=6, switch=switch)
    assert batches == [4]


@pytest.mark.parametrize("window", [2, 7, 16, 256])
def test_perplexity_equals_numpy(lm, window):
    text = " ".join(CORPUS[:4])
    tokens = lm.tokenizer.encode(text)
    total, count = 0.0, 0
    for start in range(0, len(tokens), window):
        piece = tokens[start : start + window]
        if len(piece) > 1:
            total += logprob_by_hand(lm, Row(piece))
            count += len(piece) - 1
    expected = np.exp(-total / count)
    np.testing.assert_allclose(perplexity(lm, text, window=window), expected, rtol=1e-4)


def test_perplexity_of_a_uniform_model_is_its_vocabulary(tmp_path):
    flat = load(tiny_llama(tmp_path))
    flat.model.lm_head.weight = mx.zeros_like(flat.model.lm_head.weight)
    assert perplexity(flat, CORPUS[0]) == pytest.approx(flat.config["vocab_size"], rel=1e-5)


@pytest.mark.parametrize("text", ["", "a"])
def test_perplexity_of_too_little_text_is_refused(lm, text):
    with pytest.raises(GenerationError, match="at least two tokens"):
        perplexity(lm, text)
