"""One reply at a time on any thread, and nothing comes back that was forgotten meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import companion_world as world
import pytest
from patience import cpu_seconds_below, not_hanging

from mlx_companion.errors import LoopError, SLMError
from mlx_companion.loop.companion import Companion
from mlx_companion.loop.trace import short
from mlx_companion.loop.watch import Watcher
from mlx_companion.slm import ContextUpdate
from mlx_companion.slm.sync import SyncConfig
from mlx_companion.store import Store, forget

SECRET = "Maximilian-of-the-fjord"


@pytest.fixture
def companion(store: Store) -> Iterator[Companion]:
    with world.companion(store) as made:
        yield made


def test_replies_are_made_one_after_the_other_on_several_threads(store: Store) -> None:
    at_work: list[str] = []
    most = 0

    def track(item: Any) -> Any:
        nonlocal most
        at_work.append(item["text"])
        most = max(most, len(at_work))
        return world.track(item)

    def answer(prompt: str, system: str) -> str:
        at_work.remove(prompt)
        return "Yes."

    texts = [f"number {n}" for n in range(4)]
    with (
        world.companion(
            store, world.Scripted(answer), work={"context_tracker": track}
        ) as companion,
        ThreadPoolExecutor(4) as pool,
    ):
        list(pool.map(companion.chat_sync, texts))
    assert most == 1
    # None cleared away what another one was about to store.
    assert len(store.traffic.recent("context_tracker")) == 4


def test_who_gives_up_waiting_gives_the_turn_on(companion: Companion) -> None:
    async def scene() -> list[str]:
        talks = [asyncio.create_task(companion.chat(f"number {n}")) for n in range(4)]
        await asyncio.sleep(0)
        talks[1].cancel()
        talks[2].cancel()
        with pytest.raises(asyncio.CancelledError):
            await talks[1]
        return [(await talks[n]).text for n in (0, 3)]

    assert asyncio.run(scene()) == ["You said: number 0.", "You said: number 3."]
    assert companion.chat_sync("and then?").text == "You said: and then?."


def test_the_model_stops_when_nobody_waits_any_more(store: Store) -> None:
    begun, ended = threading.Event(), threading.Event()

    class Endless(world.Scripted):
        def stream(self, prompt: str, history: Any = (), **options: Any) -> Any:
            begun.set()
            while not options["switch"].requested:
                yield "and "
            ended.set()
            return self._reply("and ")

    async def scene(companion: Companion) -> None:
        talk = asyncio.create_task(companion.chat("tell me everything"))
        await asyncio.to_thread(begun.wait)
        talk.cancel()
        with pytest.raises(asyncio.CancelledError):
            await talk
        await asyncio.to_thread(ended.wait)

    with not_hanging(), world.companion(store, Endless()) as companion:
        asyncio.run(scene(companion))
    assert store.interactions.count() == 0


def test_forgetting_waits_for_no_reply_and_spoils_none(store: Store) -> None:
    def answer(prompt: str, system: str) -> str:
        with pytest.raises(LoopError, match="a reply is being made"):
            companion.forget()
        return "Yes."

    with world.companion(store, world.Scripted(answer)) as companion:
        assert companion.chat_sync("call me Max").text == "Yes."
        assert [one.key for one in companion.learned()] == ["person.name"]
        companion.forget()
        assert companion.learned() == []


class Counting(world.Module):
    """A tracker that remembers, or a monitor, over the states that the store has for it."""

    def __init__(self, name: str, store: Store) -> None:
        super().__init__(name, world.WORK[name])
        self.heard = list(store.module_states.get(name) or [])

    def process_batch(self, items: Any) -> list[Any]:
        self.heard += [item["text"] for item in items]
        return super().process_batch(items)

    def learned_state(self) -> Any:
        return list(self.heard)


def test_what_another_process_forgot_does_not_come_back(tmp_path: Path) -> None:
    path = tmp_path / "companion.db"
    with Store(path) as store, Store(path) as other, world.companion(store) as companion:
        factory = companion._modules.factory
        factory.register_module("context_tracker", lambda: Counting("context_tracker", store))
        companion.chat_sync(f"call me {SECRET}")
        assert store.module_states.get("context_tracker") == [f"call me {SECRET}"]
        forget(other)
        companion.chat_sync("hello")
        assert store.module_states.get("context_tracker") == ["hello"]
        # The conversation was not forgotten, and goes on.
        assert len(companion.conversation.history) == 2
        forget(other, conversations=True)
        companion.chat_sync("hello again")
        assert companion.served.asked[-1].history == []  # type: ignore[attr-defined]
        # While a reply is made.
        companion.served.answer = lambda *_: str(forget(other))  # type: ignore[attr-defined]
        companion.chat_sync(f"and {SECRET}")
        assert store.traffic.recent("context_tracker") == []
        assert store.module_states.get("context_tracker") is None


def test_a_module_that_cannot_begin_anew_does_not_go_on_with_what_it_knew(store: Store) -> None:
    built = []

    def make() -> Counting:
        built.append(1)
        if len(built) in (2, 3):
            raise SLMError("its pack is damaged by now")
        return Counting("context_tracker", store)

    with world.companion(store) as companion:
        companion._modules.factory.register_module("context_tracker", make)
        companion.chat_sync(f"call me {SECRET}")
        companion.forget()
        reply = companion.chat_sync("hello")
        assert "its pack is damaged by now" in str(reply.trace["listen"].fault)
        assert store.module_states.get("context_tracker") is None


def test_what_was_forgotten_does_not_come_back_from_a_late_thread(store: Store) -> None:
    class Monitor:
        version = "1"

        def __init__(self) -> None:
            self.seen: list[str] = []

        def measure(self, response: str, user: str | None = None) -> str:
            if response == "late":
                forget(store)
            return response

        def take_in(self, seen: str) -> None:
            self.seen.append(seen)

        def state_dict(self) -> dict[str, Any]:
            return {"seen": self.seen}

        def load_state(self, state: Any) -> None:
            self.seen = list(state["seen"])

        def close(self) -> None:
            pass

    def seen() -> Any:
        return store.module_states.get("drift_monitor")

    watcher = Watcher(store, monitor=Monitor())
    watcher.process({"response": SECRET})
    assert seen() == {"seen": [SECRET]}
    watcher.process({"response": "late"})
    assert seen() is None
    Watcher(store, monitor=Monitor()).process({"response": "new"})
    watcher.process({"response": "later still"})
    assert seen() == {"seen": ["new"]}


def test_what_was_said_is_gone_from_memory_as_well(store: Store) -> None:
    def mumble(item: Any) -> Any:
        raise ValueError(item["text"])

    with world.companion(store, work={"context_tracker": mumble}) as companion:
        for _ in range(4):
            companion.chat_sync(SECRET)
        assert SECRET in str(companion._modules.orchestrator.status())
        companion.forget()
        assert SECRET not in str(companion._modules.orchestrator.status())


def test_a_queue_that_others_filled_keeps_nothing_from_being_learned(store: Store) -> None:
    with world.companion(store, sync=SyncConfig(capacity=2)) as companion:
        for n in range(2):
            companion.sync.queue_update(ContextUpdate(f"k{n}", n, "", (0, 0), 0.9))
        assert companion.chat_sync("call me Max").trace["learn"].state == "ok"
        assert {one.key for one in companion.learned()} == {"k0", "k1", "person.name"}


def test_a_whole_book_is_cut_short_before_it_is_read() -> None:
    # The steps are noted on the event loop. In full each of these takes 30 ms.
    book = "word  " * 500_000
    with cpu_seconds_below(0.5):
        for _ in range(100):
            assert short(book) == f"{'word ' * 23}wo..."
