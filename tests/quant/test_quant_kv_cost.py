"""The measured cost of a packed cache: against one forward pass, and in the right order."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import QuantizedKVCache
from tiny import tiny_llama

from mlx_companion.errors import ConfigError
from mlx_companion.models.kv_cache import KVBits
from mlx_companion.models.load import LanguageModel, load
from mlx_companion.quant.kv_cost import kv_cost

TEXTS = ["the cat sat on the mat and the dog ran off " * 8, "a b c"]


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return load(tiny_llama(tmp_path_factory.mktemp("m"), num_hidden_layers=2))


def test_the_plain_cache_is_one_forward_pass(lm: LanguageModel) -> None:
    (plain, same) = kv_cost(lm, TEXTS, bits=[KVBits(8, 8, recent=10**6)])
    row = lm.tokenizer.encode(TEXTS[0])
    logits = np.array(lm.model(mx.array([row[:-1]]))[0].astype(mx.float32), np.float64)
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    loss = -logs[np.arange(len(row) - 1), row[1:]].mean()
    assert plain.perplexity == pytest.approx(np.exp(loss), rel=1e-5)
    # The short text was left out, and an unpacked cache costs nothing.
    assert plain.tokens == same.tokens == len(row) - 1
    assert (plain.kl, plain.top1) == (0.0, 1.0)
    assert same.kl < 1e-9
    assert same.nbytes == plain.nbytes == plain.tokens * 2 * 2 * plain_width(lm) * 4


def plain_width(lm: LanguageModel) -> int:
    config = lm.config
    heads = config["num_attention_heads"]
    width = config.get("head_dim") or config["hidden_size"] // heads
    return width * config["num_key_value_heads"]


def test_fewer_bits_cost_more_and_hold_less(lm: LanguageModel) -> None:
    hows = [KVBits(b, b, 32, recent=0) for b in (8, 4, 2)]
    found = kv_cost(lm, TEXTS, bits=hows)
    kls = [cost.kl for cost in found]
    assert kls == sorted(kls)
    assert kls[0] == 0 < kls[1]
    sizes = [cost.nbytes for cost in found]
    assert sizes == sorted(sizes, reverse=True)
    assert [cost.bits for cost in found] == ["plain", "8", "4", "2"]


def test_other_caches_can_be_measured_beside(tmp_path: Path) -> None:
    lm = load(tiny_llama(tmp_path / "m", hidden_size=128, num_attention_heads=2))
    theirs = {"theirs": lambda model: [QuantizedKVCache(32, 4) for _ in model.layers]}
    _, ours, other = kv_cost(lm, TEXTS, bits=[KVBits(4, 4, 32)], others=theirs)
    assert other.bits == "theirs"
    assert ours.kl > 0
    assert other.kl > 0
    # Their scales are float32 here: 4 + 64 / 32 bits a number.
    width = plain_width(lm)
    assert other.bytes_per_token == pytest.approx(2 * 2 * width * 6 / 8, rel=0.01)


def test_texts_must_be_long_enough(lm: LanguageModel) -> None:
    with pytest.raises(ConfigError, match="more than 32 tokens"):
        kv_cost(lm, ["short"])
    with pytest.raises(ConfigError, match="kv bits are 7"):
        kv_cost(lm, TEXTS, bits=[7])
