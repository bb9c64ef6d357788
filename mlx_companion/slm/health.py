"""What the orchestrator knows of each module: its thread, its circuit, its latencies of late.

health.record(outcome)
health.status()         # a ModuleStatus, for `mlx-companion slm status` and for a trace
"""

from __future__ import annotations

import statistics
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from threading import Lock
from typing import Any

from mlx_companion.slm.breaker import BreakerState, CircuitBreaker
from mlx_companion.slm.config import OrchestrationConfig
from mlx_companion.slm.lanes import Lane
from mlx_companion.slm.module import SLMModule
from mlx_companion.slm.outcomes import ModuleOutcome, Status

_KEPT = 256


@dataclass(frozen=True)
class ModuleStatus:
    """A module at one moment.

    Attributes:
        module: its name.
        state: ready, not loaded, loading, broken (its circuit is open), trying (half open) or off.
        version: of what is loaded.
        breaker: its circuit.
        abandoned: threads of it that hang.
        counts: outcomes so far, by status.
        median_ms: of its own answers of late (milliseconds); None before the first.
        p95_ms: likewise.
        last: its last outcome.
    """

    module: str
    state: str
    version: str | None
    breaker: BreakerState
    abandoned: int
    counts: dict[str, int] = field(default_factory=dict)
    median_ms: float | None = None
    p95_ms: float | None = None
    last: ModuleOutcome | None = None

    def to_dict(self) -> dict[str, Any]:
        """As values that `json.dumps` takes."""
        return asdict(self) | {
            "breaker": asdict(self.breaker),
            "last": None if self.last is None else self.last.to_dict(),
        }

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> ModuleStatus:
        """What `to_dict` made, without the last result, which has lost its type.

        Raises:
            TypeError, KeyError: the value is something else.
        """
        last = value["last"]
        if last is not None:
            last = ModuleOutcome(**{**last, "result": None})
        return cls(**{**value, "breaker": BreakerState(**value["breaker"]), "last": last})


class ModuleHealth:
    """The record of one module.

    Args:
        name: the module.
        config: limits of its circuit and of its hanging threads.
    """

    def __init__(self, name: str, config: OrchestrationConfig) -> None:
        self.name = name
        self.lane = Lane(name, config.max_abandoned)
        # One for each module, so that a fallback that hangs takes no other's place.
        self.rules_lane = Lane(f"{name}-rules", config.max_abandoned)
        self.breaker = CircuitBreaker(
            config.failures, config.reset_seconds, config.max_reset_seconds
        )
        self.seen = 0
        self.version: str | None = None
        self.backbone: str | None = None
        self._lock = Lock()
        self._seconds: deque[float] = deque(maxlen=_KEPT)
        self._counts: Counter[str] = Counter()
        self._last: ModuleOutcome | None = None

    def describe(self, module: SLMModule[Any]) -> None:
        """Note what a module says of itself. Its attributes are code of its own, which may load
        files or fail, so this is done on its thread and never on the event loop's.
        """
        self.version = str(module.version)
        backbone = getattr(module, "backbone", None) or getattr(module, "_backbone", None)
        self.backbone = getattr(backbone, "name", None)

    def record(self, outcome: ModuleOutcome) -> Status | None:
        """Take an outcome into the account. Returns the status of the one before."""
        with self._lock:
            before, self._last = self._last, outcome
            self._counts[outcome.status] += 1
            if outcome.ok:
                self._seconds.append(outcome.seconds)
        return None if before is None else before.status

    def forget(self) -> None:
        """Let go of the last outcome, and of what the circuit tells of it."""
        with self._lock:
            self._last = None
        self.breaker.forget()

    def median_ms(self) -> float | None:
        """Of the module's own answers of late; None before the first."""
        with self._lock:
            return statistics.median(self._seconds) * 1e3 if self._seconds else None

    def status(self, state: str) -> ModuleStatus:
        """All of it, with what the orchestrator knows besides."""
        with self._lock:
            seconds, counts, last = list(self._seconds), dict(self._counts), self._last
        return ModuleStatus(
            self.name,
            state,
            self.version,
            self.breaker.snapshot(),
            self.lane.abandoned,
            counts,
            percentile_ms(seconds, 0.5),
            percentile_ms(seconds, 0.95),
            last,
        )


def percentile_ms(seconds: Sequence[float], share: float) -> float | None:
    """The value (milliseconds) that this share of the measurements does not exceed."""
    if not seconds:
        return None
    ordered = sorted(seconds)
    return ordered[max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1)] * 1e3


class HealthBook:
    """The records of all modules, each made when it is first asked for."""

    def __init__(self, config: OrchestrationConfig) -> None:
        self._config = config
        self._records: dict[str, ModuleHealth] = {}

    def __getitem__(self, name: str) -> ModuleHealth:
        if name not in self._records:
            self._records[name] = ModuleHealth(name, self._config)
        return self._records[name]

    def forget(self) -> None:
        """Let go of the last outcomes."""
        for health in self._records.values():
            health.forget()

    def close(self) -> None:
        """Let the modules' threads go."""
        for health in self._records.values():
            health.lane.close()
            health.rules_lane.close()
