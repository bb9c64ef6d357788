"""The conversation and the terminal chat: nothing said is lost, nothing unfinished is kept."""

from __future__ import annotations

import io
import signal
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest
from rich.console import Console

from mlx_companion.errors import DataError, GenerationError
from mlx_companion.loop import talk as terminal
from mlx_companion.loop.chat import Chat
from mlx_companion.models.generation import Reply
from mlx_companion.personality import load_profile, system_prompt
from mlx_companion.runtime.stop import NEVER, StopSwitch
from mlx_companion.store import Store


class Parrot:
    """Answers with what was said, in two pieces, and remembers how it was asked."""

    def __init__(self) -> None:
        self.version_id = "v0007"
        self.profile = load_profile()
        self.asked: list[tuple[str, list[tuple[str, str]], int | None]] = []
        self.between: Callable[[], object] = lambda: None

    def stream(
        self,
        prompt: str,
        history: list[tuple[str, str]],
        *,
        seed: int | None,
        switch: StopSwitch,
    ) -> Generator[str, None, Reply]:
        self.asked.append((prompt, list(history), seed))
        if prompt == "too long":
            raise GenerationError("the prompt has 100,000 tokens")
        yield "You said: "
        self.between()
        if switch.requested:
            return Reply("You said:", (1,), "stop", 3)
        yield prompt
        return Reply(f"You said: {prompt}", (1, 2), "length", 3)


@pytest.fixture
def chat(store: Store) -> Chat:
    return Chat(Parrot(), store)


def said(chat: Chat, prompt: str, switch: StopSwitch = NEVER) -> tuple[str, Any]:
    stream, text = chat.say(prompt, switch), ""
    while True:
        try:
            text += next(stream)
        except StopIteration as end:
            return text, end.value


def test_an_exchange_is_stored_with_all_that_is_known_of_it(chat: Chat, store: Store) -> None:
    text, kept = said(chat, "hello")
    assert text == "You said: hello"
    assert store.interactions.get(kept.id) == kept
    assert (kept.prompt, kept.response) == ("hello", "You said: hello")
    assert (kept.model_version, kept.source) == ("v0007", "chat")
    assert kept.system == system_prompt(load_profile())
    assert kept.meta["finish_reason"] == "length"
    assert kept.meta["tokens"] == 2


def test_history_grows_until_a_new_conversation(chat: Chat, store: Store) -> None:
    first, second = said(chat, "one")[1], said(chat, "two")[1]
    chat.new()
    third = said(chat, "three")[1]
    assert first.conversation_id == second.conversation_id != third.conversation_id
    assert [history for _, history, _ in chat.companion.asked] == [  # type: ignore[attr-defined]
        [], [("one", "You said: one")], [],
    ]  # fmt: skip


def test_an_ended_reply_is_neither_stored_nor_remembered(chat: Chat, store: Store) -> None:
    said(chat, "kept")
    switch = StopSwitch()
    chat.companion.between = lambda: switch.request("enough")  # type: ignore[attr-defined]
    text, kept = said(chat, "ended", switch)
    assert (text, kept) == ("You said: ", None)
    assert [i.prompt for i in store.interactions.iter()] == ["kept"]
    assert chat.history == [("kept", "You said: kept")]
    chat.rate("up")
    assert store.feedback.state(store.interactions.recent()[0].id).rating == "up"


def test_feedback_belongs_to_the_last_reply(chat: Chat, store: Store) -> None:
    first, second = said(chat, "one")[1], said(chat, "two")[1]
    chat.rate("down")
    chat.edit("Better.")
    assert store.feedback.for_interaction(first.id) == []
    assert store.feedback.state(second.id).rating == "down"
    assert store.feedback.state(second.id).edited == "Better."
    assert chat.history[-1] == ("two", "Better.")
    assert chat.stats() == {
        "in this conversation": 2, "stored in all": 2, "good": 0, "bad": 1, "edited": 1,
    }  # fmt: skip


@pytest.mark.parametrize("judge", [lambda c: c.rate("up"), lambda c: c.edit("x")])
def test_there_must_be_a_reply_to_judge(judge: Callable[[Chat], None], chat: Chat) -> None:
    with pytest.raises(DataError, match="no reply yet"):
        judge(chat)
    said(chat, "one")
    chat.new()
    with pytest.raises(DataError, match="no reply yet"):
        judge(chat)


@pytest.mark.parametrize("prompt", ["", "  \n", "half \ud800"])
def test_what_cannot_be_stored_is_not_asked(prompt: str, chat: Chat, store: Store) -> None:
    with pytest.raises(DataError):
        said(chat, prompt)
    assert chat.companion.asked == []  # type: ignore[attr-defined]
    assert store.interactions.count() == 0


