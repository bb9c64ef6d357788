"""Modules that answer, hang, raise or talk nonsense on demand, and an orchestrator over them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from mlx_companion.runtime.config import load_config
from mlx_companion.slm.config import SLMConfig
from mlx_companion.slm.factory import SLMFactory
from mlx_companion.slm.module import MODULES, SLMModule
from mlx_companion.slm.orchestrator import SLMOrchestrator
from mlx_companion.slm.results import (
    ContextResult,
    DriftResult,
    GuardResult,
    ModuleResult,
    ResearchResult,
)


def answer(name: str, item: Any) -> ModuleResult:
    """A good answer of a module."""
    text = item["text"] if isinstance(item, dict) and "text" in item else str(item)
    if name == "research_classifier":
        return ResearchResult(True, 0.9, "asks for the weather", "weather")
    if name == "personality_guard":
        return GuardResult(text, [], text, [], 0.9)
    if name == "context_tracker":
        return ContextResult([], {}, {}, 0.5, 0.0)
    return DriftResult(False, None, 0.0, [], "nothing to do", False)


# No stall of the machine makes a module late, nor do its memory and battery leave one out.
PATIENT = {f"modules.{name}.timeout": 120.0 for name in MODULES} | {
    "orchestration.total_timeout": 240.0,
    "orchestration.load_timeout": 300.0,
    "orchestration.fallback_timeout": 120.0,
    "orchestration.reset_seconds": 3600.0,
    "orchestration.max_reset_seconds": 3600.0,
    "resources.adaptive": False,
}


class StandIn(SLMModule[Any]):
    """A module whose behaviour a test sets.

    Args:
        name: which module it stands for.
        behave: called with each item; by default a good answer.
        rules: its fallback; None for none.
    """

    version = "7"

    def __init__(
        self,
        name: str,
        behave: Callable[[Any], Any] | None = None,
        rules: Callable[[Any], Any] | None = None,
    ) -> None:
        self.name = name  # type: ignore[misc]
        self.behave = behave or (lambda item: answer(name, item))
        self.rules = rules
        self.seen: list[Any] = []
        self.threads: set[int] = set()
        self.closed = False

    def process_batch(self, items: Sequence[Any]) -> list[Any]:
        self.threads.add(threading.get_ident())
        self.seen.extend(items)
        return [self.behave(item) for item in items]

    def fallback(self, item: Any) -> Any:
        return None if self.rules is None else self.rules(item)

    def close(self) -> None:
        self.closed = True


def factory_of(config: SLMConfig | None = None, **modules: StandIn) -> SLMFactory:
    """A factory whose four modules are stand-ins: those given, good ones otherwise."""
    made = SLMFactory(config or configured())
    for name in MODULES:
        made.register_module(name, modules.get(name) or StandIn(name))
    return made


def configured(**overrides: Any) -> SLMConfig:
    """Settings by dotted key, with `__` for the dot; those of `PATIENT` unless told otherwise."""
    given = {key.replace("__", "."): value for key, value in overrides.items()}
    return load_config(SLMConfig, None, PATIENT | given)


def play(
    scene: Callable[[SLMOrchestrator], Awaitable[Any]],
    config: SLMConfig | None = None,
    factory: SLMFactory | None = None,
    **modules: StandIn,
) -> Any:
    """Run a scene with an orchestrator over stand-ins."""

    async def main() -> Any:
        own = SLMOrchestrator(config, factory or factory_of(config, **modules))
        try:
            return await scene(own)
        finally:
            own.close()

    return asyncio.run(main())


def raising(error: BaseException) -> Callable[[Any], Any]:
    """What makes a stand-in raise."""

    def behave(item: Any) -> Any:
        raise error

    return behave


async def hello(own: SLMOrchestrator) -> Any:
    """A scene of one message."""
    return await own.run_parallel("hello")
