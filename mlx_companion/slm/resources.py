"""How much of the modules' work the machine can take now: memory, battery and heat.

The readings and their judgement are those of long work (`runtime.monitor`), but nothing here ever
waits: a reply is due. Under pressure batches shrink in proportion, and modules that may be left out
are, those with the highest `skip_below` first::

    scheduler = ResourceScheduler(config.resources)
    scheduler.refresh()                                  # looks at the machine; on a worker thread
    scheduler.batch_size(32)                             # 16 on a battery below 40 %
    scheduler.skip_reason(config.modules.drift_monitor)  # "battery at 20 %, below 40 %", or None
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock

from mlx_companion.runtime.monitor import (
    Advice,
    Probe,
    ResourceLimits,
    ResourceMonitor,
    SystemProbe,
)
from mlx_companion.slm.config import ModuleConfig, ResourcesConfig

_SMALLEST = 0.1


def free_memory_mb() -> float:
    """Memory (MB) that programs can still take without swapping."""
    import psutil

    return float(psutil.virtual_memory().available) / 1e6


class ResourceScheduler:
    """Looks at the machine now and then, and says how much work fits. Safe between threads.

    Args:
        config: the ceilings.
        probe: where battery, heat, this process's memory and the time come from.
        free_mb: where the machine's free memory comes from.
    """

    def __init__(
        self,
        config: ResourcesConfig | None = None,
        *,
        probe: Probe | None = None,
        free_mb: Callable[[], float] = free_memory_mb,
    ) -> None:
        self.config = config or ResourcesConfig()
        self._probe: Probe = probe or SystemProbe()
        self._free_mb = free_mb
        limits = ResourceLimits(
            battery_threshold=self.config.battery_threshold,
            max_memory_mb=self.config.memory_ceiling_mb,
        )
        self._monitor = ResourceMonitor(limits, probe=self._probe)
        self._lock = Lock()
        self._advice = Advice()
        self._next_look = float("-inf")

    @property
    def advice(self) -> Advice:
        """The last judgement; full speed before the first look. Never looks itself."""
        return self._advice

    @property
    def stale(self) -> bool:
        """It is time for another look."""
        return self.config.adaptive and self._probe.now() >= self._next_look

    def refresh(self) -> Advice:
        """Look at the machine when it is time to; may take milliseconds, so not on a loop."""
        with self._lock:
            if self.stale:
                self._next_look = self._probe.now() + self.config.poll_seconds
                self._advice = self._judge()
            return self._advice

    def batch_size(self, size: int) -> int:
        """How many inputs of `size` to take at once now; at least 1."""
        return max(1, int(size * self._advice.scale))

    def skip_reason(self, module: ModuleConfig) -> str | None:
        """Why a module is to be left out now; None when it may run."""
        advice = self._advice
        return advice.reason if advice.scale < module.skip_below else None

    def _judge(self) -> Advice:
        advice = self._monitor.look()
        free, least = self._free_mb(), self.config.min_free_mb
        if free >= least:
            return advice
        reason = f"{free:.0f} MB of memory are free, less than {least:.0f}"
        scale = max(_SMALLEST, advice.scale * free / least)
        return Advice(scale, "; ".join(filter(None, (advice.reason, reason))))