def test_a_seed_repeats_a_conversation(store: Store) -> None:
    def seeds(seed: int | None) -> list[int | None]:
        chat = Chat(Parrot(), store, seed)
        for prompt in ("a", "b"):
            said(chat, prompt)
        return [asked[2] for asked in chat.companion.asked]  # type: ignore[attr-defined]

    assert seeds(5) == seeds(5) != seeds(6)
    assert len(set(seeds(5))) == 2
    assert seeds(None) == [None, None]


def piped(chat: Chat, lines: bytes, monkeypatch: pytest.MonkeyPatch) -> tuple[str, int]:
    """What is printed when these lines are said through a pipe, and how many failed."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines)))
    file = io.StringIO()
    failures = terminal.talk(chat, Console(file=file, width=80), interactive=False)
    return file.getvalue(), failures


def test_a_script_can_hold_a_conversation(
    chat: Chat, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = "héllo\n\n  \n/good\n/edit A better reply.\n/new\n/etc/hosts is a file\n/bad\n/quit\nno"
    printed, failures = piped(chat, lines.encode(), monkeypatch)
    assert failures == 0
    assert printed.splitlines() == [
        "You said: héllo", "noted", "noted", "a new conversation begins",
        "You said: /etc/hosts is a file", "noted",
    ]  # fmt: skip
    first, second = store.interactions.iter()
    assert store.feedback.state(first.id).rating == "up"
    assert store.feedback.state(first.id).edited == "A better reply."
    assert store.feedback.state(second.id).rating == "down"


def test_a_bad_line_fails_alone(chat: Chat, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = b"one\n\xff\xfe\ntoo long\n/nonsense\n/edit\n/edit   \ntwo\n"
    printed, failures = piped(chat, lines, monkeypatch)
    assert failures == 5
    assert [i.prompt for i in store.interactions.iter()] == ["one", "two"]
    assert "standard input:2: this line is not UTF-8 text" in printed
    assert "the prompt has 100,000 tokens" in printed
    assert "there is no command /nonsense; /help lists them" in printed


def test_help_names_every_command(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    printed, _ = piped(chat, b"/help\n/stats\n", monkeypatch)
    for command in ("/good", "/bad", "/edit", "/new", "/stats", "/help", "/quit"):
        assert command in printed
    assert "stored in all" in printed


def test_a_reply_cannot_command_the_terminal(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    printed, _ = piped(chat, b"a\x1b[2Jb\n", monkeypatch)
    assert "\x1b" not in printed


def test_ctrl_c_ends_the_reply_and_not_the_chat(
    chat: Chat, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    presses = iter([lambda: signal.raise_signal(signal.SIGINT)])
    chat.companion.between = lambda: next(presses, lambda: None)()  # type: ignore[attr-defined]
    printed, failures = piped(chat, b"one\ntwo\n", monkeypatch)
    assert failures == 0
    assert printed.splitlines() == [
        "You said: ",
        "(ended; this exchange is not kept)",
        "You said: two",
    ]
    assert [i.prompt for i in store.interactions.iter()] == ["two"]


def test_a_second_ctrl_c_ends_the_reply_at_once(
    chat: Chat, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the second one did not interrupt")

    chat.companion.between = twice  # type: ignore[attr-defined]
    printed, _ = piped(chat, b"one\n/stats\n", monkeypatch)
    assert "(ended; this exchange is not kept)" in printed
    assert "stored in all        0" in printed


def test_a_termination_ends_the_chat(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    signals = iter([lambda: signal.raise_signal(signal.SIGTERM)])
    chat.companion.between = lambda: next(signals, lambda: None)()  # type: ignore[attr-defined]
    printed, _ = piped(chat, b"one\ntwo\n", monkeypatch)
    assert "two" not in printed


def test_a_person_types_and_leaves_with_ctrl_d(
    chat: Chat, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: Iterator[str | type[BaseException]] = iter(["one", KeyboardInterrupt, "/good", EOFError])

    def typed(prompt: str) -> str:
        key = next(keys)
        if isinstance(key, str):
            return key
        raise key

    monkeypatch.setattr("builtins.input", typed)
    file = io.StringIO()
    assert terminal.talk(chat, Console(file=file, width=80), interactive=True) == 0
    assert "You said: one\n" in file.getvalue()
    assert "(Ctrl-D or /quit leaves)" in file.getvalue()
    assert store.feedback.count("up") == 1
