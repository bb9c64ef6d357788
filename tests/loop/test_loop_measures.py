"""What a version must not lose, the variety of samples, and the served path, on tiny models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from open_rounds import add_samples, good, open_round
from tiny import tiny_llama
from word_encoder import WordEncoder

from mlx_companion.errors import AdapterError
from mlx_companion.loop.config import ServeConfig
from mlx_companion.loop.generate import diversity, general_split
from mlx_companion.loop.measures import divergence, general_perplexity
from mlx_companion.loop.packaged import general_text
from mlx_companion.loop.served import ServedModel
from mlx_companion.lora import LoraConfig, adapter_parameters, attach, detach, set_multiplier
from mlx_companion.models.generation import generate
from mlx_companion.models.load import load
from mlx_companion.models.prompts import render
from mlx_companion.models.scoring import perplexity
from mlx_companion.personality import chat_messages, load_profile
from mlx_companion.store import Store

SERVE = ServeConfig(max_tokens=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("llama"), max_position_embeddings=700)


@pytest.fixture
def companion(folder):
    return ServedModel(load(folder), load_profile(), SERVE)


@pytest.fixture
def ctx(companion, tmp_path: Path) -> Iterator:
    with Store(tmp_path / "companion.db") as store:
        opened = open_round(store, **{"serve.max_tokens": 6, "gate.general_chars": 600})
        opened.companion = companion
        yield opened


def adapt(model, strength=0.3):
    """Attach an adapter that changes what the model says."""
    attach(model, LoraConfig(rank=2, alpha=4.0))
    rng = np.random.default_rng(0)
    for path in adapter_parameters(model):
        module = model
        *names, last = path.split(".")
        for name in names:
            module = module[int(name)] if isinstance(module, list) else module[name]
        module[last] = mx.array(strength * rng.standard_normal(module[last].shape))


def log_softmax(logits):
    logits = np.array(logits).astype(np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def test_divergence_is_the_mean_kl_on_the_bases_own_answers(ctx):
    model = ctx.companion.lm.model
    adapt(model)
    found = divergence(ctx)
    terms = []
    for prompt in general_split()[1]:
        context = render(ctx.companion.lm, prompt.prompt)
        with ctx.companion.as_base() as base:
            answer = generate(base, prompt.prompt, max_tokens=6).tokens
            tokens = mx.array([[*context, *answer]])
            reference = log_softmax(base.model(tokens)[0])
        candidate = log_softmax(model(tokens)[0])
        at = slice(len(context) - 1, len(context) + len(answer) - 1)
        terms += list((np.exp(reference) * (reference - candidate)).sum(axis=-1)[at])
    assert found == pytest.approx(np.mean(terms), rel=1e-3)
    assert found > 0.01


def test_divergence_grows_with_the_adapter_and_is_none_without(ctx):
    model = ctx.companion.lm.model
    assert divergence(ctx) == pytest.approx(0.0, abs=1e-6)
    adapt(model)
    found = []
    for scale in (0.0, 0.25, 0.5, 1.0):
        set_multiplier(model, scale)
        found.append(divergence(ctx))
    assert found[0] == pytest.approx(0.0, abs=1e-6)
    assert found == sorted(found)


def test_the_bases_answers_are_made_once_and_by_the_base(ctx, monkeypatch):
    adapt(ctx.companion.lm.model)
    first = divergence(ctx)
    monkeypatch.setattr(ServedModel, "reply_all", lambda *_, **__: pytest.fail("made again"))
    assert divergence(ctx) == first
    (key,) = [name for name in ctx.store.settings.all() if name.startswith("base-answers/")]
    detach(ctx.companion.lm.model)
    for prompt, answer in zip(general_split()[1], ctx.store.settings.get(key), strict=True):
        assert list(generate(ctx.companion.lm, prompt.prompt, max_tokens=6).tokens) == answer


def test_general_prompts_to_replay_and_to_measure_differ():
    replayed, measured = general_split()
    assert not {p.id for p in replayed} & {p.id for p in measured}
    assert len(replayed) == len(measured) == 20
    assert len({p.kind for p in measured}) >= 5


def test_perplexity_is_that_of_the_version_in_use(ctx):
    lm, text = ctx.companion.lm, general_text()[:600]
    base = perplexity(lm, text)
    assert general_perplexity(ctx) == base
    adapt(lm.model)
    assert general_perplexity(ctx) == perplexity(lm, text) != base


def test_an_adapter_must_change_the_served_logits(companion):
    with pytest.raises(AdapterError, match="exactly as the base"):
        companion.check_adapter_acts()
    adapt(companion.lm.model)
    assert companion.check_adapter_acts() > 0.01
    set_multiplier(companion.lm.model, 0.0)
    with pytest.raises(AdapterError):
        companion.check_adapter_acts()


def test_the_base_is_lent_and_given_back(companion):
    tokens = mx.array([[1, 50, 51, 52]])
    plain = np.array(companion.lm.model(tokens))
    adapt(companion.lm.model)
    set_multiplier(companion.lm.model, 0.5)
    adapted = np.array(companion.lm.model(tokens))
    with pytest.raises(KeyError), companion.as_base() as base:
        np.testing.assert_array_equal(np.array(base.model(tokens)), plain)
        raise KeyError
    np.testing.assert_array_equal(np.array(companion.lm.model(tokens)), adapted)
    assert not np.allclose(plain, adapted)


def drain(stream):
    while True:
        try:
            next(stream)
        except StopIteration as end:
            return end.value


def test_chat_and_gate_answer_alike(companion):
    companion.serve = ServeConfig(max_tokens=6, temperature=0.0)
    asked = "Why is the sky blue?"
    streamed = drain(companion.stream(asked))
    assert streamed == companion.reply_all([asked, "Who?"], seed=3)[0]
    assert streamed == generate(companion.lm, chat_messages(companion.profile, asked), max_tokens=6)
    assert companion.sampling(temperature=0.7).temperature == 0.7
    assert companion.sampling().top_k == companion.serve.top_k


def test_a_long_chat_forgets_its_beginning(companion):
    history = [(f"Question {n}: " + "tell me of the garden. " * 3, "Fine.") for n in range(12)]
    reply = drain(companion.stream("And now?", history, seed=0))
    assert 700 - 6 - 120 < reply.prompt_tokens <= 700 - 6
    kept = chat_messages(companion.profile, "And now?", history=history)
    while len(render(companion.lm, kept)) > 694:
        del kept[1:3]
    assert reply.prompt_tokens == len(render(companion.lm, kept))
    assert len(history) == 12, "the caller's list is its own"


WORDS = st.lists(st.sampled_from(["warm", "water", "tea", "leaf"]), min_size=1, max_size=6)


@given(st.lists(WORDS, min_size=1, max_size=6))
def test_diversity_counts_distinct_words_and_pairs(rows):
    samples = [good(f"Question {i}", " ".join(row)) for i, row in enumerate(rows)]
    found = diversity(_Encoding(), samples)
    count = sum(map(len, rows))
    pairs = {(row[i], row[i + 1]) for row in rows for i in range(len(row) - 1)}
    assert found["distinct_1"] == pytest.approx(len({w for row in rows for w in row}) / count)
    assert found["distinct_2"] == pytest.approx(len(pairs) / count)
    assert found["unique_share"] == len({tuple(row) for row in rows}) / len(rows)


class _Encoding:
    encoder = WordEncoder()


def test_similar_samples_of_one_prompt_are_noticed(ctx):
    ctx.encoder = WordEncoder()
    texts = {"a": ["warm water", "warm water"], "b": ["green leaves", "boiled rice"]}
    rows = [
        good(name, text, prompt_id=name, sample_index=i)
        for name, both in texts.items()
        for i, text in enumerate(both)
    ]
    found = diversity(ctx, add_samples(ctx, *rows))
    assert found["mean_similarity"] == pytest.approx(0.5)
    assert diversity(ctx, []) == {
        "distinct_1": 0.0, "distinct_2": 0.0, "unique_share": 0.0, "mean_similarity": 0.0,
    }  # fmt: skip
