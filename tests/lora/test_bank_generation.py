"""Batches with an adapter per row: the tokens of each adapter alone, with and without caches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from tiny import CORPUS, tiny_llama

from mlx_companion.errors import AdapterError, GenerationError
from mlx_companion.lora import (
    AdapterBank,
    LoraConfig,
    PromptCaches,
    adapter_parameters,
    attach,
    load_parameters,
)
from mlx_companion.models.generation import Reply, generate
from mlx_companion.models.load import LanguageModel, load

CONFIGS = {
    "tutor": LoraConfig(rank=4, alpha=8.0),
    "poet": LoraConfig(rank=6, alpha=6.0, targets=("v_proj", "mlp.*")),
}
LENGTH = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama"), seed=3)


def adapted(folder: Path, name: str | None, seed: int = 0) -> LanguageModel:
    lm = load(folder)
    if name is not None:
        attach(lm.model, CONFIGS[name])
        keys = iter(mx.random.split(mx.random.key(seed), 200))
        weights = adapter_parameters(lm.model)
        load_parameters(
            lm.model,
            {n: 0.3 * mx.random.normal(w.shape, key=next(keys)) for n, w in weights.items()},
        )
    return lm


@pytest.fixture
def served(folder: Path) -> tuple[LanguageModel, AdapterBank]:
    lm = load(folder)
    bank = AdapterBank(lm.model, base_sha256=lm.base_sha256)
    for name in CONFIGS:
        bank.add(name, adapted(folder, name).model)
    return lm, bank


def ending(lm: LanguageModel, ends: set[int]) -> LanguageModel:
    """Whose replies end at any of those tokens, so that rows leave at different steps."""
    lm.tokenizer.eos_token_ids = ends
    return lm


PROMPTS = [*CORPUS[:3], CORPUS[0], "Why?", CORPUS[5]]
ADAPTERS: list[str | None] = ["tutor", None, "poet", "poet", "tutor", "tutor"]


def each_alone(folder: Path, ends: set[int], seed: int = 0) -> list[Reply]:
    by_name = {name: ending(adapted(folder, name, seed), ends) for name in {*ADAPTERS}}
    return [
        generate(by_name[name], prompt, max_tokens=LENGTH)
        for name, prompt in zip(ADAPTERS, PROMPTS, strict=True)
    ]


@pytest.mark.parametrize("max_rows", [64, 4])
def test_rows_equal_their_adapters_alone(
    served: tuple[LanguageModel, AdapterBank], folder: Path, max_rows: int
) -> None:
    lm, bank = served
    endless = each_alone(folder, {-1})
    assert all(len(reply.tokens) == LENGTH for reply in endless)
    # Tokens that some of the rows reach, at different steps.
    ends = {endless[0].tokens[3], endless[2].tokens[9], endless[4].tokens[1]}
    expected = each_alone(folder, ends)
    assert len({len(reply.tokens) for reply in expected}) > 2
    found = bank.generate(ending(lm, ends), PROMPTS, ADAPTERS, max_tokens=LENGTH, max_rows=max_rows)
    assert found == expected


class Counting:
    """The tokens that go through a layer, for as long as the block runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, lm: LanguageModel) -> None:
        self.tokens = 0
        kind, call = type(lm.model), type(lm.model).__call__

        def counted(model: Any, tokens: mx.array, *given: Any, **options: Any) -> mx.array:
            self.tokens += tokens.size
            return call(model, tokens, *given, **options)

        monkeypatch.setattr(kind, "__call__", counted)


def conversation(lm: LanguageModel, bank: AdapterBank, caches: PromptCaches | None) -> list[Any]:
    """Two turns; the second prompt goes on from the first and its reply."""
    names: list[str | None] = ["tutor", "poet", None]
    prompts = [lm.tokenizer.encode(text) for text in CORPUS[:3]]
    first = bank.generate(lm, prompts, names, max_tokens=6, caches=caches)
    longer = [
        prompt + list(reply.tokens) + [5, 9] for prompt, reply in zip(prompts, first, strict=True)
    ]
    return [first, bank.generate(lm, longer, names, max_tokens=6, caches=caches)]


