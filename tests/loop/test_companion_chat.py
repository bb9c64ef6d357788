"""The terminal chat with the modules: the same conversation, and commands for what was learned."""

from __future__ import annotations

import io
from collections.abc import Iterator

import companion_world as world
import pytest
from rich.console import Console

from mlx_companion.loop import talk as terminal
from mlx_companion.loop.chat import Chat
from mlx_companion.loop.companion import Companion
from mlx_companion.runtime.stop import StopSwitch
from mlx_companion.slm import ContextUpdate
from mlx_companion.store import Store


@pytest.fixture
def companion(store: Store) -> Iterator[Companion]:
    with world.companion(store) as made:
        yield made


def piped(chat: Chat, lines: str, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], int]:
    """What is printed when these lines are said through a pipe, and how many failed."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    file = io.StringIO()
    failures = terminal.talk(chat, Console(file=file, width=200), interactive=False)
    return file.getvalue().splitlines(), failures


def test_the_chat_learns_shows_and_takes_back(
    companion: Companion, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = "/learned\n/undo\n/trace\ncall me Max\n/good\n/learned\n/undo\n/learned\n"
    printed, failures = piped(companion.conversation, lines, monkeypatch)
    assert failures == 0
    assert printed[:3] == [
        "nothing yet", "nothing is known that could be taken back", "there is no reply yet",
    ]  # fmt: skip
    assert printed[3:5] == ["You said: call me Max.", "noted"]
    assert printed[5].startswith("person.name = 'Max' (said from \"call me Max\")  ")
    assert printed[6:] == ["person.name was 'Max' and is unknown now", "nothing yet"]
    assert store.feedback.count("up") == 1


def test_the_trace_is_a_line_per_step(
    companion: Companion, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed, _ = piped(companion.conversation, "hello\n/trace\n", monkeypatch)
    assert [line.split()[0] for line in printed[1:]] == [
        "listen", "learn", "research", "prompt", "generate", "guard", "rewrite", "polish", "keep",
        "remember", "watch",
    ]  # fmt: skip


def test_the_person_has_the_last_word(
    companion: Companion, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n, value in enumerate((0.5, 1.0)):
        companion.sync.queue_update(
            ContextUpdate("personality.warmth", value, "", (0, 0), 0.9, explicit=False), id=f"w{n}"
        )
    companion.sync.process_queue()
    printed, failures = piped(
        companion.conversation, "/learned\n/yes\n/yes w1\n/no w1\n/no w9\n", monkeypatch
    )
    assert printed[0] == "personality.warmth = 0.5 (inferred, 90%)  w0"
    assert printed[1:3] == [
        "waiting for your word (/yes ID, /no ID):",
        "personality.warmth = 1.0 (inferred, 90%)  w1",
    ]
    assert "give the id that /learned shows: /yes ID" in printed[3]
    assert printed[4] == "personality.warmth is 1.0 from now on"
    assert "waits for nobody" in printed[5]
    assert "there is no update 'w9'" in printed[6]
    assert failures == 3


def test_forgetting_from_the_chat(
    companion: Companion, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed, failures = piped(
        companion.conversation,
        "call me Max\n/forget now\n/forget\n/learned\n/forget all\n/stats\n",
        monkeypatch,
    )
    assert failures == 1
    assert printed[2].startswith("forgotten: ")
    assert printed[3] == "nothing yet"
    assert printed[4].startswith("forgotten: 1 rows")
    assert "stored in all        0" in printed


@pytest.mark.parametrize("command", ["trace", "learned", "undo", "yes", "no", "forget"])
def test_without_the_modules_the_commands_say_how_to_get_them(
    command: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed, failures = piped(Chat(world.Scripted(), store), f"/{command}\n/help\n", monkeypatch)
    assert failures == 1
    assert printed[0] == (f"/{command} needs the modules: leave, and start with chat --modules")
    assert any(line.startswith(f"/{command}") for line in printed[1:])


def test_an_ended_reply_is_shown_and_not_kept(store: Store) -> None:
    switch = StopSwitch()

    def answer(prompt: str, system: str) -> str:
        switch.request("enough")
        return "You"

    with world.companion(store, world.Scripted(answer)) as companion:
        pieces = companion.conversation.say("hello", switch)
        assert next(pieces) == "You"
        with pytest.raises(StopIteration) as end:
            next(pieces)
        assert end.value.value is None
        assert store.interactions.count() == 0
