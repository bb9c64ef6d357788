"""The packed key-value cache: against numpy, against mlx-lm's cache, and on every architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import architectures
import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.models.cache import KVCache, QuantizedKVCache, make_prompt_cache
from tiny import tiny_llama

import mlx_companion  # noqa: F401
from mlx_companion.errors import ConfigError, GenerationError
from mlx_companion.models.generation import generate, stream_generate
from mlx_companion.models.kv_cache import (
    KVBits,
    QuantizedCache,
    attending_to_packed,
    quantized_cache,
)
from mlx_companion.models.load import load


def rounded(x: np.ndarray, bits: int, group: int) -> np.ndarray:
    """Affine rounding by groups of the last axis, as its definition says, in float64."""
    x = x.astype(np.float16).astype(np.float64)
    shape = x.shape
    x = x.reshape(*shape[:-1], -1, group)
    low, high = x.min(-1, keepdims=True), x.max(-1, keepdims=True)
    step = np.maximum((high - low) / (2**bits - 1), 1e-12)
    return (np.round((x - low) / step) * step + low).reshape(shape)


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float) -> np.ndarray:
    """Causal attention (B, H, L, D) over (B, K, S, D), the last query at the last key."""
    repeats = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, repeats, 1), np.repeat(v, repeats, 1)
    scores = q @ k.swapaxes(-1, -2) * scale
    L, S = scores.shape[-2:]
    scores = np.where(np.arange(S)[None] <= np.arange(S - L, S)[:, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ v


def logits(model: Any, tokens: list[int], cache: Any, step: int) -> np.ndarray:
    found = []
    for at in range(0, len(tokens), step):
        with attending_to_packed(model):
            found.append(np.array(model(mx.array([tokens[at : at + step]]), cache=cache)[0]))
    return np.concatenate(found)


@pytest.mark.parametrize("width", [64, 80, 96, 20])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_what_is_kept_is_within_half_a_step_of_what_was_given(bits: int, width: int) -> None:
    rng = np.random.default_rng(bits * width)
    how = KVBits(bits, bits, 32, recent=8)
    cache = QuantizedCache(how)
    # A channel that is much larger than the others, as keys have them.
    keys = rng.normal(size=(1, 2, 71, width)) * np.where(np.arange(width) == 3, 30.0, 1.0)
    values = rng.normal(size=(1, 2, 71, width))
    for at in (0, 40, 41, 70):
        end = {0: 40, 40: 41, 41: 70, 70: 71}[at]
        cache.update_and_fetch(
            mx.array(keys[:, :, at:end], mx.float32), mx.array(values[:, :, at:end], mx.float32)
        )
    old_keys, old_values = cache._past(cache._keys, cache._values)
    assert old_keys.packed is not None
    found_keys = np.array(old_keys.joined(of_keys=True))
    found_values = np.array(old_values.joined())
    packed = 71 - old_keys.plain.shape[2]
    assert packed == 32
    want = rounded(keys[:, :, :packed].swapaxes(-1, -2), bits, 32).swapaxes(-1, -2)
    steps = (keys[:, :, :packed].max(2) - keys[:, :, :packed].min(2)) / (2**bits - 1)
    # MLX chooses its step slightly differently: both lie within half a step of the number.
    assert (np.abs(found_keys[:, :, :packed] - want) <= 1.1 * steps[:, :, None] + 2e-2).all()
    np.testing.assert_allclose(found_keys[:, :, packed:], keys[:, :, packed:], atol=1e-5)
    np.testing.assert_allclose(found_values[:, :, packed:], values[:, :, packed:], atol=1e-5)
    worst = np.abs(found_values[:, :, :packed] - values[:, :, :packed]).max()
    assert worst <= 8.0 / (2**bits - 1)


@pytest.mark.parametrize(("bits", "width"), [(6, 128), (5, 96), (4, 80)])
def test_widths_that_the_other_cache_cannot_take(bits: int, width: int) -> None:
    x = mx.random.normal((1, 2, 70, width), key=mx.random.key(0))
    with pytest.raises(ValueError, match=r"broadcast|divisible"):
        QuantizedKVCache(32, bits).update_and_fetch(x, x)
    cache = QuantizedCache(KVBits(bits, bits, 32, recent=0))
    cache.update_and_fetch(x, x)
    keys, values = cache.update_and_fetch(x[:, :, :1], x[:, :, :1])
    for past, full in ((keys, keys.joined(of_keys=True)), (values, values.joined())):
        assert past.packed is not None
        worst = mx.abs(full[:, :, :70] - x).max().item()
        assert 0 < worst < 8 / (2**bits - 1)


@settings(max_examples=40, deadline=None)
@given(
    bits=st.sampled_from([2, 4, 8]),
    heads=st.sampled_from([(2, 1), (4, 2), (3, 3)]),
    width=st.sampled_from([16, 32, 64, 80]),
    before=st.integers(33, 150),
    rows=st.integers(1, 12),
    seed=st.integers(0, 99),
)
def test_attention_reads_what_is_kept(
    bits: int, heads: tuple[int, int], width: int, before: int, rows: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    draw = lambda n, count: mx.array(rng.normal(size=(1, n, count, width)), mx.float32)  # noqa: E731
    cache = QuantizedCache(KVBits(bits, bits, 32, recent=0))
    cache.update_and_fetch(draw(heads[1], before), draw(heads[1], before))
    queries = draw(heads[0], rows)
    keys, values = cache.update_and_fetch(draw(heads[1], rows), draw(heads[1], rows))
    want = attention(
        np.array(queries, np.float64),
        np.array(keys.joined(of_keys=True), np.float64),
        np.array(values.joined(), np.float64),
        width**-0.5,
    )
    model = architectures.tiny_model("tinyllama")
    with attending_to_packed(model):
        module = __import__(type(model).__module__, fromlist=["x"])
        found = module.scaled_dot_product_attention(
            queries, keys, values, cache=cache, scale=width**-0.5,
            mask=None if rows == 1 else "causal",
        )  # fmt: skip
    np.testing.assert_allclose(np.array(found), want, atol=2e-5)


@pytest.mark.parametrize("name", sorted(architectures.OF_ALIAS))
def test_every_alias_reads_it(name: str) -> None:
    model = architectures.tiny_model(name)
    tokens = np.random.default_rng(0).integers(0, architectures.VOCABULARY, 60).tolist()
    want = logits(model, tokens, make_prompt_cache(model), 60)
    # Nothing to pack yet: the same numbers. Packed with 8 bits: nearly.
    plain = logits(model, tokens, quantized_cache(model, KVBits(8, 8, 32, recent=60)), 7)
    np.testing.assert_allclose(plain, want, atol=2e-4)
    cache = quantized_cache(model, KVBits(8, 8, 32, recent=0))
    packed = logits(model, tokens, cache, 7)
    assert any(isinstance(part, QuantizedCache) for part in cache)
    assert 0 < np.abs(packed - want).max() < 0.05 * np.abs(want).max()
    rough = logits(model, tokens, quantized_cache(model, KVBits(2, 2, 32, recent=0)), 7)
    assert np.abs(rough - want).mean() > 3 * np.abs(packed - want).mean()


@pytest.mark.parametrize("forgotten", [1, 5, 20, 70, 200])
def test_tokens_can_be_forgotten(forgotten: int) -> None:
    model = architectures.tiny_model("tinyllama")
    tokens = np.random.default_rng(1).integers(0, architectures.VOCABULARY, 100).tolist()
    how = KVBits(8, 8, 32, recent=4)
    cache = quantized_cache(model, how)
    logits(model, tokens, cache, 100)
    gone = [part.trim(forgotten) for part in cache]
    assert gone == [min(forgotten, 100)] * 2
    left = max(0, 100 - forgotten)
    assert [part.size() for part in cache] == [left] * 2
    fresh = quantized_cache(model, how)
    if left:
        logits(model, tokens[:left], fresh, 100)
    found, want = (logits(model, [5, 9, 2], one, 3) for one in (cache, fresh))
    # What was packed and unpacked again has been rounded; the rest is the same.
    np.testing.assert_allclose(found, want, atol=0.02 * np.abs(want).max())


def test_memory_is_what_the_bits_say() -> None:
    cache, plain = QuantizedCache(KVBits(4, 4, 64)), KVCache()
    assert cache.empty()
    rng = np.random.default_rng(0)
    for _ in range(8):
        x = mx.array(rng.normal(size=(1, 2, 512, 64)), mx.float16)
        cache.update_and_fetch(x, x)
        plain.update_and_fetch(x, x)
    packed = 4096 - cache._keys.shape[2]
    expected = 2 * 2 * 64 * (packed * 4.5 / 8 + (4096 - packed) * 2)
    assert cache.nbytes == expected
    assert cache.nbytes < 0.31 * 2 * plain.keys.nbytes
    assert not cache.empty()


def test_generation_with_few_bits(tmp_path: Path) -> None:
    lm = load(tiny_llama(tmp_path / "m", num_hidden_layers=2))
    prompt = "the cat sat on the mat " * 12
    want = generate(lm, prompt, max_tokens=30)
    assert generate(lm, prompt, max_tokens=30, kv_bits=KVBits(8, 8, recent=10**6)) == want
    rough = generate(lm, prompt, max_tokens=30, kv_bits="k8v8")
    assert len(rough.tokens) > 0
    cache = quantized_cache(lm.model, 4)
    first = generate(lm, prompt, max_tokens=4, prompt_cache=cache)
    assert cache[0].offset >= first.prompt_tokens


def test_layers_with_windows_stay_as_they_are() -> None:
    model = architectures.build("llama", **architectures.OTHERS["windows"][1])
    kinds = [type(part).__name__ for part in quantized_cache(model, 4)]
    assert kinds == ["RotatingKVCache", "QuantizedCache"]


class Nothing:
    """A model whose layers keep something of fixed size."""

    layers = (1, 2)

    def make_cache(self) -> list[Any]:
        return [object(), object()]


@pytest.mark.parametrize("given", [7, "k8", "4 bits", 0, -4, "k8v7", True, None, 4.0])
def test_bits_that_there_are_not(given: Any) -> None:
    with pytest.raises(ConfigError, match="kv bits are"):
        KVBits.of(given)


def test_bad_requests(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="group of 32 or 64"):
        KVBits(group_size=48)
    with pytest.raises(ConfigError, match="group of 32 or 64"):
        KVBits(recent=-1)
    with pytest.raises(ConfigError, match="nothing to pack"):
        quantized_cache(Nothing(), 4)  # type: ignore[arg-type]
    lm = load(tiny_llama(tmp_path / "m"))
    cache = make_prompt_cache(lm.model)
    with pytest.raises(GenerationError, match="kv_bits or a prompt_cache"):
        next(stream_generate(lm, "x", kv_bits=4, prompt_cache=cache))


def test_bits_are_written_short() -> None:
    assert [str(KVBits.of(x)) for x in (4, "8", "K8V4", KVBits(2, 3))] == ["4", "8", "k8v4", "k2v3"]
    assert KVBits(4, 4, 64).per_number == 4.5
    assert KVBits(8, 4, 32).per_number == 7.0
