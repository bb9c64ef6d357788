"""Replies against a loop over the full forward pass, mlx-lm, and each other."""

from __future__ import annotations

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from mlx_lm.models.cache import make_prompt_cache
from tiny import tiny_llama

from mlx_companion.errors import GenerationError, Stopped
from mlx_companion.models import generation
from mlx_companion.models.generation import Reply, batch_generate, generate, stream_generate
from mlx_companion.models.load import load
from mlx_companion.models.sampling import Sampling
from mlx_companion.runtime.monitor import Advice
from mlx_companion.runtime.stop import StopSwitch
from mlx_companion.text import Message

WARM = Sampling(temperature=1.0)
# Lengths from 1 to about 60 tokens; the first two share a long beginning, the last shares none.
RAGGED = [
    "She planted beans, peas and carrots in two long rows beside the wall.",
    "She planted beans, peas and carrots in two short rows.",
    "Why?",
    "How far is it from Porto, and when does the train leave? Write to me.",
    [5],
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("llama"), seed=3)


@pytest.fixture(scope="module")
def lm(folder):
    return load(folder)


@pytest.fixture
def own(folder):
    """A model whose tokenizer a test may change."""
    return load(folder)


def chat_tokens(lm, *messages):
    """The prompt as ChatML, written out here rather than by the template."""
    text = "".join(f"<|im_start|>{role}\n{said}<|im_end|>\n" for role, said in messages)
    return lm.tokenizer.encode(text + "<|im_start|>assistant\n", add_special_tokens=False)


def tokens_of(lm, prompt):
    return prompt if isinstance(prompt, list) else chat_tokens(lm, ("user", prompt))


def greedy_loop(lm, tokens, count):
    """The most likely next token of the whole sequence, `count` times, without a cache."""
    tokens = list(tokens)
    for _ in range(count):
        logits = np.array(lm.model(mx.array([tokens]))[0, -1])
        tokens.append(int(logits.argmax()))
    return tokens[-count:]


def ban(token):
    def processor(tokens, logits):
        return mx.where(mx.arange(logits.shape[-1]) == token, -mx.inf, logits)

    return processor


def drain(stream):
    pieces = []
    while True:
        try:
            pieces.append(next(stream))
        except StopIteration as end:
            return pieces, end.value


@pytest.mark.parametrize("prompt", RAGGED, ids=range(len(RAGGED)))
def test_greedy_takes_the_most_likely_token_each_time(lm, prompt):
    tokens = tokens_of(lm, prompt)
    reply = generate(lm, prompt, max_tokens=24)
    assert list(reply.tokens) == greedy_loop(lm, tokens, 24)
    assert reply.finish_reason == "length"
    assert reply.prompt_tokens == len(tokens)
    assert reply.text == lm.tokenizer.decode(list(reply.tokens)).strip()
    assert str(reply) == reply.text


def test_greedy_says_what_mlx_lm_says(lm):
    for prompt in RAGGED:
        tokens = tokens_of(lm, prompt)
        expected = mlx_lm.generate(*lm, tokens, max_tokens=30)
        assert generate(lm, prompt, max_tokens=30).text == expected.strip()


@pytest.mark.parametrize(
    ("prompts", "options"),
    [
        (RAGGED, {}),
        (RAGGED[:2], {}),
        (RAGGED[:1], {}),
        ([RAGGED[0]] * 3, {}),
        (RAGGED, {"max_rows": 2}),
        (RAGGED, {"system": "Answer in one or two short sentences, at most 40 words."}),
        (RAGGED, {"max_tokens": 1}),
        (RAGGED, {"sampling": Sampling(repetition_penalty=1.7)}),
        (RAGGED, {"sampling": Sampling(repetition_penalty=1.7, repetition_context=3)}),
        ([], {}),
    ],
    ids=[
        "ragged", "shared", "one", "same", "small batches", "system", "one token",
        "penalty", "short penalty", "none",
    ],
)  # fmt: skip
def test_batch_rows_equal_single_replies(lm, prompts, options):
    options = {"max_tokens": 24} | options
    alone = {k: v for k, v in options.items() if k != "max_rows"}
    assert batch_generate(lm, prompts, **options) == [generate(lm, p, **alone) for p in prompts]


