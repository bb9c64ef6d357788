"""What every constraint offers to generation, whatever automaton is behind it.

A constraint says, at each step, which of the 260 ids of the byte vocabulary may come next
(`text/byte_text.py`: byte b is id b + 4, EOS is 2). States are immutable values: speculative
decoding keeps an old one and goes back to it, a cache pickles it, a batch holds a list of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from mlx_companion.blt.constraints.automaton import FAR
from mlx_companion.errors import ConfigError, GenerationError

EOS = 2
OFFSET = 4
VOCABULARY = 260
UNLIMITED = int(FAR) - 1

State = Hashable


class Constraint(ABC):
    """A set of byte strings that generation is kept inside of.

    Example::

        constraint = regex(r"[A-Z][a-z]+")
        state = constraint.start()
        while not done:
            mask = constraint.allowed_within(state, budget=left)   # (260,) bool
            next_id = sample(logits, mask)
            state = constraint.advance(state, next_id)
    """

    @abstractmethod
    def start(self) -> State:
        """The state before the first byte."""

    @abstractmethod
    def advance(self, state: Any, next_id: int) -> State:
        """The state after one more id.

        Args:
            state: a state of this constraint; it stays valid.
            next_id: an id of the byte vocabulary. After EOS the only id is EOS again.

        Raises:
            GenerationError: the id is not allowed here.
        """

    @abstractmethod
    def distance(self, state: Any) -> int:
        """The fewest bytes to a complete match (0 when the bytes so far are one)."""

    @abstractmethod
    def _masks(self, states: Sequence[Any], budgets: np.ndarray) -> np.ndarray:
        """(B, 260) allowed ids; budgets (B,) int64 are at least the states' distances."""

    @property
    def shortest(self) -> int:
        """The length of the shortest match, in bytes."""
        return self.distance(self.start())

    def check_budget(self, budget: int) -> None:
        """Refuse, before anything is generated, a length that no match fits in.

        Args:
            budget: the most bytes that will be generated.

        Raises:
            ConfigError: the shortest match is longer.
        """
        if budget < self.shortest:
            raise ConfigError(
                f"max_bytes is {budget}, and the shortest text that the constraint allows has "
                f"{self.shortest} bytes; allow at least {self.shortest}"
            )

    def allowed_batch(
        self, states: Sequence[Any], budgets: Sequence[int | None] | None = None
    ) -> np.ndarray:
        """What may come next in each row of a batch.

        Args:
            states: B states.
            budgets: the bytes that each row may still write (EOS is none), None for no limit.
                Only bytes after which a match still fits are allowed.

        Returns:
            (B, 260) bool: bytes at b + 4, and EOS exactly where the row is complete.

        Raises:
            ConfigError: a row cannot be completed within its budget.
        """
        left = np.full(len(states), UNLIMITED, dtype=np.int64)
        for row, budget in enumerate(() if budgets is None else budgets):
            if budget is None:
                continue
            if budget < self.distance(states[row]):
                raise ConfigError(
                    f"row {row} may write {budget} more bytes and needs at least "
                    f"{self.distance(states[row])} to complete a match"
                )
            left[row] = budget
        return self._masks(states, left)

    def allowed(self, state: Any) -> np.ndarray:
        """(260,) bool: what may come next when the length is not limited."""
        return self.allowed_batch([state])[0]

    def allowed_within(self, state: Any, budget: int | None) -> np.ndarray:
        """(260,) bool: what may come next so that a match fits in `budget` more bytes.

        Raises:
            ConfigError: no match fits.
        """
        return self.allowed_batch([state], [budget])[0]

    def is_complete(self, state: Any) -> bool:
        """Whether the bytes so far are a match."""
        return self.distance(state) == 0

    def forced(self, state: Any, budget: int | None = None, limit: int = 256) -> bytes:
        """The bytes that must come next because there is no choice, such as a property's name.

        They can be fed to the model as one chunk without sampling.

        Args:
            state: where to begin.
            budget: the bytes that may still be written.
            limit: the most bytes to return.
        """
        found = bytearray()
        while len(found) < limit:
            ids = np.flatnonzero(self.allowed_within(state, budget))
            if len(ids) != 1 or ids[0] == EOS:
                break
            found.append(int(ids[0]) - OFFSET)
            state = self.advance(state, int(ids[0]))
            budget = None if budget is None else budget - 1
        return bytes(found)

    def accepts(self, text: bytes | str) -> bool:
        """Whether a whole text is a match."""
        state = self.start()
        for byte in text.encode() if isinstance(text, str) else text:
            try:
                state = self.advance(state, byte + OFFSET)
            except GenerationError:
                return False
        return self.is_complete(state)


def refuse_id(next_id: int) -> GenerationError:
    """The error for an id that may not come next."""
    what = f"byte 0x{next_id - OFFSET:02x}" if OFFSET <= next_id < VOCABULARY else f"id {next_id}"
    return GenerationError(
        f"{what} is not allowed by the constraint here; mask the logits with `allowed` first"
    )