def test_caches_save_work_and_change_nothing(
    served: tuple[LanguageModel, AdapterBank], monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, bank = served
    ending(lm, {-1})
    expected = conversation(lm, bank, None)
    counter = Counting(monkeypatch, lm)
    caches = PromptCaches(bank)
    assert conversation(lm, bank, caches) == expected
    first_turns = counter.tokens
    counter.tokens = 0
    assert conversation(lm, bank, caches) == expected
    # The second time, prompts are known but for their last tokens.
    assert counter.tokens < 0.6 * first_turns
    assert caches.nbytes > 0


def test_a_swapped_adapter_starts_anew(
    served: tuple[LanguageModel, AdapterBank], folder: Path
) -> None:
    lm, bank = served
    caches = PromptCaches(bank)
    prompt = lm.tokenizer.encode(CORPUS[0])
    old_key = bank.cache_key("tutor")
    bank.generate(lm, [prompt], ["tutor"], max_tokens=4, caches=caches)
    assert caches.fetch(old_key, prompt)[1] == len(prompt) - 1
    # Neither another adapter nor the base takes the tutor's keys and values.
    assert caches.fetch(bank.cache_key("poet"), prompt) == (None, 0)
    assert caches.fetch(bank.cache_key(None), prompt) == (None, 0)
    bank.swap("tutor", adapted(folder, "tutor", seed=7).model)
    assert caches.fetch(bank.cache_key("tutor"), prompt) == (None, 0)
    assert caches.fetch(old_key, prompt) == (None, 0)
    assert caches.nbytes == 0
    found = bank.generate(lm, [prompt], ["tutor"], max_tokens=8, caches=caches)
    assert found == [generate(adapted(folder, "tutor", seed=7), prompt, max_tokens=8)]


def test_what_a_swapped_adapter_leaves_is_not_kept(
    served: tuple[LanguageModel, AdapterBank], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, bank = served
    caches = PromptCaches(bank)
    expected = bank.generate(lm, [CORPUS[0]], ["tutor"], max_tokens=4)
    store = caches.store

    def swapped_first(*given: Any) -> None:
        bank.swap("tutor", adapted(folder, "tutor", seed=7).model)
        store(*given)

    monkeypatch.setattr(caches, "store", swapped_first)
    # The batch itself ends with the adapter it began with.
    assert bank.generate(lm, [CORPUS[0]], ["tutor"], max_tokens=4, caches=caches) == expected
    assert caches.nbytes == 0


def test_the_oldest_caches_go_first(served: tuple[LanguageModel, AdapterBank]) -> None:
    lm, bank = served
    one = PromptCaches(bank)
    prompt = lm.tokenizer.encode(CORPUS[0])
    bank.generate(lm, [prompt], ["tutor"], max_tokens=4, caches=one)
    caches = PromptCaches(bank, max_mb=2.5 * one.nbytes / 1e6)
    for name in ("tutor", "poet", None):
        bank.generate(lm, [prompt], [name], max_tokens=4, caches=caches)
    assert one.nbytes < caches.nbytes <= 2.5 * one.nbytes
    held = [caches.fetch(bank.cache_key(name), prompt)[1] for name in ("tutor", "poet", None)]
    assert held == [0, len(prompt) - 1, len(prompt) - 1]
    tiny = PromptCaches(bank, max_mb=0)
    bank.generate(lm, [prompt], [None], max_tokens=4, caches=tiny)
    assert tiny.nbytes == 0


def test_bad_input(served: tuple[LanguageModel, AdapterBank], folder: Path) -> None:
    lm, bank = served
    with pytest.raises(AdapterError, match="1 adapters were given for 2 prompts"):
        bank.generate(lm, ["a", "b"], ["tutor"])
    with pytest.raises(AdapterError, match="no adapter 'nobody'"):
        bank.generate(lm, ["a"], ["nobody"])
    with pytest.raises(AdapterError, match="another model"):
        bank.generate(load(folder), ["a"], ["tutor"])
    with pytest.raises(GenerationError, match="max_tokens"):
        bank.generate(lm, ["a"], ["tutor"], max_tokens=0)
    # Nothing is held after an error.
    bank.remove("tutor")


def test_one_adapter_through_the_plain_functions(
    served: tuple[LanguageModel, AdapterBank], folder: Path
) -> None:
    lm, bank = served
    with bank.rows("poet"):
        found = generate(lm, CORPUS[1], max_tokens=8)
    assert found == generate(adapted(folder, "poet"), CORPUS[1], max_tokens=8)


@pytest.fixture(autouse=True)
def no_rows_left(served: tuple[LanguageModel, AdapterBank]) -> Iterator[None]:
    yield
    lm, bank = served
    bank.detach()
    assert np.isfinite(np.array(lm.model(mx.array([[1, 2]])))).all()