def test_batch_rows_equal_single_replies_that_stop_by_themselves(own):
    # Tokens that the model really says, at different places of different rows, become its ends.
    said = [generate(own, prompt, max_tokens=24).tokens for prompt in RAGGED]
    ends = {said[0][5], said[1][11], said[3][0]}
    own.tokenizer.eos_token_ids = ends
    rows = batch_generate(own, RAGGED, max_tokens=24)
    assert rows == [generate(own, prompt, max_tokens=24) for prompt in RAGGED]
    for row, tokens in zip(rows, said, strict=True):
        cut = min((i for i, token in enumerate(tokens) if token in ends), default=24)
        assert row.tokens == tokens[:cut]
        assert row.finish_reason == ("stop" if cut < 24 else "length")
    assert {row.finish_reason for row in rows} == {"stop", "length"}


def test_rows_that_have_ended_cost_nothing_more(own):
    said = generate(own, RAGGED[0], max_tokens=24).tokens
    own.tokenizer.eos_token_ids = {said[0]}
    steps = []
    rows = batch_generate(
        own,
        RAGGED[:3],
        max_tokens=24,
        logits_processors=[lambda tokens, logits: steps.append(1) or logits],
    )
    assert rows[0].tokens == ()
    # The next token is computed while one is looked at.
    assert len(steps) <= sum(len(row.tokens) + 2 for row in rows)


@pytest.mark.parametrize("place", [0, 8, 23])
def test_an_end_token_at_the_limit_is_an_end(own, place):
    said = generate(own, RAGGED[0], max_tokens=24).tokens
    own.tokenizer.eos_token_ids = {said[place]}
    place = said.index(said[place])
    for limit, reason in ((place + 1, "stop"), (place, "length")):
        if limit == 0:
            continue
        single = generate(own, RAGGED[0], max_tokens=limit)
        batch = batch_generate(own, [RAGGED[0], RAGGED[2]], max_tokens=limit)
        assert single == batch[0]
        assert single.finish_reason == reason
        assert single.tokens == said[:place]


def test_text_stops_cut_single_replies_and_rows_alike(lm):
    full = [generate(lm, prompt, max_tokens=40).text for prompt in RAGGED]
    stops = [full[0][6:9], full[1][12:14]]
    rows = batch_generate(lm, RAGGED, max_tokens=40, stop=stops)
    assert rows == [generate(lm, prompt, max_tokens=40, stop=stops) for prompt in RAGGED]
    for row, text in zip(rows, full, strict=True):
        assert not any(stop in row.text for stop in stops)
        assert text.startswith(row.text)
        assert (row.finish_reason == "stop") == any(stop in text for stop in stops)
    at = min(full[0].index(stop) for stop in stops if stop in full[0])
    assert rows[0].text == full[0][:at].strip()
    assert len(rows[0].tokens) < 40


def test_streamed_pieces_are_the_reply(lm):
    for prompt in RAGGED:
        pieces, reply = drain(stream_generate(lm, prompt, max_tokens=40))
        assert isinstance(reply, Reply)
        assert all(pieces)
        assert len(pieces) > 5
        assert "".join(pieces).strip() == reply.text
        assert reply == generate(lm, prompt, max_tokens=40)


def test_seeds_repeat_and_differ(lm):
    def texts(seed):
        single = generate(lm, "Why?", max_tokens=8, sampling=WARM, seed=seed)
        rows = batch_generate(lm, RAGGED, max_tokens=8, sampling=WARM, seed=seed, max_rows=3)
        return [single, *rows]

    assert texts(1) == texts(1)
    for seed in (2, -1, 2**80):
        assert texts(seed) == texts(seed)
        assert all(a != b for a, b in zip(texts(1), texts(seed), strict=True))
    for rows in (1, 2):
        twice = batch_generate(
            lm, ["Why?"] * 2, max_tokens=12, sampling=WARM, seed=1, max_rows=rows
        )
        assert twice[0] != twice[1], "rows of one prompt draw for themselves"


def test_without_a_seed_the_generator_goes_on(lm):
    mx.random.seed(0)
    first = generate(lm, "Why?", max_tokens=12, sampling=WARM)
    assert generate(lm, "Why?", max_tokens=12, sampling=WARM) != first


