"""The execution plan: which modules run on a message, in what order, at what cost, and which not.

A plan is made from the configuration and from the state at this moment (what is loaded, which
circuits are open, what the machine can take), and the orchestrator runs what the plan says::

    plan = orchestrator.get_execution_plan()
    print(plan.text())
    plan.to_dict()        # for a trace
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from mlx_companion.runtime.cores import available_cores
from mlx_companion.slm.config import SLMConfig
from mlx_companion.slm.factory import SLMFactory
from mlx_companion.slm.health import HealthBook
from mlx_companion.slm.outcomes import FALLBACKS
from mlx_companion.slm.resources import ResourceScheduler

Mode = Literal["parallel", "sequential"]


@dataclass(frozen=True)
class PlanStep:
    """One module that runs.

    Attributes:
        module: its name.
        group: modules of the same number run beside each other; group 1 starts after 0, and so on.
        timeout: seconds it may take.
        expected_ms: milliseconds it will probably take: the median of late, its budget before.
        batch_size: inputs at once, under the pressure of this moment.
        fallback: what answers in its place; None when it fails open.
        loaded: it is in memory; else it loads first.
        backbone: the model whose features it reads; None for one that needs none, or that is not
            loaded and so not known.
    """

    module: str
    group: int
    timeout: float
    expected_ms: float
    batch_size: int
    fallback: str | None
    loaded: bool
    backbone: str | None = None


@dataclass(frozen=True)
class SkippedModule:
    """One module that does not run.

    Attributes:
        module: its name.
        reason: why.
        answered_by: its fallback, where that answers.
        status: of its outcome; open when it is left alone after repeated failure.
    """

    module: str
    reason: str
    answered_by: str | None = None
    status: Literal["skipped", "open"] = "skipped"


@dataclass(frozen=True)
class ExecutionPlan:
    """What happens to one message.

    Attributes:
        mode: parallel or sequential.
        steps: modules that run, in their order.
        skipped: modules that do not.
        shared_passes: backbone -> modules that share its one forward pass over the message.
        max_parallel: modules at work at once.
        total_timeout: seconds for all of them.
        expected_ms: milliseconds until the last one has probably answered.
        scale: share of the usual work that the machine can take, 0 to 1.
        pressure: why it is below 1; None at 1.
    """

    mode: Mode
    steps: tuple[PlanStep, ...]
    skipped: tuple[SkippedModule, ...]
    shared_passes: dict[str, tuple[str, ...]]
    max_parallel: int
    total_timeout: float
    expected_ms: float
    scale: float = 1.0
    pressure: str | None = None

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """Names of the modules that run beside each other, group by group."""
        found: dict[int, list[str]] = {}
        for step in self.steps:
            found.setdefault(step.group, []).append(step.module)
        return tuple(tuple(names) for _, names in sorted(found.items()))

    def to_dict(self) -> dict[str, Any]:
        """As values that `json.dumps` takes."""
        shared = {backbone: list(names) for backbone, names in self.shared_passes.items()}
        return asdict(self) | {
            "steps": [asdict(step) for step in self.steps],
            "skipped": [asdict(one) for one in self.skipped],
            "shared_passes": shared,
            "groups": [list(names) for names in self.groups],
        }

    def text(self) -> str:
        """For people, a line per module."""
        lines = [
            f"{self.mode}, {self.expected_ms:.0f} ms expected, {self.total_timeout:g} s at most"
        ]
        for step in self.steps:
            notes = [f"{step.expected_ms:.0f} ms", f"at most {step.timeout:g} s"]
            notes += [] if step.loaded else ["loads first"]
            notes += [f"else {step.fallback}"] if step.fallback else ["fails open"]
            lines.append(f"  {step.group}  {step.module}: {', '.join(notes)}")
        for one in self.skipped:
            instead = f"; {one.answered_by} answers" if one.answered_by else ""
            lines.append(f"  -  {one.module}: {one.reason}{instead}")
        for backbone, names in self.shared_passes.items():
            lines.append(f"  one pass of {backbone} for {', '.join(names)}")
        if self.pressure is not None:
            lines.append(f"  at {self.scale:.0%} of the usual work: {self.pressure}")
        return "\n".join(lines)


def makespan(milliseconds: Sequence[float], workers: int) -> float:
    """Time until all jobs are done when each free worker takes the next one in order."""
    free_at = [0.0] * max(1, workers)
    for cost in milliseconds:
        heapq.heappush(free_at, heapq.heappop(free_at) + cost)
    return max(free_at)


class Planner:
    """Makes plans.

    Args:
        config: limits, and which modules run.
        factory: says what is loaded.
        book: the modules' records.
        scheduler: says what the machine can take.
    """

    def __init__(
        self,
        config: SLMConfig,
        factory: SLMFactory,
        book: HealthBook,
        scheduler: ResourceScheduler,
    ) -> None:
        self._config = config
        self._factory = factory
        self._book = book
        self._scheduler = scheduler

    def plan(self, names: Sequence[str], mode: Mode) -> ExecutionPlan:
        """What happens to a message now, for modules in their order."""
        limits, advice = self._config.orchestration, self._scheduler.advice
        reasons = {name: self._skip_reason(name) for name in names}
        running = [name for name in names if reasons[name] is None]
        parallel = limits.max_parallel if mode == "parallel" else 1
        steps = tuple(self._step(name, i // parallel) for i, name in enumerate(running))
        return ExecutionPlan(
            mode,
            steps,
            tuple(one for one in reasons.values() if one is not None),
            _shared(steps),
            parallel,
            limits.total_timeout,
            makespan([step.expected_ms for step in steps], min(parallel, available_cores())),
            advice.scale,
            advice.reason,
        )

    def _step(self, name: str, group: int) -> PlanStep:
        config, health = self._config.module(name), self._book[name]
        return PlanStep(
            name,
            group,
            config.timeout,
            health.median_ms() or config.budget_ms,
            self._scheduler.batch_size(config.batch_size),
            FALLBACKS.get(name),
            self._factory.loaded_module(name) is not None,
            health.backbone,
        )

    def _skip_reason(self, name: str) -> SkippedModule | None:
        config, health = self._config.module(name), self._book[name]
        if not config.enabled:
            return SkippedModule(name, "switched off in the configuration")
        if health.seen % config.frequency:
            return SkippedModule(name, f"runs on one message in {config.frequency}")
        pressed = self._scheduler.skip_reason(config)
        if pressed is not None:
            return SkippedModule(name, pressed, FALLBACKS.get(name))
        circuit = health.breaker.snapshot()
        if circuit.state == "open" and circuit.retry_in > 0:
            reason = f"left alone for {circuit.retry_in:.0f} s after: {circuit.reason}"
            return SkippedModule(name, reason, FALLBACKS.get(name), "open")
        return None


def _shared(steps: Sequence[PlanStep]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for step in steps:
        if step.backbone is not None:
            found[step.backbone] = (*found.get(step.backbone, ()), step.module)
    return found
