"""Keeps long work polite: battery, heat, memory and CPU ceilings, looked at between steps.

The trainer and the generator call `consult(stop)` at each safe point. It returns at once with an
`Advice` (how much smaller the next piece of work should be), sleeps when the CPU ceiling asks for
it, or waits while the battery is too low or the machine too hot, honouring the kill switch all
the time::

    monitor = ResourceMonitor(ResourceLimits(on_battery="pause", battery_threshold=30))
    for batch in batches:
        advice = monitor.consult(stop)
        train(batch, rows=max(1, int(rows * advice.scale)))
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from mlx_companion.errors import ConfigError
from mlx_companion.runtime.cores import available_cores
from mlx_companion.runtime.heat import LEVELS, Heat, read_heat
from mlx_companion.runtime.logs import get_logger
from mlx_companion.runtime.memory import memory_mb, peak_memory_mb
from mlx_companion.runtime.stop import NEVER, StopSwitch

__all__ = [
    "Advice",
    "Battery",
    "Probe",
    "ResourceLimits",
    "ResourceMonitor",
    "SystemProbe",
    "peak_memory_mb",
    "read_battery",
]

_REDUCED = 0.5
_SMALLEST = 0.1
_SLICE_SECONDS = 0.5
_log = get_logger(__name__)


@dataclass(frozen=True)
class Battery:
    """Charge in percent (0 to 100), and whether the machine is plugged in."""

    percent: float
    plugged: bool


@dataclass(frozen=True)
class ResourceLimits:
    """What long work may take from the machine.

    Attributes:
        on_battery: what to do while unplugged with less charge than `battery_threshold`:
            `reduce` halves the work per step, `pause` waits, `ignore` goes on.
        battery_threshold: percent of charge.
        on_heat: what to do while the machine says that it is hot ("serious", see `runtime.heat`);
            as for `on_battery`. While it is "critical", both other answers than `ignore` wait.
        max_memory_mb: ceiling on this process's memory (MB); over it the advice shrinks the work.
        max_cpu_percent: ceiling on this process's share of the usable cores (100 = all of them),
            kept by sleeping between steps.
        poll_seconds: least time between two looks at battery and memory.
    """

    on_battery: Literal["reduce", "pause", "ignore"] = "reduce"
    battery_threshold: float = 40.0
    on_heat: Literal["reduce", "pause", "ignore"] = "reduce"
    max_memory_mb: float | None = None
    max_cpu_percent: float | None = None
    poll_seconds: float = 5.0

    def __post_init__(self) -> None:
        for name in ("on_battery", "on_heat"):
            answer = getattr(self, name)
            if answer not in ("reduce", "pause", "ignore"):
                raise ConfigError(f"{name} is {answer!r}; expected 'reduce', 'pause' or 'ignore'")
        if not 0 <= self.battery_threshold <= 100:
            raise ConfigError(
                f"battery_threshold is {self.battery_threshold}; expected a percentage, 0 to 100"
            )
        if self.max_cpu_percent is not None and not 0 < self.max_cpu_percent <= 100:
            raise ConfigError(
                f"max_cpu_percent is {self.max_cpu_percent}; expected more than 0, at most 100"
            )
        for name in ("max_memory_mb", "poll_seconds"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"{name} is {value}; expected more than 0")


@dataclass(frozen=True)
class Advice:
    """How large the next piece of work should be.

    Attributes:
        scale: in (0, 1]; 1 means as planned, 0.5 half the rows or tokens.
        reason: why it is below 1, for people; None at 1.
    """

    scale: float = 1.0
    reason: str | None = None


class Probe(Protocol):
    """What the monitor reads from the machine; tests pass their own."""

    def battery(self) -> Battery | None:
        """The battery's state, or None on a machine without one."""
        ...

    def heat(self) -> Heat | None:
        """The machine's thermal pressure, or None where it is not known."""
        ...

    def memory_mb(self) -> float:
        """This process's memory, MB."""
        ...

    def cpu_seconds(self) -> float:
        """CPU time that this process has used, over all its threads."""
        ...

    def now(self) -> float:
        """A clock that only goes forward, in seconds."""
        ...

    def sleep(self, seconds: float) -> None:
        """Wait."""
        ...


class SystemProbe:
    """The probe that reads the real machine."""

    def battery(self) -> Battery | None:
        """See `Probe`."""
        return read_battery()

    def heat(self) -> Heat | None:
        """See `Probe`."""
        return read_heat()

    def memory_mb(self) -> float:
        """See `Probe`."""
        return memory_mb()

    def cpu_seconds(self) -> float:
        """See `Probe`."""
        return time.process_time()

    def now(self) -> float:
        """See `Probe`."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """See `Probe`."""
        time.sleep(seconds)


def read_battery() -> Battery | None:
    """The battery's state, or None on a machine without one."""
    import psutil

    try:
        state = psutil.sensors_battery()
    except (OSError, AttributeError, NotImplementedError):
        return None
    if state is None:
        return None
    # `power_plugged` is None when unknown; treating that as unplugged would slow a desktop.
    return Battery(float(state.percent), state.power_plugged is not False)


