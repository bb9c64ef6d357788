"""The companion as a whole: every step happens, is seen, and can fail without the reply failing."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import companion_world as world
import pytest
from patience import not_hanging, until
from slm_pauses import HELD, calmest

import mlx_companion as mc
from mlx_companion.errors import (
    ConfigError,
    DataError,
    GenerationError,
    LoopError,
    StoreError,
)
from mlx_companion.loop.companion import Companion
from mlx_companion.runtime.stop import StopSwitch
from mlx_companion.slm.results import ContextResult, ResearchResult
from mlx_companion.store import Store

STEPS = [
    "listen", "learn", "research", "prompt", "generate", "guard", "rewrite", "polish", "keep",
    "remember", "watch",
]  # fmt: skip
SECRET = "Maximilian-of-the-fjord"


# What hangs does so until the test is over, however long that takes.
released = threading.Event()


@pytest.fixture
def hanging() -> Iterator[None]:
    released.clear()
    yield
    released.set()


@pytest.fixture
def companion(store: Store) -> Iterator[Companion]:
    with world.companion(store) as made:
        yield made


def test_every_step_is_in_the_trace(companion: Companion) -> None:
    reply = companion.chat_sync("hello, call me Max")
    assert str(reply) == reply.text == "You said: hello, call me Max."
    assert [step.name for step in reply.trace.steps] == STEPS
    states = {step.name: step.state for step in reply.trace.steps}
    assert states == dict.fromkeys(STEPS, "ok") | {"research": "skipped", "rewrite": "skipped"}
    assert reply.trace.faults == []
    assert reply.trace["listen"].made == "needs no research (chat, 0.90); 1 things to learn"
    assert reply.trace["learn"].made == "person.name = 'Max'"
    assert reply.trace["generate"].details == {"tokens": 6, "version": "v0001"}
    outcome = reply.trace["guard"].details["personality_guard"]
    assert (outcome["status"], outcome["fallback"]) == ("ok", None)
    assert all(step.seconds > 0 for step in reply.trace.steps)
    assert max(step.seconds for step in reply.trace.steps) <= reply.trace.seconds
    assert json.loads(json.dumps(reply.trace.to_dict()))["steps"][0]["name"] == "listen"
    assert [line.split()[0] for line in reply.trace.text().splitlines()] == STEPS
    assert companion.last_trace is reply.trace


def test_the_slang_that_was_found_is_in_the_trace(store: Store) -> None:
    def track(item: Any) -> ContextResult:
        found = [{"term": term} for term in item["text"].split() if term in ("ngl", "fire")]
        return dataclasses.replace(world.track(item), slang_detected=found)

    with world.companion(store, work={"context_tracker": track}) as companion:
        made = companion.chat_sync("ngl it is fire ngl").trace["listen"].made
    assert made == "needs no research (chat, 0.90); slang: ngl, fire; 0 things to learn"


def test_an_exchange_is_stored_as_chat_stores_it(companion: Companion, store: Store) -> None:
    reply = companion.chat_sync("hello")
    kept = store.interactions.recent()[0]
    assert kept == reply.interaction
    assert (kept.prompt, kept.response, kept.source) == ("hello", "You said: hello.", "chat")
    assert kept.model_version == "v0001"
    assert kept.meta["steps"]["guard"] == "ok"
    companion.conversation.rate("up")
    assert store.feedback.state(kept.id).rating == "up"
    companion.chat_sync("again")
    assert [i.conversation_id for i in store.interactions.iter()] == [kept.conversation_id] * 2
    assert companion.served.asked[1].history == [("hello", "You said: hello.")]  # type: ignore[attr-defined]


def test_the_guard_mends_what_is_shown_stored_and_remembered(store: Store) -> None:
    served = world.Scripted(lambda prompt, system: "Great!!! Yes!")
    with world.companion(store, served) as companion:
        reply = companion.chat_sync("hello")
        assert reply.text == "Great... Yes."
        assert reply.trace["guard"].made == "exclamation_overuse"
        assert store.interactions.recent()[0].response == "Great... Yes."
        assert companion.conversation.history == [("hello", "Great... Yes.")]


def test_what_was_learned_is_in_the_next_prompt_and_can_be_undone(companion: Companion) -> None:
    companion.chat_sync("call me Max and no emoji please")
    facts = {entry.key: entry.value for entry in companion.learned()}
    assert facts == {"person.name": "Max", "preference.emoji": False}
    asked = companion.served.asked  # type: ignore[attr-defined]
    assert "Max" in asked[-1].system
    change = companion.undo()
    assert change is not None
    assert (change.key, change.before, change.after) == ("preference.emoji", False, None)
    undone = companion.undo()
    assert undone is not None
    assert undone.key == "person.name"
    assert companion.undo() is None
    companion.chat_sync("and now?")
    assert "Max" not in asked[-1].system


def test_what_is_learned_outlives_the_process(tmp_path: Path) -> None:
    for text in ("call me Max", "hello"):
        with Store(tmp_path / "c.db") as store, world.companion(store) as companion:
            companion.chat_sync(text)
            assert "Max" in companion.served.asked[0].system  # type: ignore[attr-defined]


def test_a_research_tool_is_asked_only_when_needed(store: Store) -> None:
    asked = []

    def research(query: str) -> str:
        asked.append(query)
        return "Eighteen degrees and rain."

    with world.companion(store, research=research) as companion:
        companion.chat_sync("hello")
        assert asked == []
        reply = companion.chat_sync("the weather today?")
        assert asked == ["the weather today?"]
        assert reply.trace["research"].made == "Eighteen degrees and rain."
        assert "Eighteen degrees and rain." in companion.served.asked[-1].system  # type: ignore[attr-defined]


def test_without_a_tool_the_prompt_says_what_cannot_be_known(companion: Companion) -> None:
    plain = companion.chat_sync("hello")
    honest = companion.chat_sync("the weather today?")
    assert plain.trace["research"].fault == "not needed"
    assert "no research tool" in str(honest.trace["research"].fault)
    first, second = (one.system for one in companion.served.asked)  # type: ignore[attr-defined]
    assert "cannot" not in first
    assert "cannot" in second


@pytest.mark.parametrize("findings", [None, "  ", 42, RuntimeError("offline"), TimeoutError()])
def test_a_research_tool_that_fails_is_no_tool(store: Store, findings: Any) -> None:
    def research(query: str) -> Any:
        if isinstance(findings, Exception):
            raise findings
        return findings

    with world.companion(store, research=research) as companion:
        reply = companion.chat_sync("the weather today?")
        assert reply.trace["research"].state == "failed"
        assert "cannot" in companion.served.asked[0].system  # type: ignore[attr-defined]


@pytest.mark.usefixtures("hanging")
def test_a_research_tool_that_hangs_is_left(store: Store) -> None:
    def research(query: str) -> str:
        return str(released.wait())

    with world.companion(store, research=research, research_seconds=0.1) as companion:
        with not_hanging():
            reply = companion.chat_sync("the weather today?")
        assert "TimeoutError" in str(reply.trace["research"].fault)


def test_probes_tell_a_version_from_another(store: Store) -> None:
    calm = "That depends on the weather, I think. It is usually a matter of patience."
    clingy = "I missed you so much, my love!!! Please never leave me, you are all that I have!!!"
    said = {"calm": calm}
    served = world.Scripted(lambda prompt, _: f"{said['calm']} {prompt}")
    with world.companion(store, served) as companion:
        assert companion.check_probes() is None
        again = companion.check_probes()
        assert again is not None
        assert not again.drift_detected
        said["calm"] = clingy
        changed = companion.check_probes()
        assert changed is not None
        assert changed.drift_detected
        assert changed.assistant_attachment > 0.5
        assert changed.details["versions"] == {"accepted": "v0001", "asked": "v0001"}
        assert companion.check_probes(accept=True) is None
        settled = companion.check_probes()
        assert settled is not None
        assert settled.drift_type != "tone"
    assert store.interactions.count() == 0


def fails(item: Any) -> Any:
    raise RuntimeError("out of order")


BROKEN = {
    "raises": (fails, "out of order"),
    "hangs": (lambda item: released.wait(), "timeout"),
    "nonsense": (lambda item: {"needs": "what?"}, "answered with a dict"),
    "nan": (lambda item: ResearchResult(True, float("nan"), "", ""), "nonsense"),
    "exits": (lambda item: exec("raise SystemExit"), "SystemExit"),
}


@pytest.mark.usefixtures("hanging")
@pytest.mark.parametrize("how", list(BROKEN))
@pytest.mark.parametrize("name", list(world.WORK))
def test_a_broken_module_never_breaks_a_reply(store: Store, name: str, how: str) -> None:
    work, told = BROKEN[how]
    slm = {f"modules.{name}.timeout": 0.2} if how == "hangs" else {}
    with world.companion(store, work={name: work}, slm=slm) as companion:
        reply = companion.chat_sync("call me Max today")
        assert reply.text == "You said: call me Max today."
        (fault,) = reply.trace.faults
        assert name in fault
        assert told in fault
        assert store.interactions.count() == 1


def test_all_modules_broken_at_once(store: Store) -> None:
    with world.companion(store, work=dict.fromkeys(world.WORK, fails)) as companion:
        for _ in range(5):
            reply = companion.chat_sync("hello")
        assert reply.text == "You said: hello."
        assert [fault.partition(":")[0] for fault in reply.trace.faults] == [
            "listen", "guard", "watch",
        ]  # fmt: skip
        # By now nobody asks them any more.
        assert "left alone" in reply.trace.faults[0]


def test_rules_answer_for_a_broken_guard_and_classifier(store: Store) -> None:
    rules = {"personality_guard": world.guard, "research_classifier": world.classify}
    served = world.Scripted(lambda prompt, system: "Yes!")
    with world.companion(store, served, work=dict.fromkeys(rules, fails), rules=rules) as companion:
        reply = companion.chat_sync("the weather today?")
        assert reply.text == "Yes."
        assert "rules answered" in str(reply.trace["guard"].fault)
        assert "keyword rule answered" in str(reply.trace["listen"].fault)
        assert "no research tool" in str(reply.trace["research"].fault)


@pytest.mark.parametrize("step", ["learn", "prompt", "polish", "remember"])
def test_steps_of_our_own_may_fail_too(
    companion: Companion, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlx_companion.loop import prompting as module

    def broken(*_: object, **__: object) -> None:
        raise OSError("no")

    if step == "learn":
        monkeypatch.setattr(companion.sync, "queue_updates", broken)
    elif step == "remember":
        monkeypatch.setattr(companion.store.traffic, "add", broken)
    else:
        monkeypatch.setattr(module, "built_prompt" if step == "prompt" else "polish", broken)
    reply = companion.chat_sync("call me Max")
    assert reply.text == "You said: call me Max."
    # What the drift monitor was given is remembered after it.
    failed = ["remember", "watch"] if step == "remember" else [step]
    assert reply.trace.faults == [f"{one}: OSError: no" for one in failed]


def test_without_a_model_there_is_no_reply_and_nothing_is_stored(store: Store) -> None:
    def answer(prompt: str, system: str) -> str:
        raise GenerationError("the prompt has 100,000 tokens")

    with world.companion(store, world.Scripted(answer)) as companion:
        with pytest.raises(GenerationError):
            companion.chat_sync("hello")
        assert companion.last_trace is not None
        assert companion.last_trace["generate"].state == "failed"
        for wrong in ("", "  \n", "half \ud800", None):
            with pytest.raises(DataError):
                companion.chat_sync(wrong)  # type: ignore[arg-type]
        assert store.interactions.count() == 0


def test_a_reply_that_was_ended_is_not_kept(store: Store) -> None:
    switch = StopSwitch()
    served = world.Scripted(lambda prompt, system: [switch.request("enough"), "You"][1])  # type: ignore[return-value,list-item]
    with world.companion(store, served) as companion:
        reply = companion.chat_sync("hello", switch=switch)
        assert (reply.interaction, companion.conversation.history) == (None, [])
        assert store.interactions.count() == 0


def test_replies_are_made_one_after_the_other(companion: Companion, store: Store) -> None:
    async def together() -> list[str]:
        replies = await asyncio.gather(*(companion.chat(f"number {n}") for n in range(4)))
        return [reply.text for reply in replies]

    assert asyncio.run(together()) == [f"You said: number {n}." for n in range(4)]
    assert [len(one.history) for one in companion.served.asked] == [0, 1, 2, 3]  # type: ignore[attr-defined]
    assert store.interactions.count() == 4
    # Another loop, with the lock of the first one gone.
    assert asyncio.run(together())


def test_inside_a_loop_one_awaits(companion: Companion) -> None:
    async def wrong() -> None:
        companion.chat_sync("hello")

    with pytest.raises(LoopError, match=r"await companion\.chat"):
        asyncio.run(wrong())


def test_the_event_loop_is_not_held_up(store: Store) -> None:
    turns = 0

    def slowly(prompt: str, system: str) -> str:
        # It answers only when others have had their turns meanwhile.
        seen = turns
        until(lambda: turns > seen + 10)
        return "At last."

    async def beside() -> str:
        nonlocal turns
        talk = asyncio.create_task(companion.chat("call me Max"))
        while not talk.done():
            turns += 1
            await asyncio.sleep(0)
        return (await talk).text

    with world.companion(store, world.Scripted(slowly)) as companion:
        assert asyncio.run(beside()) == "At last."


def test_no_step_holds_the_event_loop_up(companion: Companion) -> None:
    assert asyncio.run(calmest(lambda: companion.chat("call me Max"))) < HELD


def test_traffic_is_kept_for_trials_of_new_versions(companion: Companion, store: Store) -> None:
    companion.chat_sync("the weather today?")
    (research,) = store.traffic.recent("research_classifier")
    assert (research.input, research.result["needs_research"]) == ("the weather today?", True)
    (guarded,) = store.traffic.recent("personality_guard")
    assert guarded.input["text"].startswith("You said")
    assert len(store.traffic.recent("context_tracker")) == 1


def traces(folder: Path) -> list[str]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    return [file.name for file in files if SECRET.encode() in file.read_bytes()]


def test_forgetting_leaves_no_trace_in_any_file(tmp_path: Path) -> None:
    folder = tmp_path / "home"
    with Store(folder / "companion.db") as store, world.companion(store) as companion:
        for n in range(30):
            companion.chat_sync(f"{n}, call me {SECRET}{n}")
        store.backup()
        assert len(traces(folder)) >= 2
        # The conversation itself stays, and what was said in it.
        companion.forget()
        assert companion.learned() == []
        assert companion.last_trace is None
        assert store.interactions.count() == 30
        counts = companion.forget(conversations=True)
        assert counts["interaction"] == 30
        assert traces(folder) == []
        reply = companion.chat_sync("hello")
        assert SECRET not in companion.served.asked[-1].system  # type: ignore[attr-defined]
        assert companion.served.asked[-1].history == []  # type: ignore[attr-defined]
        assert reply.interaction is not None
        store.check()
    assert traces(folder) == []


def test_learning_goes_without_the_conversation(tmp_path: Path) -> None:
    """What only the modules kept is gone, although the exchange stays."""
    folder = tmp_path / "home"
    learned = f"inferred-{SECRET}"

    def track(item: Any) -> Any:
        found = world.track(item)
        found.updates.append(mc_update("slang.x", learned))
        return found

    from mlx_companion.slm import ContextUpdate

    def mc_update(key: str, value: str) -> ContextUpdate:
        return ContextUpdate(key, value, value, (0, 1), 0.9)

    with (
        Store(folder / "companion.db") as store,
        world.companion(store, work={"context_tracker": track}) as companion,
    ):
        for _ in range(10):
            companion.chat_sync("hello")
        store.backup()
        assert len(traces(folder)) >= 1
        companion.forget()
        assert store.interactions.count() == 10
    assert traces(folder) == []


def test_a_reader_keeps_forgetting_from_being_complete_and_is_named(tmp_path: Path) -> None:
    path = tmp_path / "companion.db"
    with (
        Store(path) as other,
        Store(path, busy_seconds=0.05) as store,
        world.companion(store) as companion,
    ):
        companion.chat_sync("call me Max")
        with other.database.snapshot() as reader:
            reader.execute("SELECT count(*) FROM interactions").fetchone()
            with pytest.raises(StoreError, match="another process is reading"):
                companion.forget()
        companion.forget()
        assert companion.learned() == []


def test_a_conversation_needs_no_socket(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    # The event loop wakes itself through a pair of connected sockets, which reach nobody.
    pair = socket.socketpair

    def blocked(*_: object, **__: object) -> None:
        raise AssertionError("a socket was asked for")

    with world.companion(store) as companion:
        loop = asyncio.new_event_loop()
        monkeypatch.setattr(socket.socket, "connect", blocked)
        monkeypatch.setattr(socket.socket, "connect_ex", blocked)
        monkeypatch.setattr(socket.socket, "bind", blocked)
        monkeypatch.setattr(socket, "socket", blocked)
        monkeypatch.setattr(socket, "create_connection", blocked)
        monkeypatch.setattr(socket, "getaddrinfo", blocked)
        assert socket.socketpair is pair
        try:
            for text in ("call me Max", "the weather today?", "bye"):
                reply = loop.run_until_complete(companion.chat(text))
                assert reply.trace.faults == []
        finally:
            loop.close()


def test_a_profile_that_is_not_there_is_told_before_a_model_is_loaded(tmp_path: Path) -> None:
    assert mc.Companion is Companion
    with pytest.raises(ConfigError, match="no profile 'nobody'"):
        Companion.open(tmp_path / "c.db", profile="nobody", model="no-such-model")
    with Store(tmp_path / "c.db") as store:
        with pytest.raises(ConfigError):
            Companion.open(store, profile="nobody")
        # What was given open stays open.
        assert store.interactions.count() == 0
