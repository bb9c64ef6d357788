"""How long the modules take on this machine: one message at a time, warm, through the orchestrator.

    rows = asyncio.run(measure_latencies(repeats=50))
    print(latency_text(rows))

Every message is another text, so that nothing comes from a cache, and CPU time is measured beside
wall time: on a busy machine only the first is the module's own.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mlx_companion.errors import SLMError
from mlx_companion.slm.health import percentile_ms
from mlx_companion.slm.module import MODULES
from mlx_companion.slm.orchestrator import SLMOrchestrator

ALL = "all four together"
# Milliseconds that each should take at most, median, on two cores of a plain CPU.
AIMS_MS = {
    "research_classifier": 50.0,
    "personality_guard": 20.0,
    "context_tracker": 60.0,
    "drift_monitor": 100.0,
    ALL: 150.0,
}
_SUBJECTS = (
    "the ferry to the island", "my grandmother's recipe", "the election in Portugal",
    "a proof by induction", "the price of copper", "our garden wall", "the new release of Python",
    "yesterday's match", "a poem about winter", "the dentist on Main Street", "tax brackets",
    "the third moon of Saturn", "this function", "the bus timetable", "my sister's wedding",
)  # fmt: skip
_FRAMES = (
    "what is the latest on {}",
    "hey, can u help me with {}? im kinda lost tbh",
    "Could you explain {} in a few sentences, please?",
    "I was thinking about {} all day and it made me a bit sad.",
    "write two lines about {}",
    "how does {} work, and who is in charge of it at the moment?",
)
_REPLIES = (
    "Here is what I know about {}. It changes often, so look at the date of what you read.",
    "*smiles* Oh WOW, {} is AMAZING!!! Let's grab a coffee and talk about it! You will love it!",
    "About {}: there are 3 steps. First `open(path)`, then read it, then close it again.",
    "I would leave {} alone for a day. It rarely gets worse, and you will see it more clearly.",
)


@dataclass(frozen=True)
class LatencyRow:
    """The latency of one module, or of all of them together.

    Attributes:
        name: the module, or `ALL`.
        median_ms: wall time, milliseconds.
        p95_ms: wall time, milliseconds.
        cpu_ms: CPU time over all threads of the process, median, milliseconds.
        answered: share of the messages that the module answered itself, 0 to 1.
    """

    name: str
    median_ms: float
    p95_ms: float
    cpu_ms: float
    answered: float

    @property
    def aim_ms(self) -> float | None:
        """What the median should stay under; None for a module of your own."""
        return AIMS_MS.get(self.name)


def sample_inputs() -> Iterator[dict[str, Any]]:
    """Messages without end, each with an input for every one of the four modules, all different."""
    for number in itertools.count():
        subject = _SUBJECTS[number % len(_SUBJECTS)]
        about = f"{subject} ({number})"
        message = _FRAMES[number % len(_FRAMES)].format(about)
        reply = _REPLIES[number % len(_REPLIES)].format(about)
        yield {
            "research_classifier": message,
            "personality_guard": {"text": reply, "prompt": message},
            "context_tracker": message,
            "drift_monitor": {"text": message},
        }


async def measure_latencies(
    orchestrator: SLMOrchestrator | None = None,
    repeats: int = 50,
    progress: Callable[[int, int], None] | None = None,
    inputs: Iterator[dict[str, Any]] | None = None,
) -> list[LatencyRow]:
    """Measure each module alone, then all together; in turn, so that a busy moment hits all.

    Args:
        orchestrator: whose modules; by default those that come with the package.
        repeats: messages each.
        progress: told the rounds done and their number.
        inputs: as of `sample_inputs`, which is the default; features of a text seen before cost
            nothing, so what was measured once is no message to measure again.

    Raises:
        SLMError: `repeats` is less than 1, or a module cannot be loaded.
    """
    if repeats < 1:
        raise SLMError(f"repeats is {repeats}; expected 1 or more")
    own = orchestrator or SLMOrchestrator()
    try:
        failures = await own.start(MODULES)
        if failures:
            raise SLMError("; ".join(f"{name}: {told}" for name, told in failures.items()))
        return await _measure(own, repeats, progress, inputs or sample_inputs())
    finally:
        if orchestrator is None:
            own.close()


async def _measure(
    own: SLMOrchestrator,
    repeats: int,
    progress: Callable[[int, int], None] | None,
    inputs: Iterator[dict[str, Any]],
) -> list[LatencyRow]:
    jobs = {**{name: (name,) for name in MODULES}, ALL: MODULES}
    times: dict[str, list[tuple[float, float, bool]]] = {name: [] for name in jobs}
    for round_ in range(-2, repeats):
        for name, modules in jobs.items():
            message = next(inputs)
            wall, cpu = time.perf_counter(), time.process_time()
            report = await own.run_parallel(message, modules)
            took = time.perf_counter() - wall, time.process_time() - cpu
            # The first two rounds warm up.
            if round_ >= 0:
                times[name].append((*took, not report.degraded))
        if progress is not None:
            progress(max(0, round_ + 1), repeats)
    return [_row(name, rows) for name, rows in times.items()]


def _row(name: str, rows: Sequence[tuple[float, float, bool]]) -> LatencyRow:
    walls = [wall for wall, _, _ in rows]
    return LatencyRow(
        name,
        statistics.median(walls) * 1e3,
        percentile_ms(walls, 0.95) or 0.0,
        statistics.median(cpu for _, cpu, _ in rows) * 1e3,
        sum(answered for _, _, answered in rows) / len(rows),
    )