def test_logits_processors_act_on_single_replies_and_rows(lm):
    plain = generate(lm, RAGGED[0], max_tokens=24).tokens
    place = next(i for i in range(3, 24) if plain[i] not in plain[:i])
    banned = plain[place]
    options = {"max_tokens": 24, "logits_processors": [ban(banned)]}
    rows = batch_generate(lm, RAGGED, **options)
    assert all(banned not in row.tokens for row in rows)
    assert rows[0].tokens[:place] == plain[:place]
    assert rows == [generate(lm, prompt, **options) for prompt in RAGGED]


def test_logits_processors_see_prompt_and_reply(lm):
    contexts = []

    def look(tokens, logits):
        contexts.append(mx.array(tokens).tolist())
        return logits

    reply = batch_generate(lm, RAGGED[:2], max_tokens=4, logits_processors=[look])[0]
    whole = [*chat_tokens(lm, ("user", RAGGED[0])), *reply.tokens]
    assert whole[:-1] in contexts
    assert whole[:-4] in contexts, "the shared beginning belongs to the context"


def test_repetition_penalty_divides_what_was_said(lm):
    tokens, penalty = chat_tokens(lm, ("user", "Why?")), 1.7
    sampling = Sampling(repetition_penalty=penalty, repetition_context=1000)
    reply = generate(lm, "Why?", max_tokens=12, sampling=sampling)
    for expected in reply.tokens:
        logits = np.array(lm.model(mx.array([tokens]))[0, -1])
        seen = np.unique(tokens)
        logits[seen] = np.where(logits[seen] < 0, logits[seen] * penalty, logits[seen] / penalty)
        assert logits.argmax() == expected
        tokens = [*tokens, expected]
    assert reply != generate(lm, "Why?", max_tokens=12)


def test_a_shared_prefix_gives_the_logits_of_none(lm, monkeypatch):
    def first_logits(least_shared):
        seen = []
        monkeypatch.setattr(generation, "MIN_SHARED_PREFIX", least_shared)
        watch = [lambda tokens, logits: seen.append(logits) or logits]
        batch_generate(lm, RAGGED[:2], max_tokens=3, logits_processors=watch)
        return np.array(mx.concatenate(seen))

    calls = []
    shared = generation._shared_prefix
    monkeypatch.setattr(
        generation, "_shared_prefix", lambda *given: calls.append(shared(*given)) or calls[-1]
    )
    with_prefix, without = first_logits(8), first_logits(10_000)
    assert len(calls[0].tokens) > 8
    assert calls[1].tokens == []
    np.testing.assert_allclose(with_prefix, without, atol=1e-4)


def test_identical_prompts_keep_a_token_of_their_own(lm):
    rows = [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]] * 2
    assert generation._shared_prefix(lm, rows).tokens == list(range(1, 10))
    assert generation._shared_prefix(lm, [*rows, [1, 2]]).tokens == []


def test_prompt_forms(lm):
    text = "What is the capital of Portugal?"
    asked = chat_tokens(lm, ("user", text))
    message = {"role": "user", "content": text}
    expected = generate(lm, asked, max_tokens=8)
    for same in (text, [message], [Message("user", text)], (message,)):
        assert generate(lm, same, max_tokens=8) == expected
    told = chat_tokens(lm, ("system", "Be calm."), ("user", text))
    expected = generate(lm, told, max_tokens=8)
    assert expected.prompt_tokens == len(told)
    assert generate(lm, text, system="Be calm.", max_tokens=8) == expected
    own = [{"role": "system", "content": "Be calm."}, message]
    assert generate(lm, own, system="Be loud.", max_tokens=8) == expected
    assert batch_generate(lm, [text, asked], system="Be calm.", max_tokens=8)[0] == expected


def test_a_model_without_a_chat_template_gets_the_plain_text(own):
    own.tokenizer.has_chat_template = False
    expected = greedy_loop(own, own.tokenizer.encode("Rain fell on"), 6)
    assert list(generate(own, "Rain fell on", max_tokens=6).tokens) == expected


def test_a_prompt_cache_goes_on_where_it_was(lm):
    cache = make_prompt_cache(lm.model)
    first = generate(lm, [1, 50, 51], max_tokens=5, prompt_cache=cache)
    second = generate(lm, [60], max_tokens=5, prompt_cache=cache)
    expected = greedy_loop(lm, [1, 50, 51, *first.tokens, 60], 5)
    assert list(second.tokens) == expected


