"""Adapters that come, go and change while batches run in other threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from bank_models import TOKENS, adapted, alone, full_bank
from lora_models import llama
from patience import LONG

from mlx_companion.errors import AdapterError
from mlx_companion.lora import AdapterBank


def in_thread(work: Callable[[], Any]) -> Any:
    """Its result, or its error raised here."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(work())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(LONG)
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]


def test_rows_belong_to_the_thread_that_set_them() -> None:
    model, bank = full_bank()
    with bank.rows("tutor"):
        elsewhere = in_thread(lambda: np.array(model(TOKENS)))
    np.testing.assert_allclose(elsewhere, np.array(llama()(TOKENS)), atol=1e-5)


def test_adapters_that_another_thread_has_yet_to_compute() -> None:
    bank, source = AdapterBank(llama()), adapted("tutor")
    with pytest.raises(AdapterError, match="call mx"):
        in_thread(lambda: bank.add("tutor", source))
    mx.eval(source.parameters())
    in_thread(lambda: bank.add("tutor", source))
    with bank.rows("tutor"):
        found = np.array(bank.model(TOKENS[:1])[0])
    np.testing.assert_allclose(found, alone("tutor", TOKENS[0]), atol=1e-5)


def test_a_batch_ends_with_the_adapters_that_it_began_with() -> None:
    model, bank = full_bank()
    expected = alone("tutor", TOKENS[0])
    with bank.rows("tutor"):
        in_thread(lambda: bank.swap("tutor", adapted("tutor", seed=9)))
        np.testing.assert_allclose(np.array(model(TOKENS[:1])[0]), expected, atol=1e-5)
    with bank.rows("tutor"):
        found = np.array(model(TOKENS[:1])[0])
    np.testing.assert_allclose(found, alone("tutor", TOKENS[0], seed=9), atol=1e-5)


def test_adapters_in_use_stay() -> None:
    _, bank = full_bank()
    with bank.rows(["poet", "tutor"]), bank.rows("poet"):
        with pytest.raises(AdapterError, match="using 'poet'"):
            in_thread(lambda: bank.remove("poet"))
        with pytest.raises(AdapterError, match="batch is running"):
            bank.detach()
        in_thread(lambda: bank.remove("clerk"))
    bank.remove("poet")
    bank.remove("tutor")
    bank.detach()


def test_adding_and_removing_beside_a_running_batch() -> None:
    model, bank = full_bank()
    expected = {name: alone(name, TOKENS[0]) for name in ("tutor", "poet")}
    sources = [adapted("clerk", seed=seed) for seed in (4, 5)]
    mx.eval([source.parameters() for source in sources])
    stop, problems = threading.Event(), []

    def churn() -> None:
        try:
            while not stop.is_set():
                bank.add("guest", sources[0])
                bank.swap("guest", sources[1])
                bank.remove("guest")
        except Exception as error:
            problems.append(error)

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(30):
            for name, logits in expected.items():
                with bank.rows([name, None]):
                    found = np.array(model(TOKENS[:2]))
                np.testing.assert_allclose(found[0], logits, atol=1e-5)
    finally:
        stop.set()
        thread.join(LONG)
    assert not problems
    assert "guest" not in bank