class ResourceMonitor:
    """Compares the machine with the limits, at most once per `poll_seconds`.

    Args:
        limits: the ceilings; the defaults halve work on a battery below 40 % and on a hot machine.
        probe: where the readings come from.
        cores: usable cores, of which `max_cpu_percent` is a share; default: as detected.
        on_pause: called with the reason when work starts to wait, and with None when it goes on.
    """

    def __init__(
        self,
        limits: ResourceLimits | None = None,
        *,
        probe: Probe | None = None,
        cores: int | None = None,
        on_pause: Callable[[str | None], None] | None = None,
    ) -> None:
        self.limits = limits or ResourceLimits()
        self._probe: Probe = probe or SystemProbe()
        self._cores = cores or available_cores()
        self._on_pause = on_pause
        self._advice = Advice()
        self._next_poll = float("-inf")
        self._cpu_mark: tuple[float, float] | None = None

    def consult(self, stop: StopSwitch = NEVER) -> Advice:
        """Say how large the next piece of work should be; wait first when the limits ask for it.

        Args:
            stop: honoured on entry and while waiting.

        Returns:
            The advice; the previous one when the last look at the machine is recent.

        Raises:
            Stopped: a stop was asked for.
        """
        stop.check()
        self._keep_cpu_ceiling(stop)
        if self._probe.now() >= self._next_poll:
            self._wait_until_fit(stop)
            self._advice = self._judge()
            self._next_poll = self._probe.now() + self.limits.poll_seconds
        return self._advice

    def look(self) -> Advice:
        """What the machine allows now, without waiting for anything; looks at each call."""
        return self._judge()

    def _judge(self) -> Advice:
        scales = [self._battery_scale(), self._heat_scale(), self._memory_scale()]
        reasons = [reason for _, reason in scales if reason is not None]
        if not reasons:
            return Advice()
        scale = max(_SMALLEST, math.prod(scale for scale, _ in scales))
        return Advice(scale, "; ".join(reasons))

    def _battery_scale(self) -> tuple[float, str | None]:
        low = self._low_battery() if self.limits.on_battery == "reduce" else None
        return (1.0, None) if low is None else (_REDUCED, low)

    def _heat_scale(self) -> tuple[float, str | None]:
        hot = self._too_hot("serious") if self.limits.on_heat == "reduce" else None
        return (1.0, None) if hot is None else (_REDUCED, hot)

    def _memory_scale(self) -> tuple[float, str | None]:
        limit = self.limits.max_memory_mb
        if limit is None:
            return 1.0, None
        used = self._probe.memory_mb()
        if used > limit:
            _release_cached_buffers()
            used = self._probe.memory_mb()
        if used <= limit:
            return 1.0, None
        return limit / used, f"memory at {used:.0f} MB, over the ceiling of {limit:.0f} MB"

    def _low_battery(self) -> str | None:
        battery = self._probe.battery()
        if battery is None or battery.plugged or battery.percent >= self.limits.battery_threshold:
            return None
        return f"battery at {battery.percent:.0f} %, below {self.limits.battery_threshold:.0f} %"

    def _too_hot(self, least: Heat) -> str | None:
        heat = self._probe.heat()
        if heat is None or LEVELS.index(heat) < LEVELS.index(least):
            return None
        return f"the machine is hot ({heat})"

    def _reason_to_wait(self) -> str | None:
        if self.limits.on_battery == "pause" and (reason := self._low_battery()) is not None:
            return reason
        if self.limits.on_heat == "ignore":
            return None
        return self._too_hot("serious" if self.limits.on_heat == "pause" else "critical")

    def _wait_until_fit(self, stop: StopSwitch) -> None:
        reason = self._reason_to_wait()
        if reason is None:
            return
        self._announce(reason)
        try:
            while self._reason_to_wait() is not None:
                self._sleep(self.limits.poll_seconds, stop)
        finally:
            self._announce(None)
            self._cpu_mark = None

    def _keep_cpu_ceiling(self, stop: StopSwitch) -> None:
        if self.limits.max_cpu_percent is None:
            return
        now, used = self._probe.now(), self._probe.cpu_seconds()
        if self._cpu_mark is not None:
            then, used_then = self._cpu_mark
            allowed = self._cores * self.limits.max_cpu_percent / 100
            wait = (used - used_then) / allowed - (now - then)
            if wait > 0:
                self._sleep(wait, stop)
        self._cpu_mark = (self._probe.now(), self._probe.cpu_seconds())

    def _sleep(self, seconds: float, stop: StopSwitch) -> None:
        """Wait in slices short enough for a person who asked for the stop."""
        while seconds > 0:
            stop.check()
            part = min(seconds, _SLICE_SECONDS)
            self._probe.sleep(part)
            seconds -= part
        stop.check()

    def _announce(self, reason: str | None) -> None:
        if reason is None:
            _log.info("work goes on")
        else:
            _log.info("work pauses", extra={"reason": reason})
        if self._on_pause is not None:
            self._on_pause(reason)


def _release_cached_buffers() -> None:
    """Give back the buffers that MLX keeps for reuse; without MLX there are none."""
    core = sys.modules.get("mlx.core")
    if core is not None:
        core.clear_cache()
