"""A circuit breaker: what fails again and again is left alone for a while, then tried once.

Why: a module that hangs costs every message its whole timeout. After `failures` failures in a row
the circuit opens and the fallback answers at once; after `reset_seconds` one message may try again
(half open). Its success closes the circuit, its failure opens it for twice as long::

    if breaker.allow():
        try:
            answer = work()
        except Exception as error:
            breaker.failure(str(error))
        else:
            breaker.success()

Source: Nygard, "Release It!", 2nd ed. (2018), chapter 5.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Literal

State = Literal["closed", "open", "half_open"]

_MOST_DOUBLINGS = 60


@dataclass(frozen=True)
class BreakerState:
    """A breaker at one moment.

    Attributes:
        state: closed (work goes through), open (it does not), half_open (one try is on its way).
        failures: in a row.
        reason: of the last failure; None after a success.
        retry_in: seconds until a try is allowed; 0 unless open.
    """

    state: State
    failures: int
    reason: str | None
    retry_in: float


class CircuitBreaker:
    """Counts failures in a row; see the module. Safe to share between threads.

    Args:
        failures: in a row that open it.
        reset_seconds: how long it stays open at first.
        max_reset_seconds: and at most.
        clock: seconds, only forward.
    """

    def __init__(
        self,
        failures: int = 3,
        reset_seconds: float = 30.0,
        max_reset_seconds: float = 600.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit = failures
        self._first_wait = reset_seconds
        self._longest_wait = max(reset_seconds, max_reset_seconds)
        self._clock = clock
        self._lock = Lock()
        self._openings = 0
        self._state: State = "closed"
        self._failures = 0
        self._reason: str | None = None
        self._until = 0.0

    def allow(self) -> bool:
        """Whether work may go through now; in half-open state only the first asker may.

        Whoever gets True reports back with `success`, `failure` or `withdraw`.
        """
        with self._lock:
            if self._state == "closed":
                return True
            if self._state == "open" and self._clock() >= self._until:
                self._state = "half_open"
                return True
            return False

    def success(self) -> None:
        """The work was done."""
        with self._lock:
            self._state, self._failures, self._reason = "closed", 0, None
            self._openings = 0

    def failure(self, reason: str) -> None:
        """The work failed."""
        with self._lock:
            self._failures += 1
            self._reason = reason
            if self._state == "half_open" or (
                self._state == "closed" and self._failures >= self._limit
            ):
                self._open()

    def withdraw(self) -> None:
        """The work was called off and says nothing; a half-open try may be made again at once."""
        with self._lock:
            if self._state == "half_open":
                self._state, self._until = "open", self._clock()

    def trip(self, reason: str) -> None:
        """Open at once, whatever the count."""
        with self._lock:
            self._failures += 1
            self._reason = reason
            self._open()

    def forget(self) -> None:
        """Forget the reason of the last failure, which may quote an input; nothing else."""
        with self._lock:
            if self._reason is not None:
                self._reason = "forgotten"

    def snapshot(self) -> BreakerState:
        """The state now, for people and plans."""
        with self._lock:
            left = max(0.0, self._until - self._clock()) if self._state == "open" else 0.0
            return BreakerState(self._state, self._failures, self._reason, left)

    def _open(self) -> None:
        wait = min(self._first_wait * 2**self._openings, self._longest_wait)
        self._openings = min(self._openings + 1, _MOST_DOUBLINGS)
        self._state, self._until = "open", self._clock() + wait
