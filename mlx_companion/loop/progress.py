"""How a round tells what it is doing, without knowing who listens.

The command line listens with rich (`loop/console.py`), tests and notebooks with `Silent`
or a class of their own that has the same methods.
"""

from __future__ import annotations

from typing import Protocol

__all__ = ["Progress", "Silent"]


class Progress(Protocol):
    """What a listener hears, in this order for each step: started, advance..., finished."""

    def round_started(self, number: int, base_version: str, *, resumed: bool) -> None:
        """A round begins on this version, or goes on where it was interrupted."""
        ...

    def note(self, text: str) -> None:
        """Something a person should know."""
        ...

    def step_started(self, step: str) -> None:
        """A step begins."""
        ...

    def advance(self, step: str, done: int, total: int, detail: str = "") -> None:
        """`done` of `total` units of the running step are finished."""
        ...

    def step_finished(self, step: str, summary: str, *, seconds: float, skipped: bool) -> None:
        """A step ended; `skipped` when it had been done before an interruption."""
        ...


class Silent:
    """Hears everything and says nothing."""

    def round_started(self, number: int, base_version: str, *, resumed: bool) -> None:
        """See `Progress`."""

    def note(self, text: str) -> None:
        """See `Progress`."""

    def step_started(self, step: str) -> None:
        """See `Progress`."""

    def advance(self, step: str, done: int, total: int, detail: str = "") -> None:
        """See `Progress`."""

    def step_finished(self, step: str, summary: str, *, seconds: float, skipped: bool) -> None:
        """See `Progress`."""
