"""Replies one after the other, whichever threads and event loops ask for them.

Why not `asyncio.Lock`: it belongs to one event loop, and `chat_sync` on two threads has two. Here
who comes first goes first, and who gives up while waiting gives the place up::

    async with turns.turn():
        ...                        # nobody else is here
    with turns.idle():             # raises when somebody is; never waits
        ...
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager

from mlx_companion.errors import LoopError
from mlx_companion.slm.lanes import Done, ending

__all__ = ["Turns"]

_GO = Done(None, None, 0.0)


class Turns:
    """Lets one in at a time; see the module."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[Future[Done]] = deque()
        self._taken = False

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for one's turn, and have it in the block."""
        place: Future[Done] = Future()
        with self._lock:
            self._waiting.append(place)
        self._let_in()
        try:
            while not place.done():
                await ending(place)
        except BaseException:
            self._give_up(place)
            raise
        try:
            yield
        finally:
            self._leave()

    @contextmanager
    def idle(self) -> Iterator[None]:
        """Keep everybody out in the block.

        Raises:
            LoopError: somebody is in, or waits.
        """
        with self._lock:
            if self._taken or self._waiting:
                raise LoopError("a reply is being made; try again when it is done")
            self._taken = True
        try:
            yield
        finally:
            self._leave()

    def _let_in(self) -> None:
        with self._lock:
            if self._taken or not self._waiting:
                return
            self._taken, place = True, self._waiting.popleft()
        place.set_result(_GO)

    def _leave(self) -> None:
        with self._lock:
            self._taken = False
        self._let_in()

    def _give_up(self, place: Future[Done]) -> None:
        with self._lock:
            waiting = place in self._waiting
            if waiting:
                self._waiting.remove(place)
        if not waiting:
            # It was let in at the moment in which it gave up.
            self._leave()
