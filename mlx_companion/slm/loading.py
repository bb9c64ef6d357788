"""Loading modules on their own threads, waited for only as long as a message may wait.

A backbone may have to be fetched first, so loading can outlast many messages; it goes on while
fallbacks answer. One that fails, because its pack is damaged for example, opens the circuit at
once and is tried again later.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from concurrent.futures import Future
from typing import Any, NamedTuple

from mlx_companion.errors import DataError, SLMError
from mlx_companion.slm.factory import SLMFactory
from mlx_companion.slm.health import HealthBook, ModuleHealth
from mlx_companion.slm.lanes import Done, LaneFullError, ending
from mlx_companion.slm.module import SLMModule
from mlx_companion.slm.outcomes import Status, checked, input_of

# A model may be downloaded while a module loads; only what takes longer than this counts as hung.
_HANGS_SECONDS = 1800.0
_WARM_UP = "Good morning."


class Failure(NamedTuple):
    """Why a module did not answer."""

    status: Status
    error: str


class ModuleLoader:
    """Loads modules in their lanes.

    Args:
        factory: where modules come from.
        book: the modules' records.
        timeout: seconds that `load` waits.
    """

    def __init__(self, factory: SLMFactory, book: HealthBook, timeout: float) -> None:
        self._factory = factory
        self._book = book
        self._timeout = timeout
        self._loading: dict[str, Future[Done]] = {}

    def is_loading(self, name: str) -> bool:
        """It has been started and has not come to an end."""
        loading = self._loading.get(name)
        return loading is not None and not loading.done()

    async def load(self, names: list[str]) -> tuple[dict[str, Failure], float]:
        """Load what is missing of some modules.

        Returns:
            Those that could not be had in time, with the reason, and the seconds waited.
        """
        failures: dict[str, Failure] = {}
        waiting: dict[str, Future[Done]] = {}
        began = time.perf_counter()
        for name in names:
            if name not in self._loading and self._factory.loaded_module(name) is not None:
                continue
            loading = self._start(name)
            if isinstance(loading, Failure):
                failures[name] = loading
            else:
                waiting[name] = loading
        if not waiting:
            return failures, 0.0
        await asyncio.wait({ending(one) for one in waiting.values()}, timeout=self._timeout)
        for name, future in waiting.items():
            failure = self._ended(name, future)
            if failure is not None:
                failures[name] = failure
        return failures, time.perf_counter() - began

    def _start(self, name: str) -> Future[Done] | Failure:
        health = self._book[name]
        known = self._loading.get(name)
        if known is not None:
            if known.done() or not health.lane.reap():
                return known
            del self._loading[name]
            health.breaker.trip("it hung while it was loaded")
        if not health.breaker.allow():
            return left_alone(health)
        # Its first answer decides about the circuit, not its loading.
        health.breaker.withdraw()
        try:
            self._loading[name] = health.lane.post(lambda: self._build(name), _HANGS_SECONDS)
        except LaneFullError as error:
            health.breaker.trip(str(error))
            return Failure("open", str(error))
        return self._loading[name]

    def _build(self, name: str) -> SLMModule[Any]:
        try:
            return self._built(name)
        except Exception:
            # While there is time: a fallback has to answer at once.
            with contextlib.suppress(Exception):
                self._factory.rules_of(name)
            raise

    def _built(self, name: str) -> SLMModule[Any]:
        module = self._factory.get_module(name)
        # What a module loads with its first input would else count against the first message.
        # The packaged ones keep nothing of an input; others may say how to load them.
        if self._factory.is_packaged(name):
            checked(name, module.process(input_of(name, _WARM_UP)))
        elif callable(load := getattr(module, "load", None)):
            load()
        self._book[name].describe(module)
        return module

    def _ended(self, name: str, future: Future[Done]) -> Failure | None:
        if not future.done():
            return Failure("loading", f"it is not loaded yet, after {self._timeout:g} s")
        self._loading.pop(name, None)
        if future.cancelled():
            return Failure("loading", "its loading was called off")
        error = future.result().error
        if error is None:
            return None
        # What is damaged stays so: one failure is enough.
        self._book[name].breaker.trip(told(error))
        return Failure("unavailable", told(error))


def left_alone(health: ModuleHealth) -> Failure:
    """The failure of a module whose circuit is open."""
    circuit = health.breaker.snapshot()
    return Failure("open", f"left alone after {circuit.failures} failures; last: {circuit.reason}")


def told(error: BaseException) -> str:
    """An error for people: deliberate ones say it themselves, others with their type."""
    text = str(error).strip()
    if isinstance(error, SLMError | DataError | TimeoutError) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
