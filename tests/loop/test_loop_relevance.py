"""Where the relevance judges draw their lines: calibration, likelihood, and the real encoder."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from tiny import CORPUS, tiny_llama

from mlx_companion.errors import LoopError
from mlx_companion.loop.judge import pairs_split
from mlx_companion.loop.judges import (
    Calibration,
    Candidate,
    LikelihoodJudge,
    RelevanceJudge,
    calibrate,
    information_gain,
    similarity,
)
from mlx_companion.loop.packaged import load_prompts
from mlx_companion.models import load_encoder
from mlx_companion.models.load import load
from mlx_companion.models.prompts import render

# Few different values, so that real and shuffled pairs tie.
VALUES = st.lists(st.integers(-4, 4).map(lambda n: n / 4), min_size=1, max_size=12)


def share_over(values, cut):
    return sum(value >= cut for value in values) / len(values)


@given(VALUES, VALUES, st.sampled_from([0.0, 0.5, 0.9, 1.0]))
def test_calibration_finds_the_best_of_all_cuts(real, shuffled, least_kept):
    auc = stats.mannwhitneyu(real, shuffled).statistic / (len(real) * len(shuffled))
    if auc <= 0.5:
        with pytest.raises(LoopError, match="cannot tell real pairs from shuffled"):
            calibrate(real, shuffled, least_kept=least_kept)
        return
    found = calibrate(real, shuffled, least_kept=least_kept)
    cuts = sorted({*real, *shuffled})
    scores = [
        share_over(real, cut) + 1 - share_over(shuffled, cut)
        for cut in cuts
        if share_over(real, cut) >= least_kept
    ]
    assert found.kept + found.refused == pytest.approx(max(scores))
    assert found.kept >= least_kept
    assert found.kept == pytest.approx(share_over(real, found.threshold))
    assert found.refused == pytest.approx(1 - share_over(shuffled, found.threshold))
    assert found.auc == pytest.approx(auc)
    assert found.pairs == len(real)


def test_a_cut_lies_between_what_it_separates():
    found = calibrate([0.6, 0.8, 0.9], [0.1, 0.2, 0.4])
    assert found == Calibration(pytest.approx(0.5), 1.0, 1.0, 1.0, 3)
    assert Calibration(**found.as_dict()) == found
    strict = calibrate([0.1, 0.8, 0.9], [0.2, 0.3])
    assert (strict.kept, strict.refused) == (pytest.approx(2 / 3), 1.0)
    mild = calibrate([0.1, 0.8, 0.9], [0.2, 0.3], least_kept=1.0)
    assert (mild.threshold, mild.kept, mild.refused) == (0.1, 1.0, 0.0)


@pytest.mark.parametrize(("real", "shuffled"), [([], [1.0]), ([1.0], []), ([], [])])
def test_calibration_needs_pairs(real, shuffled):
    with pytest.raises(LoopError, match="at least one"):
        calibrate(real, shuffled)


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return load(tiny_llama(tmp_path_factory.mktemp("llama"), seed=1))


def mean_logprob(lm, prompt, reply):
    """Mean log p(reply | prompt) in nats, from the logits of the whole model."""
    context = render(lm, prompt)
    tokens = lm.tokenizer.encode(reply, add_special_tokens=False)
    logits = np.array(lm.model(mx.array([[*context, *tokens]]))[0], dtype=np.float64)
    table = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    at = range(len(context) - 1, len(context) + len(tokens) - 1)
    return float(np.mean([table[i, token] for i, token in zip(at, tokens, strict=True)]))


def test_information_gain_is_pointwise_mutual_information_per_token(lm):
    pairs = [(CORPUS[i], CORPUS[j]) for i, j in [(0, 1), (2, 1), (3, 4), (5, 6), (0, 0)]]
    gains, perplexities = information_gain(lm, pairs)
    for (prompt, reply), gain, perplexity in zip(pairs, gains, perplexities, strict=True):
        given_prompt = mean_logprob(lm, prompt, reply)
        assert gain == pytest.approx(given_prompt - mean_logprob(lm, "Hello.", reply), abs=1e-4)
        assert perplexity == pytest.approx(math.exp(-given_prompt), rel=1e-3)


def test_a_reply_that_says_nothing_is_still_measured(lm):
    gains, perplexities = information_gain(lm, [("Why?", " "), ("Hello.", CORPUS[0])])
    assert np.isfinite(gains).all()
    assert np.isfinite(perplexities).all()
    assert gains[1] == pytest.approx(0.0, abs=1e-5), "the prompt that stands for none adds nothing"
    assert perplexities[0] == pytest.approx(math.exp(-mean_logprob(lm, "Why?", ".")), rel=1e-3)


def test_likelihood_judges_gain_and_fluency(lm):
    asked = [Candidate(str(i), CORPUS[i], CORPUS[i + 1]) for i in range(6)]
    gains, perplexities = information_gain(lm, [(c.prompt, c.reply) for c in asked])
    least, most = float(np.median(gains)), float(np.quantile(perplexities, 0.7))
    scores = LikelihoodJudge(lm, least, most).score(asked)
    for score, gain, perplexity in zip(scores, gains, perplexities, strict=True):
        assert score.judge == "likelihood"
        assert score.value == pytest.approx(gain, abs=1e-5)
        assert score.passed == (gain >= least and perplexity <= most)
        assert ("perplexity" in score.reason) == (perplexity > most)
    assert {score.passed for score in scores} == {True, False}
    assert sum(s.passed for s in LikelihoodJudge(lm, least).score(asked)) >= 3
    assert LikelihoodJudge(lm, least).score([]) == []


@pytest.mark.real_model
def test_the_real_encoder_tells_answers_from_empty_talk(real_cache):
    encoder = load_encoder()
    pairs, others = pairs_split()
    questions, answers = [p.question for p in pairs], [p.answer for p in pairs]
    turned = answers[len(answers) // 2 :] + answers[: len(answers) // 2]
    line = calibrate(
        similarity(encoder, questions, answers),
        similarity(encoder, questions, turned),
        least_kept=0.9,
    )
    assert line.auc > 0.95
    assert line.kept >= 0.9
    assert line.refused > 0.8
    judge = RelevanceJudge(encoder, line.threshold)

    def share(rows):
        scores = judge.score([Candidate(str(i), q, a) for i, (q, a) in enumerate(rows)])
        return np.mean([score.passed for score in scores])

    others = others[:80]
    assert share((pair.question, pair.answer) for pair in others) > 0.8
    prompts = [prompt.prompt for prompt in load_prompts("gate")[:80]]
    assert share((prompt, "I'm not sure.") for prompt in prompts) < 0.25
    fine = "A cup of warm tea and a short walk along the river will do you good."
    assert share((prompt, fine) for prompt in prompts) < 0.35
