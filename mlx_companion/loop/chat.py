"""A conversation with the companion: what is said is answered, stored, and can be judged.

Why a class of its own: a terminal, a server and a test hold the same conversation. An exchange
is stored when its reply is complete, before the next one can begin; feedback belongs to the last
stored exchange::

    chat = Chat(companion, store)
    for piece in chat.say("What is a fjord?"):
        print(piece, end="", flush=True)
    chat.rate("up")
"""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from mlx_companion.errors import DataError
from mlx_companion.models.generation import Reply
from mlx_companion.personality import Profile, system_prompt
from mlx_companion.runtime.seeds import derive_seed
from mlx_companion.runtime.stop import NEVER, StopSwitch
from mlx_companion.store import ContextEntry, Interaction, Store
from mlx_companion.store.values import check_prompt, new_id

if TYPE_CHECKING:
    from mlx_companion.loop.trace import Trace
    from mlx_companion.slm.sync import Change

__all__ = ["Chat", "Learning", "Speaker", "Turn"]


class Speaker(Protocol):
    """What a conversation needs of a companion (`loop.ServedModel` is one)."""

    version_id: str
    profile: Profile

    def stream(
        self,
        prompt: str,
        history: list[tuple[str, str]],
        *,
        seed: int | None,
        switch: StopSwitch,
    ) -> Generator[str, None, Reply]:
        """Pieces of the reply; the return value is the whole reply."""
        ...


class Learning(Protocol):
    """What else a conversation with the small modules can do (`loop.companion.Companion`)."""

    last_trace: Trace | None

    def learned(self) -> list[ContextEntry]:
        """What is known of the person."""
        ...

    def pending(self) -> list[ContextEntry]:
        """What waits for the person's word."""
        ...

    def approve(self, update_id: str) -> Change:
        """Let a change that waits take effect."""
        ...

    def reject(self, update_id: str) -> None:
        """Drop a change that waits."""
        ...

    def undo(self, update_id: str | None = None) -> Change | None:
        """Take back one thing that was learned."""
        ...

    def forget(self, *, conversations: bool = False) -> dict[str, int]:
        """Delete what was learned."""
        ...


@dataclass(frozen=True)
class Turn:
    """An exchange in progress: the prompt, the seed of its reply, and when it began."""

    prompt: str
    seed: int | None
    started: float


class Chat:
    """One conversation after another with one version of the companion.

    Args:
        companion: answers, and forgets what no longer fits its context.
        store: where exchanges and feedback are kept.
        seed: makes sampled replies repeatable; None for other replies each time.

    Attributes:
        history: this conversation so far, as (what the person said, the reply).
        last: the last stored exchange of this conversation, to which feedback belongs.
        learning: what the small modules add, where they are in use.
    """

    learning: Learning | None = None

    def __init__(self, companion: Speaker, store: Store, seed: int | None = None) -> None:
        self.companion = companion
        self.store = store
        self.history: list[tuple[str, str]] = []
        self.last: Interaction | None = None
        self._seed = seed
        self._turns = 0
        self._conversation = new_id()

    def say(
        self, prompt: str, switch: StopSwitch = NEVER
    ) -> Generator[str, None, Interaction | None]:
        """Pieces of the reply to `prompt`; the return value is the stored exchange.

        Args:
            prompt: what the person says.
            switch: ends the reply early; the exchange is then neither stored nor remembered,
                and the return value is None.

        Raises:
            DataError: the prompt is empty or no text.
            GenerationError: it is longer than the model's context.
        """
        turn = self.begin(prompt)
        reply = yield from self.companion.stream(
            prompt, list(self.history), seed=turn.seed, switch=switch
        )
        return None if switch.requested else self.keep(turn, reply)

    def begin(self, prompt: str) -> Turn:
        """Begin an exchange, for whoever makes the reply in another way than `say`.

        Raises:
            DataError: the prompt is empty or no text.
        """
        check_prompt(prompt)
        self._turns += 1
        seed = None if self._seed is None else derive_seed(self._seed, "chat", self._turns)
        return Turn(prompt, seed, time.monotonic())

    def keep(
        self, turn: Turn, reply: Reply, *, text: str | None = None, meta: Any = None
    ) -> Interaction:
        """Store a finished exchange; the next one remembers it.

        Args:
            turn: as `begin` gave it.
            reply: what the model said.
            text: what the person is shown, when that is something else.
            meta: more to keep with it, a mapping.
        """
        shown = reply.text if text is None else text
        self.last = self.store.interactions.add(
            turn.prompt,
            shown,
            conversation_id=self._conversation,
            model_version=self.companion.version_id,
            system=system_prompt(self.companion.profile),
            meta={
                "finish_reason": reply.finish_reason,
                "tokens": len(reply.tokens),
                "seconds": round(time.monotonic() - turn.started, 3),
                **(meta or {}),
            },
        )
        self.history.append((turn.prompt, shown))
        return self.last

    @property
    def id(self) -> str:
        """Of this conversation, under which its exchanges are stored."""
        return self._conversation

    def rate(self, kind: Literal["up", "down"]) -> None:
        """Store a thumb for the last reply.

        Raises:
            DataError: nothing was said yet.
        """
        self.store.feedback.add(self._judged().id, kind)

    def edit(self, text: str) -> None:
        """Store how the last reply should have read; the conversation goes on as if it had.

        Raises:
            DataError: nothing was said yet, or the text is empty.
        """
        last = self._judged()
        self.store.feedback.add(last.id, "edit", text)
        self.history[-1] = (last.prompt, text)

    def new(self) -> None:
        """Forget this conversation (it stays stored) and begin another."""
        self.history.clear()
        self.last = None
        self._conversation = new_id()

    def stats(self) -> dict[str, int]:
        """How many exchanges and pieces of feedback this conversation and the store hold."""
        feedback = self.store.feedback
        return {
            "in this conversation": len(self.history),
            "stored in all": self.store.interactions.count(),
            "good": feedback.count("up"),
            "bad": feedback.count("down"),
            "edited": feedback.count("edit"),
        }

    def _judged(self) -> Interaction:
        if self.last is None:
            raise DataError("there is no reply yet in this conversation; say something first")
        return self.last
