"""What happened on the way to a reply: one entry per step, with its time and what was wrong.

Why: a reply is made by a model and four modules, and a module that is broken only makes the reply
a little worse, which nobody sees. The trace shows every step, also the ones that failed or were
left out::

    reply = await companion.chat("hey, keep it short")
    print(reply.trace.text())

    listen       12.1 ms  ok      research_classifier: no research (0.98) ...
    generate    812.0 ms  ok      31 tokens
    guard         4.0 ms  failed  used: rules; TimeoutError
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["Trace", "TraceStep"]

StepState = Literal["ok", "failed", "skipped"]
_SHORT = 120


@dataclass
class TraceStep:
    """One step.

    Attributes:
        name: such as "generate".
        given: its input, in short.
        made: its output, in short.
        state: ok, failed (the reply went on without it), or skipped.
        fault: what was wrong, or why it was skipped.
        seconds: that it took.
        details: figures, JSON values.
    """

    name: str
    given: str = ""
    made: str = ""
    state: StepState = "ok"
    fault: str | None = None
    seconds: float = 0.0
    details: dict[str, Any] = field(default_factory=dict)

    def failed(self, fault: object) -> None:
        """Record what was wrong; several faults are kept in order."""
        told = f"{type(fault).__name__}: {fault}" if isinstance(fault, BaseException) else fault
        self.state, self.fault = "failed", f"{self.fault}; {told}" if self.fault else str(told)

    def skipped(self, why: str) -> None:
        """Record why the step was left out."""
        self.state, self.fault = "skipped", why

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**vars(self), "seconds": round(self.seconds, 6)}


@dataclass
class Trace:
    """The steps of one reply, in order."""

    steps: list[TraceStep] = field(default_factory=list)

    @contextmanager
    def step(self, name: str, given: object = "", *, needed: bool = False) -> Iterator[TraceStep]:
        """Time a step. What it raises is recorded and swallowed, so that the reply goes on.

        Args:
            name: of the step.
            given: its input; shortened.
            needed: there is no reply without it, so what it raises is raised.
        """
        step = TraceStep(name, short(given))
        self.steps.append(step)
        began = time.perf_counter()
        try:
            yield step
        except Exception as error:
            step.failed(error)
            if needed:
                raise
        finally:
            step.seconds = time.perf_counter() - began

    def __getitem__(self, name: str) -> TraceStep:
        """The last step of this name. Raises KeyError when there was none."""
        for step in reversed(self.steps):
            if step.name == name:
                return step
        raise KeyError(name)

    @property
    def seconds(self) -> float:
        """That all steps took."""
        return sum(step.seconds for step in self.steps)

    @property
    def faults(self) -> list[str]:
        """What was wrong, one line per step that failed."""
        return [f"{one.name}: {one.fault}" for one in self.steps if one.state == "failed"]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        steps = [step.to_dict() for step in self.steps]
        return {"seconds": round(self.seconds, 6), "steps": steps}

    def text(self) -> str:
        """A line per step, for people."""
        return "\n".join(
            f"{one.name:<12}{one.seconds * 1e3:8.1f} ms  {one.state:<8}"
            f"{'; '.join(part for part in (one.made, one.fault) if part)}".rstrip()
            for one in self.steps
        )


def short(value: object) -> str:
    """A value on one line, cut off when it is long."""
    # The rest of a long text is not looked at: this runs on an event loop.
    text = " ".join(str(value)[: 100 * _SHORT].split())
    return text if len(text) <= _SHORT else f"{text[: _SHORT - 3]}..."
