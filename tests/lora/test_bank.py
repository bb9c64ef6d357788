"""Many adapters over one model: each row equals its adapter alone, and the base stays as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from bank_models import CONFIGS, TOKENS, adapted, alone, full_bank
from lora_models import llama, state

from mlx_companion.errors import AdapterError
from mlx_companion.lora import (
    AdapterBank,
    LoraConfig,
    adapter_parameters,
    attach,
    load_parameters,
    save_adapter,
    set_multiplier,
)
from mlx_companion.lora.bank_rows import BankLinear


@pytest.mark.parametrize("bits", [None, 4, 8])
@pytest.mark.parametrize(
    "names",
    [
        ["tutor", None, "poet", "clerk"],
        ["poet", "poet", "tutor", "poet"],
        ["clerk"] * 4,
        [None] * 4,
    ],
    ids=str,
)
def test_each_row_is_its_adapter_alone(names: list[str | None], bits: int | None) -> None:
    model, bank = full_bank(bits)
    with bank.rows(names):
        logits = np.array(model(TOKENS))
    base = np.array(model(TOKENS))
    for row, name in enumerate(names):
        np.testing.assert_allclose(
            logits[row], alone(name, TOKENS[row], bits=bits), rtol=0, atol=1e-5
        )
        # And the adapters matter.
        assert (name is None) == np.allclose(logits[row], base[row], atol=1e-3)


def test_one_name_serves_any_number_of_rows() -> None:
    model, bank = full_bank()
    with bank.rows("poet"):
        for rows in (1, 3):
            found = np.array(model(TOKENS[:rows]))
            for row in range(rows):
                np.testing.assert_allclose(found[row], alone("poet", TOKENS[row]), atol=1e-5)


def test_sources_agree(tmp_path: Path) -> None:
    carrier = adapted("tutor")
    set_multiplier(carrier, 0.5)
    save_adapter(tmp_path / "tutor", carrier, CONFIGS["tutor"], base_sha256="a" * 64)
    expected = np.array(carrier(TOKENS))
    tensors = adapter_parameters(carrier)
    model = llama()
    bank = AdapterBank(model, base_sha256="a" * 64)
    bank.add("folder", tmp_path / "tutor")
    bank.add("model", carrier)
    bank.add("tensors", tensors, LoraConfig(rank=4, alpha=4.0))
    for name in bank.names:
        with bank.rows(name):
            np.testing.assert_allclose(np.array(model(TOKENS)), expected, atol=1e-5)


def test_an_adapter_that_started_from_the_weights_principal_parts() -> None:
    carrier = adapted("poet")
    for _, layer in carrier.named_modules():
        if hasattr(layer, "start_from"):
            layer.start_from(layer.lora_a, layer.lora_b)
            layer.lora_a = layer.lora_a * 1.5
    model = llama()
    bank = AdapterBank(model)
    bank.add("poet", carrier)
    with bank.rows("poet"):
        np.testing.assert_allclose(np.array(model(TOKENS)), np.array(carrier(TOKENS)), atol=1e-5)


def test_strength_zero_is_the_base() -> None:
    carrier = adapted("tutor")
    set_multiplier(carrier, 0.0)
    model = llama()
    bank = AdapterBank(model)
    bank.add("off", carrier)
    with bank.rows("off"):
        assert mx.array_equal(model(TOKENS), llama()(TOKENS))


def test_half_precision_stays_so() -> None:
    model = llama()
    model.set_dtype(mx.bfloat16)
    bank = AdapterBank(model)
    bank.add("tutor", adapter_parameters(adapted("tutor")), CONFIGS["tutor"])
    with bank.rows(["tutor", None, "tutor", None]):
        assert model(TOKENS).dtype == mx.bfloat16


def test_adding_swapping_and_removing_leave_the_base_alone() -> None:
    model = llama()
    before, modules = state(model), dict(model.named_modules())
    arrays = {id(m.weight) for m in modules.values() if "weight" in m}
    bank = AdapterBank(model)
    bank.add("tutor", adapted("tutor"))
    bank.swap("tutor", adapted("tutor", seed=9))
    with bank.rows("tutor"):
        np.testing.assert_allclose(
            np.array(model(TOKENS[:1])[0]), alone("tutor", TOKENS[0], seed=9), atol=1e-5
        )
    bank.add("poet", adapted("poet"))
    bank.remove("tutor")
    assert bank.names == ("poet",)
    assert "poet" in bank
    assert "tutor" not in bank
    assert len(bank) == 1
    assert {id(m.weight) for m in dict(model.named_modules()).values() if "weight" in m} == arrays
    assert any(isinstance(m, BankLinear) for m in dict(model.named_modules()).values())
    bank.detach()
    assert dict(model.named_modules()) == modules
    assert all(m is modules[path] for path, m in model.named_modules())
    assert state(model) == before
    assert bank.names == ()


def test_detached_models_take_other_adapters() -> None:
    model, bank = full_bank()
    bank.detach()
    assert attach(model, CONFIGS["poet"])
    with pytest.raises(AdapterError, match="carries adapters already"):
        AdapterBank(model)


def test_versions_never_come_back() -> None:
    _, bank = full_bank()
    seen = [bank.cache_key(None), *(bank.cache_key(name) for name in bank.names)]
    assert seen == [bank.cache_key(None), *(bank.cache_key(name) for name in bank.names)]
    bank.swap("poet", adapted("poet"))
    seen.append(bank.cache_key("poet"))
    bank.remove("poet")
    bank.add("poet", adapted("poet"))
    seen.append(bank.cache_key("poet"))
    assert len({hash(key) for key in seen}) == len(set(seen)) == 6
    assert bank.cache_key("tutor") in seen
    assert [bank.is_current(key) for key in seen] == [True, True, False, True, False, True]


def test_stacks_are_kept_for_batches_of_the_same_adapters() -> None:
    model, bank = full_bank()
    kept = []
    for names in (["tutor", "poet"], ["poet", None], ["clerk", "poet"], ["poet", "tutor"]):
        with bank.rows(names) as _:
            mx.eval(model(TOKENS[:2]))
            kept.append(bank._current.get().stacks)
    assert kept[0] is kept[1] is kept[3] is not kept[2]
    bank.swap("tutor", adapted("tutor", seed=8))
    with bank.rows(["poet", "tutor"]):
        assert bank._current.get().stacks is not kept[0]


def with_config(config: LoraConfig) -> Any:
    model = llama()
    attach(model, config)
    return model


def broken() -> Any:
    model = adapted("tutor")
    name, weight = next(iter(adapter_parameters(model).items()))
    load_parameters(model, adapter_parameters(model) | {name: weight * float("inf")})
    return model


def tensors(name: str) -> Any:
    return adapter_parameters(adapted(name))


REFUSALS: dict[str, tuple[Callable[[AdapterBank], Any], str]] = {
    "taken": (lambda b: b.add("tutor", adapted("tutor")), "has a 'tutor' already"),
    "no name": (lambda b: b.add("", adapted("tutor")), "must be a text"),
    "unknown": (lambda b: b.remove("tutro"), "no adapter 'tutro'; did you mean 'tutor'"),
    "unknown to swap": (lambda b: b.swap("x", adapted("tutor")), "no adapter 'x'; it has"),
    "unknown key": (lambda b: b.cache_key("x"), "no adapter 'x'"),
    "unknown row": (lambda b: b.rows(["tutor", "x"]).__enter__(), "no adapter 'x'"),
    "no folder": (lambda b: b.add("new", "nowhere"), "no adapter folder"),
    "plain model": (lambda b: b.add("new", llama()), "carries no adapter"),
    "another base": (lambda b: b.add("new", adapted("tutor", 4)), "made for another base"),
    "no config": (lambda b: b.add("new", tensors("poet")), "give their LoraConfig"),
    "misfit": (lambda b: b.add("new", tensors("poet"), CONFIGS["tutor"]), "do not fit"),
    "broken": (lambda b: b.add("new", broken()), "not finite"),
    "dora": (lambda b: b.add("new", with_config(LoraConfig(rank=2, dora=True))), "DoRA"),
    "embedding": (
        lambda b: b.add("new", with_config(LoraConfig(rank=2, targets=("embed_tokens",)))),
        "embed_tokens is a LoRAEmbedding",
    ),
    "two banks": (lambda b: AdapterBank(b.model), "carries adapters already"),
}


@pytest.fixture(scope="module")
def tutor_bank() -> AdapterBank:
    bank = AdapterBank(llama())
    bank.add("tutor", adapted("tutor"))
    return bank


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_change_nothing(case: str, tutor_bank: AdapterBank) -> None:
    act, message = REFUSALS[case]
    key = tutor_bank.cache_key("tutor")
    with pytest.raises(AdapterError, match=message):
        act(tutor_bank)
    assert tutor_bank.names == ("tutor",)
    assert tutor_bank.cache_key("tutor") == key
    tutor_bank.swap("tutor", adapted("tutor"))


def test_a_folder_for_another_base_is_refused(tmp_path: Path) -> None:
    save_adapter(tmp_path / "a", adapted("tutor"), CONFIGS["tutor"], base_sha256="a" * 64)
    bank = AdapterBank(llama(), base_sha256="b" * 64)
    with pytest.raises(AdapterError, match="made for the base model aaaa"):
        bank.add("tutor", tmp_path / "a")


@pytest.mark.parametrize("rows", [1, 3])
def test_batches_of_another_size_are_refused(rows: int) -> None:
    model, bank = full_bank()
    with bank.rows(["tutor", None]), pytest.raises(AdapterError, match=f"the batch has {rows}"):
        model(TOKENS[:rows])
    # The rows end with their block, also after an error.
    assert mx.array_equal(model(TOKENS), llama()(TOKENS))
    bank.remove("tutor")


def test_an_adapter_is_read_again_when_its_folder_has_changed(tmp_path: Path) -> None:
    place = tmp_path / "a"
    save_adapter(place, adapted("tutor"), CONFIGS["tutor"], base_sha256="a" * 64)
    bank = AdapterBank(llama(), base_sha256="a" * 64)
    bank.add("a", place)
    bank.add("tensors", adapter_parameters(adapted("tutor")), CONFIGS["tutor"])
    key = bank.cache_key("a")

    def said() -> Any:
        with bank.rows("a"):
            return np.array(bank.model(TOKENS[:1]))[0]

    assert not bank.refresh("a")
    assert not bank.refresh("tensors")
    assert bank.is_current(key)
    np.testing.assert_allclose(said(), alone("tutor", TOKENS[0]), atol=1e-5)
    save_adapter(place, adapted("poet"), CONFIGS["poet"], base_sha256="a" * 64)
    assert bank.refresh("a")
    assert not bank.is_current(key)
    assert not bank.refresh("a")
    np.testing.assert_allclose(said(), alone("poet", TOKENS[0]), atol=1e-5)
    # What cannot be read is told once and changes nothing.
    (place / "adapters.safetensors").write_bytes(b"half")
    with pytest.raises(AdapterError, match="corrupt"):
        bank.refresh("a")
    assert not bank.refresh("a")
    np.testing.assert_allclose(said(), alone("poet", TOKENS[0]), atol=1e-5)
    # A batch that runs ends with the adapter that it began with.
    with bank.rows("a"):
        save_adapter(place, adapted("tutor"), CONFIGS["tutor"], base_sha256="a" * 64)
        assert bank.refresh("a")
        found = np.array(bank.model(TOKENS[:1]))[0]
    np.testing.assert_allclose(found, alone("poet", TOKENS[0]), atol=1e-5)
    np.testing.assert_allclose(said(), alone("tutor", TOKENS[0]), atol=1e-5)
    bank.remove("a")
    with pytest.raises(AdapterError, match="no adapter 'a'"):
        bank.refresh("a")
