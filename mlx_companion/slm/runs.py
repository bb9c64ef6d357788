"""One message on its way through the modules of a plan; used by the orchestrator.

Every path through here ends in an outcome: of the module, or of what answers in its place. Only
the caller's own cancellation gets out.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any, Literal

from mlx_companion.errors import DataError
from mlx_companion.slm.config import SLMConfig
from mlx_companion.slm.factory import SLMFactory
from mlx_companion.slm.health import HealthBook, ModuleHealth
from mlx_companion.slm.lanes import Done, LaneFullError
from mlx_companion.slm.loading import Failure, left_alone, told
from mlx_companion.slm.outcomes import FALLBACKS, ModuleOutcome, NonsenseError, checked
from mlx_companion.slm.plan import ExecutionPlan, PlanStep, SkippedModule
from mlx_companion.slm.results import ModuleResult


class Substitutes:
    """Answers in the place of modules, for each on a thread of its own.

    Args:
        config: whether, and for how long.
        factory: knows the modules' rules.
        book: the modules' records.
    """

    def __init__(self, config: SLMConfig, factory: SLMFactory, book: HealthBook) -> None:
        self._limits = config.orchestration
        self._factory = factory
        self._book = book

    async def outcome(
        self, name: str, item: Any, failure: Failure, seconds: float
    ) -> ModuleOutcome:
        """The outcome of a module that did not answer within `seconds`, and why."""
        began = time.perf_counter()
        result, problem = None, None
        if failure.status != "timeout" or self._limits.fallback_on_timeout:
            result, problem = await self._answer(name, item)
        return ModuleOutcome(
            name,
            failure.status,
            result,
            failure.error if problem is None else f"{failure.error}; its fallback: {problem}",
            seconds + time.perf_counter() - began,
            None if result is None else FALLBACKS.get(name, "rules"),
            self._book[name].version,
        )

    async def _answer(self, name: str, item: Any) -> tuple[ModuleResult | None, str | None]:
        def work() -> ModuleResult | None:
            answer = self._factory.fallback(name, item)
            return None if answer is None else checked(name, answer)

        try:
            done = await self._book[name].rules_lane.run(work, self._limits.fallback_timeout)
        except (TimeoutError, LaneFullError) as error:
            return None, told(error)
        return done.value, None if done.error is None else told(done.error)


class MessageRun:
    """One message and its deadline.

    Args:
        items: an input for each module.
        plan: which ones run.
        failures: those that could not be loaded.
        factory: where modules are.
        book: their records.
        substitutes: answer in their place.
    """

    def __init__(
        self,
        items: Mapping[str, Any],
        plan: ExecutionPlan,
        failures: Mapping[str, Failure],
        factory: SLMFactory,
        book: HealthBook,
        substitutes: Substitutes,
    ) -> None:
        self._items = items
        self._plan = plan
        self._failures = failures
        self._factory = factory
        self._book = book
        self._substitutes = substitutes
        self._ends = time.perf_counter() + plan.total_timeout
        self._places = asyncio.Semaphore(plan.max_parallel)

    async def outcomes(self) -> dict[str, ModuleOutcome]:
        """Run the plan. Returns an outcome for every module in it, in the order of the inputs."""
        if self._plan.mode == "parallel":
            async with asyncio.TaskGroup() as group:
                steps = [group.create_task(self._one(step)) for step in self._plan.steps]
                skips = [group.create_task(self._skip(one)) for one in self._plan.skipped]
            found = [task.result() for task in (*steps, *skips)]
        else:
            found = [await self._one(step) for step in self._plan.steps]
            found += [await self._skip(one) for one in self._plan.skipped]
        by_name = {outcome.module: outcome for outcome in found}
        return {name: by_name[name] for name in self._items if name in by_name}

    async def _skip(self, one: SkippedModule) -> ModuleOutcome:
        if one.answered_by is None:
            return ModuleOutcome(one.module, one.status, error=one.reason)
        item, reason = self._items[one.module], Failure(one.status, one.reason)
        return await self._substitutes.outcome(one.module, item, reason, 0.0)

    async def _one(self, step: PlanStep) -> ModuleOutcome:
        try:
            return await self._answered(step)
        except Exception as error:
            # A fault of ours must not break a reply either.
            return ModuleOutcome(step.module, "error", error=told(error))

    async def _answered(self, step: PlanStep) -> ModuleOutcome:
        failure, seconds = self._failures.get(step.module), 0.0
        if failure is None:
            began = time.perf_counter()
            answer = await self._ask(step)
            seconds = time.perf_counter() - began
            if isinstance(answer, ModuleOutcome):
                return answer
            failure = answer
        item = self._items[step.module]
        return await self._substitutes.outcome(step.module, item, failure, seconds)

    async def _ask(self, step: PlanStep) -> ModuleOutcome | Failure:
        late = Failure("timeout", f"the message's {self._plan.total_timeout:g} s were used up")
        try:
            async with asyncio.timeout(self._left()):
                await self._places.acquire()
        except TimeoutError:
            return late
        try:
            if self._left() <= 0:
                return late
            return await self._ask_now(step, late)
        finally:
            self._places.release()

    async def _ask_now(self, step: PlanStep, late: Failure) -> ModuleOutcome | Failure:
        health = self._book[step.module]
        if not health.breaker.allow():
            return left_alone(health)
        failure = Failure("timeout", f"no answer within {step.timeout:g} s")
        begun = False

        def work() -> ModuleResult:
            nonlocal begun
            begun = True
            return self._work(step.module)

        try:
            async with asyncio.timeout(self._left()) as limit:
                done = await health.lane.run(work, step.timeout)
        except LaneFullError as error:
            health.breaker.trip(str(error))
            return Failure("open", str(error))
        except TimeoutError:
            failure = late if limit.expired() else failure
            if begun:
                health.breaker.failure(failure.error)
            else:
                # It waited behind other messages, which says nothing of the module.
                health.breaker.withdraw()
            return failure
        except asyncio.CancelledError:
            health.breaker.withdraw()
            raise
        return self._judge(step.module, done, health)

    def _work(self, name: str) -> ModuleResult:
        module = self._factory.get_module(name)
        result = checked(name, module.process(self._items[name]))
        self._book[name].describe(module)
        return result

    def _judge(self, name: str, done: Done, health: ModuleHealth) -> ModuleOutcome | Failure:
        if done.error is None:
            health.breaker.success()
            return ModuleOutcome(name, "ok", done.value, None, done.seconds, None, health.version)
        if isinstance(done.error, DataError):
            # The input is at fault, not the module.
            health.breaker.withdraw()
            return Failure("error", told(done.error))
        health.breaker.failure(told(done.error))
        kind: Literal["nonsense", "error"] = (
            "nonsense" if isinstance(done.error, NonsenseError) else "error"
        )
        return Failure(kind, told(done.error))

    def _left(self) -> float:
        return max(0.0, self._ends - time.perf_counter())
