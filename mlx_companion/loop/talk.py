"""The terminal chat: reads lines, streams replies, obeys the slash commands.

On a terminal Ctrl-C ends the reply that is being written, not the chat, and Ctrl-D leaves. When
standard input is a file or a pipe, each of its lines is said in turn and only the replies are
printed, so that a script can hold a conversation.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Iterator
from typing import BinaryIO

from rich.console import Console
from rich.text import Text

from mlx_companion.errors import CompanionError, DataError
from mlx_companion.loop.chat import Chat
from mlx_companion.loop.console import clean
from mlx_companion.loop.talk_learned import COMMANDS, LEARNED_HELP, obey
from mlx_companion.runtime.stop import StopSwitch

__all__ = ["talk"]

HELP = f"""\
/good       the last reply was good
/bad        the last reply was bad
/edit TEXT  the last reply should have read TEXT
/new        begin another conversation
/stats      what is stored
{LEARNED_HELP}
/help       this list
/quit       leave (so does Ctrl-D); Ctrl-C ends a reply that is being written"""

# A path such as /etc/hosts is no command.
_COMMAND = re.compile(r"/([a-z]+)(?:\s+(.*))?", re.DOTALL)


class _Leave(Exception):  # noqa: N818 - a wish, not an error
    """The person wants to leave, or was asked to by the system."""


def talk(chat: Chat, console: Console, *, interactive: bool) -> int:
    """Hold a conversation until its end.

    Args:
        chat: answers and stores.
        console: where everything is printed.
        interactive: a person is typing; else lines come from standard input.

    Returns:
        How many lines could not be answered.
    """
    failures = 0
    lines = _typed(console) if interactive else _piped(sys.stdin.buffer)
    for line in lines:
        try:
            _answer(chat, console, line() if callable(line) else line)
        except _Leave:
            break
        except CompanionError as error:
            failures += 1
            console.print(Text(clean(str(error)), style="red"), soft_wrap=True)
    return failures


def _answer(chat: Chat, console: Console, line: str) -> None:
    match = _COMMAND.fullmatch(line.strip())
    if match:
        _obey(chat, console, match[1], (match[2] or "").strip())
    elif line.strip():
        _reply(chat, console, line.strip())


def _reply(chat: Chat, console: Console, prompt: str) -> None:
    with StopSwitch() as switch, contextlib.closing(chat.say(prompt, switch)) as pieces:
        try:
            for piece in pieces:
                console.file.write(clean(piece))
                console.file.flush()
        except KeyboardInterrupt:
            switch.request("received SIGINT twice")
        console.file.write("\n")
        console.file.flush()
    if switch.requested:
        console.print("(ended; this exchange is not kept)", style="dim")
        if "SIGTERM" in switch.requested:
            raise _Leave


def _obey(chat: Chat, console: Console, command: str, text: str) -> None:
    said = "noted"
    match command:
        case "good" | "bad":
            chat.rate("up" if command == "good" else "down")
        case "edit" if text:
            chat.edit(text)
        case "edit":
            raise DataError("give the better reply after the command: /edit It should read so.")
        case "new":
            chat.new()
            said = "a new conversation begins"
        case "stats":
            said = "\n".join(f"{name:<21}{count:,}" for name, count in chat.stats().items())
        case "help":
            said = HELP
        case _ if command in COMMANDS:
            said = clean(obey(chat.learning, command, text))
        case "quit" | "exit":
            raise _Leave
        case _:
            raise DataError(f"there is no command /{command}; /help lists them")
    console.print(Text(said, style="dim"))


def _typed(console: Console) -> Iterator[str]:
    """Lines that a person types; ends with Ctrl-D."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - gives input() its line editing and history
    while True:
        try:
            yield input("\n> ")
        except EOFError:
            console.print()
            return
        except KeyboardInterrupt:
            console.print("\n(Ctrl-D or /quit leaves)", style="dim")


def _piped(stream: BinaryIO) -> Iterator[Callable[[], str]]:
    """Lines of a stream; each is decoded when it is asked for, so that a bad one fails alone."""
    for number, raw in enumerate(stream, start=1):
        yield lambda raw=raw, number=number: _decoded(raw, number)  # type: ignore[misc]


def _decoded(raw: bytes, number: int) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"this line is not UTF-8 text ({error.reason}) and was not said",
            path="standard input",
            line=number,
        ) from error
