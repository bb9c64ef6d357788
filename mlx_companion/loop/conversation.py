"""The companion's conversation, for whoever talks through a `Chat`, as the terminal does::

talk = Conversation(companion, seed=None)
for piece in talk.say("hello"): print(piece)      # the reply in one piece
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

from mlx_companion.loop.chat import Chat
from mlx_companion.runtime.stop import NEVER, StopSwitch
from mlx_companion.store import Interaction

if TYPE_CHECKING:
    from mlx_companion.loop.companion import Companion

__all__ = ["Conversation"]


class Conversation(Chat):
    """A conversation with all that the companion does.

    Args:
        companion: that answers.
        seed: as in `Chat`.
    """

    def __init__(self, companion: Companion, seed: int | None) -> None:
        super().__init__(companion.served, companion.store, seed)
        self.learning = self._whole = companion

    def say(
        self, prompt: str, switch: StopSwitch = NEVER
    ) -> Generator[str, None, Interaction | None]:
        """The reply in one piece, since the guard has to see all of it first."""
        reply = self._whole.chat_sync(prompt, switch=switch)
        yield reply.text
        return reply.interaction
