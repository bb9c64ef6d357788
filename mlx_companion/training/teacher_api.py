"""Asks a teacher for replies: a model behind Ollama or any OpenAI-compatible server.

    config = TeacherConfig(model="llama3.1:8b")           # on this machine, unless told otherwise
    found = ask_teacher(prompts, config, "run/replies.jsonl")
    finetune("smollm2-135m", found.samples(), "run/student")

A bounded number of requests is under way at once; what a retry may mend is tried again, with
growing pauses. Every reply is appended to a file as soon as it is there, under a key made of its
prompt and the settings: a run that was killed asks only for what is missing.

Nothing leaves the machine unless `url` names another one, and proxies are not asked on the way to
this one.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mlx_companion.errors import ConfigError, TeacherError
from mlx_companion.models.prompts import Prompt, as_messages
from mlx_companion.runtime.logs import get_logger
from mlx_companion.runtime.stop import NEVER, StopSwitch
from mlx_companion.text.records import Message, Sample
from mlx_companion.training.teacher_client import (
    Refused,
    TeacherClient,
    TeacherConfig,
    TeacherReply,
)
from mlx_companion.training.teacher_replies import ReplyFile, reply_key

__all__ = ["TeacherConfig", "TeacherReplies", "TeacherReply", "ask_teacher"]

_POLL_SECONDS = 0.05
_log = get_logger(__name__)

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class TeacherReplies:
    """What a teacher answered.

    Attributes:
        prompts: the conversations that were asked, in order.
        replies: one for each; None where there is none.
        failed: (number of the prompt, why it has no reply).
        asked: requests that were answered now; the others were known before.
    """

    prompts: list[Messages]
    replies: list[TeacherReply | None]
    failed: list[tuple[int, str]] = field(default_factory=list)
    asked: int = 0

    def samples(self, *, whole: bool = True) -> list[Sample]:
        """Training samples of the replies.

        Args:
            whole: leave out replies that were cut off at the most tokens allowed: a student of
                them would not learn to end.
        """
        return [
            Sample(
                messages=(*(Message(m["role"], m["content"]) for m in prompt),
                          Message("assistant", reply.text)),
                source=f"teacher:{number}",
            )
            for number, (prompt, reply) in enumerate(zip(self.prompts, self.replies, strict=True))
            if reply is not None and not (whole and reply.cut)
        ]  # fmt: skip


def ask_teacher(
    prompts: Sequence[Prompt],
    config: TeacherConfig,
    path: str | Path,
    *,
    stop: StopSwitch = NEVER,
    on_reply: Callable[[int, int], None] | None = None,
) -> TeacherReplies:
    """Ask for a reply to each prompt, except where the file holds one already.

    Args:
        prompts: texts or chats.
        config: the server, the model, and how it samples.
        path: the file of replies; made when missing, only ever appended to.
        stop: consulted many times a second; replies under way are given up then.
        on_reply: called with (replies known, prompts).

    Returns:
        Replies in the order of the prompts. Prompts that have none, after all retries, are listed.

    Raises:
        TeacherError: the server cannot be reached, refuses, does not know the model, or fails for
            `config.most_failures` prompts in a row. What was answered is in the file.
        ConfigError: a prompt is empty.
        DiskFullError: no space for a reply.
        MissingExtraError: httpx is not installed.
        Stopped: the switch was thrown.
    """
    chats = [_chat(prompt, config) for prompt in prompts]
    keys = [reply_key(chat, config) for chat in chats]
    with ReplyFile(path) as file:
        missing = list(dict.fromkeys(key for key in keys if key not in file.replies))
        first = {key: number for number, key in reversed(list(enumerate(keys)))}
        work = [(key, chats[first[key]]) for key in missing]
        failed = _ask(work, config, file, stop, on_reply, len(set(keys))) if work else {}
        replies = [file.replies.get(key) for key in keys]
    return TeacherReplies(
        chats,
        replies,
        [(number, failed[key]) for number, key in enumerate(keys) if key in failed],
        len(work) - len(failed),
    )


def _chat(prompt: Prompt, config: TeacherConfig) -> Messages:
    if not isinstance(prompt, str) and all(isinstance(item, int) for item in prompt):
        raise ConfigError("a teacher reads texts or chats, not tokens; give the text")
    return as_messages(prompt, config.system)


def _ask(
    work: list[tuple[str, Messages]],
    config: TeacherConfig,
    file: ReplyFile,
    stop: StopSwitch,
    on_reply: Callable[[int, int], None] | None,
    total: int,
) -> dict[str, str]:
    """Ask for all of `work`; the keys that got no reply, and why."""
    failed: dict[str, str] = {}
    in_row = 0
    with TeacherClient(config) as client:
        client.check()
    with _Workers(config, work) as workers:
        for _ in work:
            key, outcome = workers.next(stop)
            if isinstance(outcome, TeacherReply):
                file.add(key, outcome)
                in_row = 0
                if on_reply is not None:
                    on_reply(total - len(work) + workers.done - len(failed), total)
                continue
            if not isinstance(outcome, Refused):
                raise outcome
            failed[key], in_row = str(outcome), in_row + 1
            _log.warning("a prompt got no reply", extra={"why": str(outcome)})
            if in_row >= config.most_failures:
                raise TeacherError(
                    f"{in_row} prompts in a row got no reply from {config.url} ({outcome}); "
                    "replies so far are kept: run it again when the server is well"
                )
    return failed


class _Workers:
    """Threads that ask. They end with the program, so that a slow server does not hold it up.

    The last thread to end closes the connections: closed any earlier, one that a thread is just
    opening would stay open.
    """

    def __init__(self, config: TeacherConfig, work: list[tuple[str, Messages]]) -> None:
        self._client = TeacherClient(config)
        self._todo: queue.SimpleQueue[tuple[str, Messages]] = queue.SimpleQueue()
        self._found: queue.SimpleQueue[tuple[str, TeacherReply | Exception]] = queue.SimpleQueue()
        for item in work:
            self._todo.put(item)
        self._over = threading.Event()
        self._running = min(config.concurrency, len(work))
        self._lock = threading.Lock()
        self.done = 0

    def __enter__(self) -> _Workers:
        for _ in range(self._running):
            threading.Thread(target=self._run, name="teacher", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def next(self, stop: StopSwitch) -> tuple[str, TeacherReply | Exception]:
        """The next outcome of any prompt."""
        while True:
            stop.check()
            try:
                found = self._found.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                continue
            self.done += 1
            return found

    def _run(self) -> None:
        try:
            self._ask_all()
        finally:
            with self._lock:
                self._running -= 1
                last = self._running == 0
            if last:
                self._client.close()

    def _ask_all(self) -> None:
        while not self._over.is_set():
            try:
                key, chat = self._todo.get_nowait()
            except queue.Empty:
                return
            try:
                self._found.put((key, self._client.ask(chat, self._over)))
            except Exception as error:
                self._found.put((key, error))
