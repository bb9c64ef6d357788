"""Self-speculation writes what greedy decoding writes, and its figures are right."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from blt_writing import flat, full_logits, patched, with_likely_end, without_end

from mlx_companion.blt import speculation
from mlx_companion.blt.cache import make_cache
from mlx_companion.blt.constraints import regex
from mlx_companion.blt.generation import generate, stream_generate
from mlx_companion.blt.replies import Drafts
from mlx_companion.errors import GenerationError
from mlx_companion.models.sampling import Sampling
from mlx_companion.text.byte_text import encode_bytes

PROMPTS = ["", "a", "Hello world", "Straße", "0101", "   ", "x\x00y", "The end."]


pytestmark = pytest.mark.usefixtures("uncompiled")


@pytest.fixture(scope="module")
def model() -> Any:
    """Writes on until it is cut."""
    return without_end(patched())


@pytest.mark.parametrize("length", [1, 2, 7, 16])
def test_output_is_that_of_greedy_decoding(model: Any, length: int) -> None:
    for prompt in PROMPTS:
        plain = generate(model, prompt, max_bytes=40)
        drafted = generate(model, prompt, max_bytes=40, speculate=length)
        assert drafted.data == plain.data
        assert drafted.finish_reason == plain.finish_reason


@pytest.mark.parametrize("mode", ["monotonic", "combined", "space", "static", "byte"])
def test_every_patching_mode(mode: Any) -> None:
    model = patched(mode, max_length=6)
    for prompt in PROMPTS[:4]:
        plain = generate(model, prompt, max_bytes=30)
        assert generate(model, prompt, max_bytes=30, speculate=5).data == plain.data


def test_figures(model: Any) -> None:
    drafts = generate(model, "Hello", max_bytes=40, speculate=4).drafts
    assert drafts is not None
    assert drafts.drafted == 3 * drafts.rounds
    assert 0 <= drafts.accepted <= drafts.drafted
    # Every round gives its first byte and what was accepted.
    assert 40 <= drafts.rounds + drafts.accepted < 44
    assert drafts.rate == drafts.accepted / drafts.drafted
    assert Drafts().rate == 0.0


def test_drafts_are_always_right_where_patches_do_not_matter() -> None:
    model = without_end(patched())
    for crossing in model.model.local_decoder.cross_attn_layers:
        crossing.o_proj.weight = mx.zeros_like(crossing.o_proj.weight)
    drafts = generate(model, "Hello", max_bytes=40, speculate=8).drafts
    assert drafts is not None
    assert drafts.rate == 1.0
    assert drafts.rounds == 5


def test_close_decisions_are_made_again_one_by_one(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = generate(model, "tie", max_bytes=30).data
    redone = []
    original = speculation.advance

    def counted(*arguments: Any) -> mx.array:
        redone.append(1)
        return original(*arguments)

    monkeypatch.setattr(speculation, "advance", counted)
    # All decisions count as close: every byte is done alone.
    monkeypatch.setattr(speculation, "_CLOSE", 1e9)
    reply = generate(model, "tie", max_bytes=30, speculate=6)
    assert reply.data == plain
    assert len(redone) == 30
    monkeypatch.setattr(speculation, "_CLOSE", -1.0)
    monkeypatch.setattr(speculation, "_NEAR", 1e9)
    assert generate(model, "tie", max_bytes=30, speculate=6).data == plain
    assert len(redone) == 60


def test_latent_steps_are_shared(model: Any) -> None:
    cache = make_cache(model)
    generate(model, "Hello", max_bytes=30, speculate=6, cache=cache)
    assert cache.patches is not None
    prompt = encode_bytes("Hello")
    closed = np.array(model.patching(mx.array(prompt[None])).closes).sum()
    # Patches of drafts that were wrong are computed too, never fewer.
    assert cache.latent_rows >= cache.patches.closed[0] - closed


def test_the_cache_ends_with_the_reply(model: Any) -> None:
    whole = generate(model, "abc", max_bytes=40).data
    stop = whole[17:19]
    cache = make_cache(model)
    reply = generate(model, "abc", max_bytes=40, speculate=9, stop=[stop], cache=cache)
    assert reply.data == whole[: whole.index(stop)]
    ids = encode_bytes(b"abc" + reply.data)
    assert cache.positions.tolist() == [len(ids)]
    assert np.abs(np.array(cache.logits) - full_logits(model, ids[None])[:, -1]).max() < 2e-5
    assert "".join(stream_generate(model, "abc", max_bytes=40, speculate=9, stop=[stop])) == str(
        reply
    )


def test_the_end_of_a_text_among_drafts() -> None:
    model = with_likely_end(patched())
    ended = 0
    for number in range(14):
        plain = generate(model, f"{number}", max_bytes=30)
        assert generate(model, f"{number}", max_bytes=30, speculate=6).data == plain.data
        ended += plain.finish_reason == "stop"
    assert ended > 3


def test_what_speculation_cannot_be_combined_with(model: Any) -> None:
    for options in (
        {"sampling": Sampling(temperature=1.0)},
        {"sampling": Sampling(repetition_penalty=2.0)},
        {"constraint": regex("a+")},
        {"logits_processors": [lambda ids, logits: logits]},
    ):
        with pytest.raises(GenerationError, match="greedy sampling only"):
            generate(model, "a", speculate=3, **options)
    with pytest.raises(GenerationError, match="flat model"):
        generate(flat(), "a", speculate=3)
    with pytest.raises(GenerationError, match="margin="):
        generate(model, "a", speculate=30, cache=make_cache(model, margin=8))
    for bad in (-1, 1.5):
        with pytest.raises(GenerationError, match="speculate="):
            generate(model, "a", speculate=bad)
