"""The scheduler: smaller batches and skipped modules under pressure, and never a wait."""

from __future__ import annotations

import pytest

from mlx_companion.runtime.heat import Heat
from mlx_companion.runtime.monitor import Battery
from mlx_companion.slm.config import ModuleConfig, ResourcesConfig, SLMConfig
from mlx_companion.slm.resources import ResourceScheduler, free_memory_mb


class Machine:
    """A probe whose readings a test sets; sleeping is a fault."""

    def __init__(self) -> None:
        self.time = 0.0
        self.used = 500.0
        self.charge: Battery | None = None
        self.hot: Heat | None = None
        self.free = 8000.0
        self.looks = 0

    def battery(self) -> Battery | None:
        return self.charge

    def heat(self) -> Heat | None:
        return self.hot

    def memory_mb(self) -> float:
        self.looks += 1
        return self.used

    def cpu_seconds(self) -> float:
        return 0.0

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        raise AssertionError("the scheduler waited")


def scheduler(machine: Machine, **config: object) -> ResourceScheduler:
    settings = ResourcesConfig(memory_ceiling_mb=1000.0, **config)  # type: ignore[arg-type]
    return ResourceScheduler(settings, probe=machine, free_mb=lambda: machine.free)


def skipped(own: ResourceScheduler) -> set[str]:
    config = SLMConfig()
    names = ("research_classifier", "personality_guard", "context_tracker", "drift_monitor")
    return {name for name in names if own.skip_reason(config.module(name))}


def test_without_pressure_everything_runs() -> None:
    own = scheduler(Machine())
    assert own.refresh().scale == 1
    assert own.batch_size(32) == 32
    assert skipped(own) == set()


def test_a_low_battery_halves_batches_and_skips_the_drift_monitor() -> None:
    machine = Machine()
    machine.charge = Battery(20.0, plugged=False)
    own = scheduler(machine)
    assert own.refresh().scale == 0.5
    assert own.batch_size(32) == 16
    assert own.batch_size(1) == 1
    assert skipped(own) == {"drift_monitor"}
    reason = own.skip_reason(SLMConfig().module("drift_monitor"))
    assert reason == "battery at 20 %, below 40 %"


def test_heavy_pressure_skips_the_tracker_too_and_never_the_others() -> None:
    machine = Machine()
    machine.charge = Battery(5.0, plugged=False)
    machine.hot = "critical"
    machine.used = 3000.0
    own = scheduler(machine)
    assert own.refresh().scale < 0.3
    assert skipped(own) == {"drift_monitor", "context_tracker"}


@pytest.mark.parametrize(("free", "scale"), [(8000.0, 1.0), (150.0, 0.5), (1.0, 0.1)])
def test_little_free_memory_counts(free: float, scale: float) -> None:
    machine = Machine()
    machine.free = free
    advice = scheduler(machine, min_free_mb=300.0).refresh()
    assert advice.scale == pytest.approx(scale)
    assert (advice.reason is None) == (scale == 1)


def test_memory_over_the_ceiling_shrinks_in_proportion() -> None:
    machine = Machine()
    machine.used = 2000.0
    own = scheduler(machine)
    assert own.refresh().scale == 0.5
    machine.used = 900.0
    machine.time += 5.0
    assert own.refresh().scale == 1


def test_it_looks_at_most_once_per_poll() -> None:
    machine = Machine()
    own = scheduler(machine, poll_seconds=5.0)
    assert own.stale
    own.refresh()
    looks = machine.looks
    assert not own.stale
    own.refresh()
    machine.time = 4.9
    own.refresh()
    assert machine.looks == looks
    machine.time = 5.0
    assert own.stale
    own.refresh()
    assert machine.looks > looks


def test_without_adapting_it_never_looks() -> None:
    machine = Machine()
    machine.used = 9999.0
    own = scheduler(machine, adaptive=False)
    assert not own.stale
    assert own.refresh().scale == 1
    assert machine.looks == 0


def test_the_threshold_of_a_module_is_what_counts() -> None:
    machine = Machine()
    machine.used = 2000.0
    own = scheduler(machine)
    own.refresh()
    assert own.skip_reason(ModuleConfig(skip_below=0.5)) is None
    assert own.skip_reason(ModuleConfig(skip_below=0.51)) is not None


def test_the_real_machine_can_be_read() -> None:
    assert free_memory_mb() > 0
    assert 0 < ResourceScheduler().refresh().scale <= 1
