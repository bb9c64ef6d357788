"""Sentences of the wrong tone, said again by the model: taken when faithful, else as before."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import companion_world as world
import pytest

from mlx_companion.loop.companion import Companion
from mlx_companion.loop.rewriting import ToneRewriter, faithful, worth_while
from mlx_companion.models import load
from mlx_companion.runtime.config import load_config
from mlx_companion.runtime.monitor import Advice
from mlx_companion.runtime.stop import NEVER, StopSwitch
from mlx_companion.slm.config import SLMConfig
from mlx_companion.slm.guard import PersonalityGuard
from mlx_companion.store import Store

GUSHING = "Wow, what an amazing second chapter of your thesis with Maria, 40 pages!"
REST = "The third one needs a shorter introduction, see https://example.org/a?b=1 and `x = 40!`."
PLAIN = "The second chapter of your thesis with Maria is done, 40 pages."


class Speaking(world.Scripted):
    """Says one reply, and another sentence when it is to rewrite one."""

    def __init__(self, reply: str, rewrite: Callable[[str, StopSwitch], str]) -> None:
        super().__init__(lambda prompt, system: reply)
        self.rewrite = rewrite
        self.rewritten: list[str] = []

    def complete(
        self, messages: list[dict[str, str]], *, max_tokens: int, switch: StopSwitch = NEVER
    ) -> str:
        assert [one["role"] for one in messages[:2]] == ["system", "user"]
        assert 0 < max_tokens < 100
        self.rewritten.append(messages[-1]["content"])
        return self.rewrite(self.rewritten[-1], switch)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "c.db") as opened:
        yield opened


def companion(store: Store, served: Speaking, **guard: Any) -> Companion:
    """A companion with the real guard alone."""
    own = {"rewriter": True, "rewriter_seconds": 60.0, "enforcement_level": "strict"} | guard
    others = ("research_classifier", "context_tracker", "drift_monitor")
    config = load_config(
        SLMConfig,
        overrides={
            **world.PATIENT,
            "resources.adaptive": False,
            **{f"modules.{name}.enabled": False for name in others},
            **{f"modules.personality_guard.{name}": value for name, value in own.items()},
        },
    )
    return Companion(served, store, slm=config)  # type: ignore[arg-type]


def by_rules(reply: str) -> str:
    return PersonalityGuard(level="strict").process(reply).rewritten_response


def test_a_faithful_sentence_takes_the_place_of_the_one_that_gushed(store: Store) -> None:
    served = Speaking(f"{GUSHING} {REST}", lambda sentence, switch: f'"{PLAIN}"\nI hope so.')
    with companion(store, served) as made:
        reply = made.chat_sync("how is it?")
    assert reply.text == f"{PLAIN} {REST}"
    assert served.rewritten == [GUSHING]
    step = reply.trace["rewrite"]
    assert (step.state, step.made) == ("ok", "1 of 1 sentences rewritten")
    assert step.details == {"asked": 1, "faithful": 1, "put_in": 1}
    names = [one.name for one in reply.trace.steps]
    assert names.index("rewrite") == names.index("guard") + 1
    assert store.interactions.recent()[0].response == reply.text


UNFAITHFUL = {
    "a number is lost": "The second chapter of your thesis with Maria is done.",
    "another number": "The second chapter of your thesis with Maria is done, 41 pages.",
    "a name is lost": "The second chapter of your thesis is done, 40 pages.",
    "it still gushes": "What an awesome second chapter of your thesis with Maria, 40 pages.",
    "another violation": "*nods* The second chapter of your thesis with Maria is done, 40 pages.",
    "something is made up": "Maria thinks the bridge in Oslo opens again after 40 long winters.",
    "the other way round": "The second chapter of your thesis with Maria is not done, 40 pages.",
    "another person": "I wrote the second chapter of your thesis with Maria, 40 pages.",
    "a question": "Is the second chapter of your thesis with Maria done, 40 pages?",
    "about the task": "Here is the second chapter of your thesis with Maria, 40 pages.",
    "much longer": f"{PLAIN[:-1]} and it is a chapter that can be read in one go on one evening.",
    "another capital": "The second chapter of your thesis with Portuguese Maria, 40 pages.",
    "nothing": "",
    "the same": GUSHING,
}


def test_what_is_not_faithful_stays_as_the_rules_mend_it(store: Store) -> None:
    said = {"text": ""}
    served = Speaking(f"{GUSHING} {REST}", lambda sentence, switch: said["text"])
    mended = by_rules(f"{GUSHING} {REST}")
    with companion(store, served) as made:
        for how, said["text"] in UNFAITHFUL.items():
            served.rewritten.clear()
            reply = made.chat_sync("how is it?")
            assert served.rewritten == [GUSHING], how
            assert reply.text == mended, how
            assert reply.trace["rewrite"].details["put_in"] == 0
            assert reply.trace.faults == []


def test_a_model_that_fails_or_hangs_changes_nothing(store: Store) -> None:
    def fails(sentence: str, switch: StopSwitch) -> str:
        raise MemoryError("no room")

    def hangs(sentence: str, switch: StopSwitch) -> str:
        while not switch.requested:
            threading.Event().wait(0.01)
        stopped.set()
        return PLAIN

    stopped = threading.Event()
    for rewrite, seconds in ((fails, 60.0), (hangs, 0.05)):
        served = Speaking(f"{GUSHING} {REST}", rewrite)
        with companion(store, served, rewriter_seconds=seconds) as made:
            reply = made.chat_sync("how is it?")
            assert reply.text == by_rules(f"{GUSHING} {REST}")
            assert reply.trace["rewrite"].details["put_in"] == 0
            if rewrite is hangs:
                asked = [{"role": "system", "content": ""}, {"role": "user", "content": GUSHING}]
                assert made._say(asked, 9, 0.05) == ""
    assert stopped.wait(60)


@pytest.mark.parametrize(
    ("guard", "reply", "why"),
    [
        ({}, REST, "no sentence of the wrong tone"),
        ({"rewriter": False}, GUSHING, "switched off"),
        ({"rewriter": None}, GUSHING, "the model is too small"),
        ({"enforcement_level": "moderate"}, GUSHING, "the guard's level is moderate"),
    ],
)
def test_it_is_left_out_where_it_does_not_pay(
    store: Store, guard: dict[str, Any], reply: str, why: str
) -> None:
    served = Speaking(reply, lambda sentence, switch: PLAIN)
    with companion(store, served, **guard) as made:
        step = made.chat_sync("how is it?").trace["rewrite"]
    assert (step.state, step.fault) == ("skipped", why)
    assert served.rewritten == []


def test_a_machine_that_is_short_of_something_is_spared(store: Store) -> None:
    served = Speaking(GUSHING, lambda sentence, switch: PLAIN)
    with companion(store, served) as made:
        made._modules.orchestrator.scheduler._advice = Advice(0.9, "battery at 20 %")
        step = made.chat_sync("how is it?").trace["rewrite"]
        assert (step.state, step.fault) == ("skipped", "spared: battery at 20 %")
        made._modules.orchestrator.scheduler._advice = Advice()
        assert made.chat_sync("how is it?").text == PLAIN


def test_an_adapter_of_the_guard_does_the_rewriting(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = Speaking(GUSHING, lambda sentence, switch: "")
    with companion(store, served, rewriter=None, adapter=str(tmp_path)) as made:
        said = SimpleNamespace(generate=lambda messages, most: PLAIN)
        monkeypatch.setattr(made._modules.factory, "adapted_backbone", lambda name: said)
        assert made.chat_sync("how is it?").text == PLAIN
    assert served.rewritten == []


def test_a_guard_of_ones_own_is_left_alone(store: Store) -> None:
    served = Speaking("Great!", lambda sentence, switch: PLAIN)
    slm = {"modules.personality_guard.rewriter": True}

    def gushes(item: Any) -> Any:
        result = world.guard(item)
        result.violations_detected.append("tone_cheerleader")
        return result

    work = {"personality_guard": gushes}
    with world.companion(store, served, work=work, slm=slm) as made:
        step = made.chat_sync("how is it?").trace["rewrite"]
    assert "takes no rewriter" in str(step.fault)


def test_the_one_who_acts_must_stay() -> None:
    before = "I absolutely love that you are learning Portuguese with Maria!"
    assert faithful(before, "You are learning Portuguese with Maria.")
    assert not faithful(before, "I am learning Portuguese with Maria.")
    assert not faithful(before, "You are learning Spanish with Maria.")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("Wow, the bridge opens on Friday!", "The bridge opens on Friday."),
        ("I'm so excited to help you with the two reports!", "I can help you with two reports."),
        ("Isn't it amazing that it never freezes?!", "Isn't it so that it never freezes?"),
    ],
)
def test_faithful_sentences(before: str, after: str) -> None:
    assert faithful(before, after)


def test_the_rewriter_asks_once_per_sentence_and_within_its_time() -> None:
    asked: list[str] = []

    def ask(messages: list[dict[str, str]], most: int, seconds: float) -> str:
        assert 0 < seconds <= 60
        asked.append(messages[-1]["content"])
        return "The bridge opens on Friday." if "bridge" in asked[-1] else "Well."

    rewriter = ToneRewriter(ask, 60.0)
    for _ in range(3):
        assert rewriter("Do it.\n\nWow, the bridge opens on Friday!") == asked[0].removeprefix(
            "Wow, "
        ).replace("!", ".").replace("the", "The", 1)
        assert rewriter("Do it.\n\nWow, the tower opens on Friday!") == ""
    assert (rewriter.asked, rewriter.taken) == (2, 1)
    assert rewriter.refused == [("Wow, the tower opens on Friday!", "Well.")]
    assert rewriter("Do it.\n\nWow!!") == ""
    late = ToneRewriter(ask, 0.0)
    assert late("Do it.\n\nWow, the bridge opens on Friday!") == ""
    assert (late.asked, len(asked)) == (0, 2)


def test_small_models_and_cpus_are_not_worth_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tiny import tiny_llama

    lm = load(tiny_llama(tmp_path / "model"))
    monkeypatch.setattr("mlx_companion.loop.rewriting.is_cpu", lambda: False)
    assert not worth_while(lm)
    assert not worth_while(SimpleNamespace(tokenizer=None))
    monkeypatch.setattr("mlx_companion.loop.rewriting._LEAST_PARAMETERS", 1000)
    assert worth_while(lm)
    monkeypatch.setattr("mlx_companion.loop.rewriting.is_cpu", lambda: True)
    assert not worth_while(lm)
