"""Replies of byte models: what is written, how it is cut, and that a batch changes nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from blt_writing import flat, full_logits, greedy, patched, with_likely_end, without_end
from hypothesis import given
from hypothesis import strategies as st

from mlx_companion.blt import generation
from mlx_companion.blt.byte_lm import ByteLM
from mlx_companion.blt.cache import make_cache
from mlx_companion.blt.config import BlockConfig, ByteLMConfig
from mlx_companion.blt.constraints import regex
from mlx_companion.blt.drawing import Chooser
from mlx_companion.blt.generation import batch_generate, generate, row_seed, stream_generate
from mlx_companion.blt.replies import ByteOut, ByteReply, stop_bytes
from mlx_companion.errors import ConfigError, GenerationError, Stopped
from mlx_companion.models.sampling import Sampling
from mlx_companion.runtime.stop import StopSwitch
from mlx_companion.text.byte_text import EOS, OFFSET, encode_bytes

WARM = Sampling(temperature=1.0)


pytestmark = pytest.mark.usefixtures("uncompiled")


@pytest.fixture(scope="module")
def model() -> Any:
    """Writes on until it is cut."""
    return without_end(patched())


def streamed(model: Any, prompt: Any, **options: Any) -> tuple[list[str], ByteReply]:
    """The pieces of a stream, and its reply."""
    pieces = []
    stream = stream_generate(model, prompt, **options)
    while True:
        try:
            pieces.append(next(stream))
        except StopIteration as end:
            return pieces, end.value


@pytest.mark.parametrize("prompt", ["", "Hello", "Grüße ✨", b"\x00\xff\x00"])
def test_greedy_replies_equal_whole_forwards(model: Any, prompt: Any) -> None:
    reply = generate(model, prompt, max_bytes=25)
    assert reply.data == greedy(model, prompt, 25)
    assert reply.text == reply.data.decode("utf-8", "replace") == str(reply)
    assert reply.finish_reason == "length"
    assert reply.prompt_bytes == len(prompt.encode() if isinstance(prompt, str) else prompt)
    assert reply.drafts is None


@pytest.mark.parametrize("mode", ["space", "flat"])
def test_other_models(mode: Any) -> None:
    model: Any = without_end(flat() if mode == "flat" else patched(mode))
    assert generate(model, "ab", max_bytes=20).data == greedy(model, "ab", 20)


def test_pieces_are_whole_characters(model: Any) -> None:
    for seed in range(5):
        pieces, reply = streamed(model, "x", max_bytes=60, sampling=WARM, seed=seed)
        assert "".join(pieces) == reply.text == reply.data.decode("utf-8", "replace")
        assert len(reply.data) == 60
        assert all(pieces)


def test_only_bytes_and_the_end_are_written() -> None:
    chooser = Chooser(Sampling(temperature=3.0))
    row = chooser.row(100, 0, [])
    # Other specials, and ids behind the bytes, are far likelier than any byte.
    logits = np.zeros((1, 300), np.float32)
    logits[0, [0, 1, 3, 260, 299]] = 50.0
    drawn = {int(chooser(mx.array(logits), [row])[0]) for _ in range(300)}
    assert min(drawn) >= EOS
    assert not drawn & {3, 260, 299}
    assert int(Chooser(Sampling())(mx.array(logits), [row])[0]) == EOS


def test_the_end_of_a_text() -> None:
    model = with_likely_end(patched())
    texts = (f"{number}" for number in range(200))
    prompt = next(text for text in texts if 1 < len(greedy(model, text, 40)) < 40)
    reply = generate(model, prompt, max_bytes=40)
    assert (reply.data, reply.finish_reason) == (greedy(model, prompt, 40), "stop")


@pytest.mark.parametrize("cut", [1, 2, 3, 5])
def test_stops_end_the_reply_and_are_left_out(model: Any, cut: int) -> None:
    whole = generate(model, "abc", max_bytes=40, sampling=WARM, seed=3).data
    stop = whole[20 : 20 + cut]
    pieces, reply = streamed(model, "abc", max_bytes=40, sampling=WARM, seed=3, stop=[stop])
    assert reply.data == whole[: whole.index(stop)]
    assert reply.finish_reason == "stop"
    assert "".join(pieces) == reply.text


def test_a_stop_that_does_not_come(model: Any) -> None:
    whole = generate(model, "abc", max_bytes=30)
    begun = whole.data[-3:] + b"never"
    reply = generate(model, "abc", max_bytes=30, stop=[begun, "nor this"])
    assert (reply.data, reply.finish_reason) == (whole.data, "length")


@given(
    data=st.lists(st.sampled_from(b"ab\xc3\xbc"), max_size=30).map(bytes),
    stops=st.lists(st.lists(st.sampled_from(b"ab\xc3\xbc"), min_size=1, max_size=4), max_size=3),
)
def test_stops_split_over_pieces(data: bytes, stops: list[list[int]]) -> None:
    wanted = [bytes(stop) for stop in stops]
    out, pieces = ByteOut(wanted), []
    for byte in data:
        if out.finished:
            break
        pieces.append(out.add(byte + OFFSET))
        # Nothing is given out that a stop may still take away.
        assert data.decode("utf-8", "replace").startswith("".join(pieces))
    pieces.append(out.close())
    ends = [data.index(stop) + len(stop) for stop in wanted if stop in data]
    expected = data
    if ends:
        seen = data[: min(ends)]
        expected = seen[: min(seen.index(stop) for stop in wanted if stop in seen)]
    assert out.data == expected
    assert "".join(pieces) == out.text == expected.decode("utf-8", "replace")
    assert out.finished == bool(ends)


def test_stops_must_be_a_list_of_strings() -> None:
    for bad in ("abc", b"abc", [""], [b""], [3], None):
        with pytest.raises(GenerationError, match="list of non-empty strings"):
            stop_bytes(bad)  # type: ignore[arg-type]
    assert stop_bytes(["ü", b"\xff"]) == (b"\xc3\xbc", b"\xff")


def test_a_seed_repeats_and_others_differ(model: Any) -> None:
    def write(seed: int | None) -> bytes:
        return generate(model, "s", max_bytes=20, sampling=WARM, seed=seed).data

    assert write(1) == write(1)
    assert len({write(1), write(2), write(None), write(None)}) == 4


def test_draws_follow_the_probabilities() -> None:
    logits = mx.array(np.linspace(-2.0, 2.0, 260, dtype=np.float32)[None])
    chooser = Chooser(Sampling(temperature=0.7))
    row = chooser.row(10**6, 0, [])
    drawn = np.array([int(chooser(logits, [row])[0]) for _ in range(3000)])
    weights = np.exp(np.array(logits[0], dtype=np.float64) / 0.7)
    weights[[0, 1, 3]] = 0
    weights /= weights.sum()
    for low, high in ((0, 100), (100, 200), (200, 260)):
        share = ((drawn >= low) & (drawn < high)).mean()
        assert abs(share - weights[low:high].sum()) < 0.03
    assert not set(drawn.tolist()) & {0, 1, 3}


def test_filters_leave_the_likeliest() -> None:
    logits = np.full((1, 260), -9.0, np.float32)
    logits[0, [10, 20, 30]] = [3.0, 2.0, 1.0]

    def drawn(**settings: Any) -> set[int]:
        chooser = Chooser(Sampling(temperature=2.0, **settings))
        row = chooser.row(10**6, 0, [])
        return {int(chooser(mx.array(logits), [row])[0]) for _ in range(60)}

    assert drawn(top_k=1) == {10}
    assert drawn(top_k=2) == {10, 20}
    assert drawn(top_p=0.6) == {10}
    assert drawn(min_p=0.2) == {10, 20}


def test_penalties_and_processors_see_the_bytes(model: Any) -> None:
    seen = []

    def forbid_repeats(ids: mx.array, logits: mx.array) -> mx.array:
        seen.append(ids.tolist())
        return mx.where(mx.arange(logits.shape[-1]) == ids[-1], -mx.inf, logits)

    reply = generate(model, "ab", max_bytes=12, logits_processors=[forbid_repeats])
    written = encode_bytes(reply.data, bos=False).tolist()
    assert all(a != b for a, b in zip(written[1:], written, strict=False))
    assert seen == [[1, 101, 102, *written[:n]] for n in range(12)]
    penalized = Sampling(repetition_penalty=3.0)
    assert len(set(generate(model, "ab", max_bytes=25, sampling=penalized).data)) > 15


@pytest.mark.parametrize("sampling", [Sampling(), WARM], ids=["greedy", "warm"])
def test_a_batch_changes_no_reply(sampling: Sampling) -> None:
    model = with_likely_end(patched())
    prompts = ["", "Hello there", b"\xf0\x9f", "a\x00b", "Zug"]
    replies = batch_generate(model, prompts, max_bytes=30, sampling=sampling, seed=7, stop=["e"])
    for row, (prompt, reply) in enumerate(zip(prompts, replies, strict=True)):
        seed = row_seed(7, row)
        alone = generate(model, prompt, max_bytes=30, sampling=sampling, seed=seed, stop=["e"])
        assert reply == alone
    seeds = [row_seed(7, row) for row in range(5)]
    again = batch_generate(
        model, prompts, max_bytes=30, sampling=sampling, seed=seeds, stop=["e"], max_rows=2
    )
    assert again == replies


def test_rows_leave_the_batch(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = []
    original = generation.advance

    def counted(model: Any, cache: Any, ids: Any) -> mx.array:
        rows.append(cache.rows)
        return original(model, cache, ids)

    monkeypatch.setattr(generation, "advance", counted)
    first = greedy(model, "first", 12)
    stop = first[5:8]
    replies = batch_generate(model, ["first", "second"], max_bytes=12, stop=[stop])
    ends = [len(reply.data) + len(stop) * (reply.finish_reason == "stop") for reply in replies]
    assert min(ends) < 12
    assert sum(rows) == sum(ends)


def test_no_prompts_and_no_bytes(model: Any) -> None:
    assert batch_generate(model, []) == []
    empty = ByteReply("", b"", "length", 3)
    assert generate(model, "abc", max_bytes=0) == empty
    assert batch_generate(model, ["abc"], max_bytes=0) == [empty]
    assert len(generate(model, "", max_bytes=1).data) == 1


@pytest.mark.parametrize("kind", ["patched", "flat"])
def test_a_conversation_goes_on(kind: str) -> None:
    model: Any = without_end(patched() if kind == "patched" else flat())
    cache = make_cache(model)
    first = generate(model, "Hi ", max_bytes=10, cache=cache)
    assert cache.positions.tolist() == [14]
    second = generate(model, " and? ", max_bytes=10, cache=cache)
    assert second.data == greedy(model, b"Hi " + first.data + b" and? ", 10)
    assert second.prompt_bytes == 6
    third = generate(model, "", max_bytes=5, cache=cache)
    assert third.data == greedy(model, b"Hi " + first.data + b" and? " + second.data, 5)


def test_a_conversation_holds_no_stops(model: Any) -> None:
    whole = generate(model, "abc", max_bytes=40)
    cache = make_cache(model)
    reply = generate(model, "abc", max_bytes=40, stop=[whole.data[20:23]], cache=cache)
    assert reply.finish_reason == "stop"
    assert cache.positions.tolist() == [4 + len(reply.data)]
    expected = full_logits(model, encode_bytes(b"abc" + reply.data)[None])[:, -1]
    assert np.abs(np.array(cache.logits) - expected).max() < 2e-5


def test_a_stream_that_is_left(model: Any) -> None:
    cache = make_cache(model)
    stream = stream_generate(model, "abc", max_bytes=40, cache=cache)
    got = next(stream) + next(stream)
    stream.close()
    held = int(cache.positions[0]) - 4
    assert 2 <= held <= 8
    assert greedy(model, "abc", held).decode("utf-8", "replace").startswith(got)


def test_a_switch_ends_a_reply(model: Any) -> None:
    switch = StopSwitch()
    stream = stream_generate(model, "abc", max_bytes=40, sampling=WARM, seed=0, switch=switch)
    first = next(stream)
    switch.request("enough")
    rest = list(stream)
    assert len("".join([first, *rest])) < 10
    with pytest.raises(Stopped):
        batch_generate(model, ["a"], switch=switch)


def test_constraints_are_met_within_the_bytes() -> None:
    model = patched()
    constraint = regex(r"[a-c]{2,5}(\.[0-9]+)?")
    for seed in range(6):
        reply = generate(model, "x", max_bytes=7, sampling=WARM, seed=seed, constraint=constraint)
        assert constraint.accepts(reply.data)
        assert reply.finish_reason == "stop"
    replies = batch_generate(model, ["x", "yy"], max_bytes=4, constraint=constraint, seed=1)
    assert all(constraint.accepts(reply.data) for reply in replies)
    with pytest.raises(ConfigError, match="row 0 may write 1"):
        generate(model, "x", max_bytes=1, constraint=constraint)


def test_prompts_and_options_that_cannot_be_used(model: Any) -> None:
    small = patched("space")
    small.config = replace(small.config, context=30)
    with pytest.raises(GenerationError, match="trained on texts of 30"):
        generate(small, "x" * 20, max_bytes=20)
    assert len(generate(small, "x" * 20, max_bytes=9).data) <= 9
    with pytest.raises(GenerationError, match="2 seeds for 1 prompts"):
        batch_generate(model, ["a"], seed=[1, 2])
    with pytest.raises(GenerationError, match="max_rows=0"):
        batch_generate(model, ["a"], max_rows=0)
    with pytest.raises(GenerationError, match="the prompt is int"):
        generate(model, 3)  # type: ignore[arg-type]
    for bad in (-1, 2.5, None):
        with pytest.raises(GenerationError, match="max_bytes"):
            generate(model, "a", max_bytes=bad)
    with pytest.raises(GenerationError, match="2 rows"):
        generate(model, "a", cache=make_cache(model, 2))
    with pytest.raises(GenerationError, match="margin=11"):
        generate(model, "a", cache=make_cache(model, margin=4), stop=["0123456789"])
    tokens = ByteLM(ByteLMConfig(BlockConfig(8, 1, 1, 8), vocabulary=100))
    with pytest.raises(GenerationError, match="has 100 ids"):
        generate(tokens, "a")


def test_the_end_is_kept_out_of_the_cache() -> None:
    model = patched()
    head = np.array(model.lm_head.weight)
    head[EOS] = 0
    model.lm_head.weight = mx.array(head)
    cache = make_cache(model)
    generate(model, "abc", max_bytes=3, cache=cache)
    held = int(cache.positions[0])

    class Ends:
        """Allows nothing but the end."""

        def start(self) -> int:
            return 0

        def allowed_within(self, state: Any, budget: int | None) -> np.ndarray:
            return np.arange(260) == EOS

        def advance(self, state: Any, next_id: int) -> int:
            return 0

    reply = generate(model, "", max_bytes=9, cache=cache, constraint=Ends())
    assert (reply.data, reply.finish_reason) == (b"", "stop")
    assert cache.positions.tolist() == [held]
