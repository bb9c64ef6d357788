"""`SLMOrchestrator`: runs the modules on a message without ever blocking or breaking a reply.

    async with SLMOrchestrator(config) as slm:            # loads the modules
        report = await slm.run_parallel("what is the weather in Porto today")
        if report.result("research_classifier").needs_research: ...
        report = await slm.run_sequential({"personality_guard": {"text": reply}})
        print(slm.get_execution_plan().text())

Each module works on a thread of its own (`lanes`), so the event loop only waits. A module that is
too late, raises, answers with nonsense or cannot be loaded gets an outcome that says so; the guard
then falls back to its rules and the classifier to its keyword rule, the tracker and the drift
monitor fail open. One that keeps failing is left alone for a while (`breaker`), and under pressure
of memory or battery those that can wait are skipped (`resources`).

Cancelling a run calls off what has not begun; what has begun ends on its thread, unheard.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any

from mlx_companion.errors import SLMError
from mlx_companion.runtime.config import nearest
from mlx_companion.runtime.logs import get_logger
from mlx_companion.slm.config import SLMConfig
from mlx_companion.slm.factory import SLMFactory
from mlx_companion.slm.health import HealthBook, ModuleStatus
from mlx_companion.slm.lanes import Lane, LaneFullError, ending
from mlx_companion.slm.loading import ModuleLoader
from mlx_companion.slm.outcomes import ModuleOutcome, RunReport, input_of
from mlx_companion.slm.plan import ExecutionPlan, Mode, Planner
from mlx_companion.slm.resources import ResourceScheduler
from mlx_companion.slm.runs import MessageRun, Substitutes

Inputs = str | Mapping[str, Any]

_LOOK_SECONDS = 0.1
_log = get_logger(__name__)


class SLMOrchestrator:
    """Runs modules side by side or in turn; see the module. For one event loop at a time.

    Args:
        config: timeouts, limits, which modules; the factory's when that is given.
        factory: where modules come from.
        scheduler: looks at the machine.
    """

    def __init__(
        self,
        config: SLMConfig | None = None,
        factory: SLMFactory | None = None,
        *,
        scheduler: ResourceScheduler | None = None,
    ) -> None:
        self.config = config or (factory.config if factory is not None else SLMConfig())
        self.factory = factory or SLMFactory(self.config)
        self.scheduler = scheduler or ResourceScheduler(self.config.resources)
        limits = self.config.orchestration
        self._book = HealthBook(limits)
        self._loader = ModuleLoader(self.factory, self._book, limits.load_timeout)
        self._planner = Planner(self.config, self.factory, self._book, self.scheduler)
        self._substitutes = Substitutes(self.config, self.factory, self._book)
        self._machine = Lane("machine")
        self._looked = False

    async def __aenter__(self) -> SLMOrchestrator:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    async def start(self, modules: Iterable[str] | None = None) -> dict[str, str]:
        """Load modules before the first message, and look at the machine.

        Returns:
            What went wrong, by module; empty when all are ready.
        """
        await self._look()
        names = [name for name in self._named(modules) if self.config.module(name).enabled]
        failures, _ = await self._loader.load(names)
        return {name: failure.error for name, failure in failures.items()}

    async def run_parallel(self, inputs: Inputs, modules: Iterable[str] | None = None) -> RunReport:
        """Run modules on a message beside each other.

        Args:
            inputs: a message for all of them, or an input for each by its name.
            modules: which ones; None takes those of `inputs`, or all.

        Returns:
            An outcome for each, whatever happened to it.

        Raises:
            SLMError: an unknown module, or one without an input.
            asyncio.CancelledError: the caller was cancelled.
        """
        return await self._run(inputs, modules, "parallel")

    async def run_sequential(
        self, inputs: Inputs, modules: Iterable[str] | None = None
    ) -> RunReport:
        """Run modules in turn, in the order given; otherwise as `run_parallel`."""
        return await self._run(inputs, modules, "sequential")

    def get_execution_plan(
        self, modules: Iterable[str] | None = None, mode: Mode = "parallel"
    ) -> ExecutionPlan:
        """What would happen to a message now; looks at nothing and starts nothing.

        Raises:
            SLMError: an unknown module.
        """
        return self._planner.plan(self._named(modules), mode)

    def status(self) -> list[ModuleStatus]:
        """Each module's state, circuit, latencies and last outcome."""
        return [self._status(name) for name in self._named(None)]

    def forget(self) -> None:
        """Let go of the last outcomes, which quote what was said; counts and latencies stay."""
        self._book.forget()

    def close(self) -> None:
        """Let the threads go. Modules and backbones stay with the factory."""
        self._machine.close()
        self._book.close()

    async def _run(self, inputs: Inputs, modules: Iterable[str] | None, mode: Mode) -> RunReport:
        began = time.perf_counter()
        items = self._items(inputs, modules)
        await self._look()
        plan = self._planner.plan(list(items), mode)
        for name in items:
            self._book[name].seen += 1
        failures, waited = await self._loader.load([step.module for step in plan.steps])
        run = MessageRun(items, plan, failures, self.factory, self._book, self._substitutes)
        outcomes = await run.outcomes()
        for outcome in outcomes.values():
            self._record(outcome)
        return RunReport(outcomes, time.perf_counter() - began, waited)

    async def _look(self) -> None:
        """Have the machine looked at; only the first look is waited for, and that briefly."""
        self._machine.reap()
        if not self.scheduler.stale:
            return
        with contextlib.suppress(LaneFullError):
            look = self._machine.post(self.scheduler.refresh, timeout=10 * _LOOK_SECONDS)
            if not self._looked:
                self._looked = True
                await asyncio.wait({ending(look)}, timeout=_LOOK_SECONDS)

    def _record(self, outcome: ModuleOutcome) -> None:
        before = self._book[outcome.module].record(outcome)
        # Once per fault: an open circuit says the same of every message.
        if outcome.status not in ("ok", "skipped") and outcome.status != before:
            told = {"slm_module": outcome.module, "status": outcome.status}
            told |= {"error": str(outcome.error), "fallback": str(outcome.fallback)}
            _log.warning("a module did not answer", extra=told)

    def _status(self, name: str) -> ModuleStatus:
        health, module = self._book[name], self.factory.loaded_module(name)
        circuit = health.breaker.snapshot().state
        if not self.config.module(name).enabled:
            state = "off"
        elif circuit != "closed":
            state = "broken" if circuit == "open" else "trying"
        elif module is None:
            state = "loading" if self._loader.is_loading(name) else "not loaded"
        else:
            state = "ready"
        return health.status(state)

    def _named(self, modules: Iterable[str] | None) -> list[str]:
        known = self.factory.module_names
        names = list(known if modules is None else modules)
        for name in names:
            if name not in known:
                raise SLMError(f"there is no module '{name}'{nearest(name, known)}")
        return list(dict.fromkeys(names))

    def _items(self, inputs: Inputs, modules: Iterable[str] | None) -> dict[str, Any]:
        if isinstance(inputs, str):
            return {name: input_of(name, inputs) for name in self._named(modules)}
        if not isinstance(inputs, Mapping):
            raise SLMError(
                f"got a {type(inputs).__name__}; expected a message, or an input per module"
            )
        names = self._named(inputs if modules is None else modules)
        missing = [name for name in names if name not in inputs]
        if missing:
            raise SLMError(f"no input was given for {', '.join(missing)}")
        return {name: inputs[name] for name in names}