@pytest.mark.parametrize(
    ("prompt", "options", "told"),
    [
        ("", {}, "empty"),
        (" \n\t ", {}, "empty"),
        ([], {}, "empty"),
        ([{"role": "user", "content": " "}], {}, "empty"),
        ("x" * 100_000, {}, "100,016 tokens"),
        ([5] * 513, {}, "513 tokens"),
        ([5, -1], {}, "token -1 does not exist"),
        ([5, 10**6], {}, "token 1000000 does not exist"),
        ([5, 3.5], {}, "role"),
        ([{"role": "user"}], {}, "content"),
        ([{"role": "user", "content": 3}], {}, "content"),
        (42, {}, "not int"),
        (None, {}, "not NoneType"),
        ("Why?", {"max_tokens": 0}, "max_tokens=0"),
        ("Why?", {"max_tokens": -3}, "max_tokens=-3"),
        ("Why?", {"max_tokens": 2.5}, "max_tokens=2.5"),
        ("Why?", {"max_tokens": 512}, "512 more"),
        ("Why?", {"stop": "word"}, "'word'"),
        ("Why?", {"stop": ["a", ""]}, "non-empty"),
        ("Why?", {"stop": [1]}, "stop"),
        ("Why?", {"stop": None}, "stop"),
    ],
    ids=lambda value: repr(value)[:24],
)
@pytest.mark.filterwarnings("ignore:Token indices sequence length")
def test_what_cannot_be_used_is_refused(lm, prompt, options, told):
    with pytest.raises(GenerationError, match=told):
        generate(lm, prompt, **options)
    with pytest.raises(GenerationError, match=told):
        batch_generate(lm, ["fine", prompt], **options)


def test_a_batch_with_a_bad_prompt_generates_nothing(lm, monkeypatch):
    monkeypatch.setattr(generation, "_decode_rows", lambda *given: pytest.fail("decoded"))
    with pytest.raises(GenerationError, match="empty"):
        batch_generate(lm, ["fine", " "], max_rows=1)
    with pytest.raises(GenerationError, match="max_rows=0"):
        batch_generate(lm, ["fine"], max_rows=0)


def rows_decoded(monkeypatch):
    """Records the size of each batch that is decoded."""
    sizes = []
    decode = generation._decode_rows
    monkeypatch.setattr(
        generation, "_decode_rows", lambda *given: sizes.append(len(given[1])) or decode(*given)
    )
    return sizes


def test_the_kill_switch_is_heard_between_batches(lm, monkeypatch):
    sizes, switch = rows_decoded(monkeypatch), StopSwitch()

    def ask(tokens, logits):
        switch.request("enough")
        return logits

    with pytest.raises(Stopped, match="enough"):
        batch_generate(lm, RAGGED, max_tokens=3, max_rows=2, switch=switch, logits_processors=[ask])
    assert sizes == [2]


def test_the_kill_switch_ends_a_stream_between_tokens(lm):
    switch = StopSwitch()
    stream = stream_generate(lm, "Why?", max_tokens=40, switch=switch)
    first = next(stream)
    switch.request("enough")
    pieces, reply = drain(stream)
    assert 0 < len(reply.tokens) < 10
    assert reply.finish_reason == "length"
    assert (first + "".join(pieces)).strip() == reply.text


class FakeMonitor:
    """Advises these scales in turn, and remembers with which switch it was asked."""

    def __init__(self, *scales):
        self.scales = list(scales)
        self.asked = []

    def consult(self, stop):
        self.asked.append(stop)
        return Advice(self.scales.pop(0) if self.scales else 1.0)


def test_a_monitor_under_pressure_lowers_the_rows(lm, monkeypatch):
    sizes, switch = rows_decoded(monkeypatch), StopSwitch()
    prompts = [f"Number {n}" for n in range(9)]
    monitor = FakeMonitor(0.5, 0.01, 1.0)
    options = {"max_tokens": 4, "max_rows": 4}
    rows = batch_generate(lm, prompts, monitor=monitor, switch=switch, **options)
    assert sizes == [2, 1, 4, 2]
    assert monitor.asked == [switch] * 4
    assert rows == [generate(lm, prompt, max_tokens=4) for prompt in prompts]
