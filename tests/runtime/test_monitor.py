"""Limits: when work is made smaller, when it waits, and that a stop is honoured all the while."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_companion.errors import ConfigError, Stopped
from mlx_companion.runtime.heat import Heat, hottest, mac_level, read_heat
from mlx_companion.runtime.monitor import (
    Advice,
    Battery,
    ResourceLimits,
    ResourceMonitor,
    read_battery,
)
from mlx_companion.runtime.stop import StopSwitch


class FakeMachine:
    """A probe with a clock that only `sleep` and the test move."""

    def __init__(self, battery: Battery | None = None, memory: float = 100.0) -> None:
        self.state = battery
        self.memory = memory
        self.cpu = 0.0
        self.clock = 1000.0
        self.looks = 0
        self.charge_per_second = 0.0
        self.levels: list[Heat | None] = [None]

    def heat(self) -> Heat | None:
        return self.levels.pop(0) if len(self.levels) > 1 else self.levels[0]

    def battery(self) -> Battery | None:
        self.looks += 1
        return self.state

    def memory_mb(self) -> float:
        return self.memory

    def cpu_seconds(self) -> float:
        return self.cpu

    def now(self) -> float:
        return self.clock

    def sleep(self, seconds: float) -> None:
        self.clock += seconds
        if self.state is not None:
            percent = self.state.percent + seconds * self.charge_per_second
            self.state = Battery(percent, self.state.plugged)


def monitor(machine: FakeMachine, **limits: object) -> ResourceMonitor:
    return ResourceMonitor(ResourceLimits(**limits), probe=machine, cores=2)


@pytest.mark.parametrize(
    ("battery", "scale"),
    [
        (None, 1.0),
        (Battery(10, plugged=True), 1.0),
        (Battery(40, plugged=False), 1.0),
        (Battery(39, plugged=False), 0.5),
    ],
)
def test_a_low_battery_halves_the_work(battery: Battery | None, scale: float) -> None:
    advice = monitor(FakeMachine(battery)).consult()
    assert advice.scale == scale
    assert (advice.reason is None) == (scale == 1.0)


def test_a_low_battery_can_be_ignored() -> None:
    machine = FakeMachine(Battery(1, plugged=False))
    assert monitor(machine, on_battery="ignore").consult() == Advice()


def test_a_low_battery_can_pause_until_it_is_charged() -> None:
    machine = FakeMachine(Battery(20, plugged=False))
    machine.charge_per_second = 1.0
    told: list[str | None] = []
    limits = ResourceLimits(on_battery="pause", battery_threshold=30, poll_seconds=2)
    advice = ResourceMonitor(limits, probe=machine, on_pause=told.append).consult()
    assert advice == Advice()
    assert machine.clock == 1010.0
    assert told == ["battery at 20 %, below 30 %", None]


def test_a_stop_ends_the_pause() -> None:
    class Impatient(FakeMachine):
        def sleep(self, seconds: float) -> None:
            super().sleep(seconds)
            if self.clock > 1003:
                stop.request("enough")

    stop = StopSwitch()
    machine = Impatient(Battery(20, plugged=False))
    with pytest.raises(Stopped, match="enough"):
        monitor(machine, on_battery="pause").consult(stop)
    assert machine.clock < 1004.1


def test_a_stop_is_honoured_on_entry() -> None:
    stop = StopSwitch()
    stop.request("now")
    with pytest.raises(Stopped):
        monitor(FakeMachine()).consult(stop)


def test_memory_over_the_ceiling_shrinks_the_work() -> None:
    machine = FakeMachine(memory=1000)
    advice = monitor(machine, max_memory_mb=800).consult()
    assert advice.scale == pytest.approx(0.8)
    assert advice.reason == "memory at 1000 MB, over the ceiling of 800 MB"


def test_reasons_add_up() -> None:
    machine = FakeMachine(Battery(5, plugged=False), memory=1000)
    advice = monitor(machine, max_memory_mb=500).consult()
    assert advice.scale == pytest.approx(0.25)
    assert advice.reason is not None
    assert "battery" in advice.reason
    assert "memory" in advice.reason


def test_the_machine_is_not_looked_at_too_often() -> None:
    machine = FakeMachine(Battery(90, plugged=False))
    watcher = monitor(machine, poll_seconds=5)
    for _ in range(100):
        watcher.consult()
        machine.clock += 0.1
    assert machine.looks == 2
    machine.state = Battery(10, plugged=False)
    machine.clock += 5
    assert watcher.consult().scale == 0.5


def test_the_cpu_ceiling_is_kept_by_sleeping() -> None:
    machine = FakeMachine()
    watcher = monitor(machine, max_cpu_percent=25)
    watcher.consult()
    for _ in range(10):
        machine.clock += 1
        machine.cpu += 2  # both cores, all the time
        watcher.consult()
    share = machine.cpu / 2 / (machine.clock - 1000)
    assert share == pytest.approx(0.25)


def test_work_under_the_cpu_ceiling_does_not_wait() -> None:
    machine = FakeMachine()
    watcher = monitor(machine, max_cpu_percent=60)
    for _ in range(10):
        machine.clock += 1
        machine.cpu += 1
        watcher.consult()
    assert machine.clock == 1010


@given(
    st.none() | st.builds(Battery, percent=st.floats(0, 100), plugged=st.booleans()),
    st.floats(0.01, 1e6),
    st.none() | st.floats(0.01, 1e6),
)
def test_advice_is_always_usable(
    battery: Battery | None, memory: float, ceiling: float | None
) -> None:
    advice = monitor(FakeMachine(battery, memory), max_memory_mb=ceiling).consult()
    assert 0 < advice.scale <= 1
    assert advice.scale == 1 or advice.reason is not None


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"on_battery": "sleep"}, "on_battery is 'sleep'; expected"),
        ({"battery_threshold": 140}, "percentage"),
        ({"max_cpu_percent": 0}, "more than 0"),
        ({"max_memory_mb": -5}, "max_memory_mb is -5"),
        ({"poll_seconds": 0}, "poll_seconds is 0"),
    ],
)
def test_impossible_limits_are_refused(limits: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ResourceLimits(**limits)


def test_the_real_probe_answers() -> None:
    advice = ResourceMonitor(ResourceLimits(on_battery="ignore", max_memory_mb=1.0)).consult()
    assert 0 < advice.scale < 1
    battery = read_battery()
    assert battery is None or 0 <= battery.percent <= 100


@pytest.mark.parametrize(
    ("heat", "answer", "scale"),
    [
        (None, "reduce", 1.0),
        ("fair", "reduce", 1.0),
        ("serious", "reduce", 0.5),
        ("serious", "ignore", 1.0),
        ("critical", "ignore", 1.0),
    ],
)
def test_a_hot_machine_halves_the_work(heat: Heat | None, answer: str, scale: float) -> None:
    machine = FakeMachine()
    machine.levels = [heat]
    advice = monitor(machine, on_heat=answer).consult()
    assert advice.scale == scale
    assert (advice.reason is None) == (scale == 1.0)


@pytest.mark.parametrize(
    ("answer", "levels", "slept", "scale"),
    [
        ("pause", ["serious", "serious", "serious", "fair"], 10, 1.0),
        ("reduce", ["critical", "critical", "critical", "serious"], 10, 0.5),
    ],
)
def test_work_waits_until_the_machine_has_cooled(
    answer: str, levels: list[Heat | None], slept: float, scale: float
) -> None:
    machine = FakeMachine()
    machine.levels = levels
    before = machine.clock
    assert monitor(machine, on_heat=answer).consult().scale == scale
    assert machine.clock - before == pytest.approx(slept)


def test_a_stop_is_honoured_while_the_machine_cools(tmp_path: Path) -> None:
    machine, switch = FakeMachine(), StopSwitch(tmp_path / "stop")
    machine.levels = ["critical"]
    asleep = machine.sleep

    def sleep(seconds: float) -> None:
        asleep(seconds)
        switch.request("enough")

    machine.sleep = sleep  # type: ignore[method-assign]
    with pytest.raises(Stopped):
        monitor(machine).consult(switch)


def test_battery_and_heat_together_shrink_work_twice() -> None:
    machine = FakeMachine(Battery(10, plugged=False))
    machine.levels = ["serious"]
    advice = monitor(machine).consult()
    assert advice.scale == 0.25
    assert "battery" in str(advice.reason)
    assert "hot" in str(advice.reason)


@pytest.mark.parametrize(
    ("sensors", "level"),
    [
        ([], None),
        ([{"current": 95.0, "high": None, "critical": None}], None),
        ([{"current": 50.0, "high": 80.0, "critical": 100.0}], "nominal"),
        ([{"current": 76.0, "high": 80.0, "critical": 100.0}], "fair"),
        ([{"current": 80.0, "high": 80.0, "critical": 100.0}], "serious"),
        ([{"current": 100.0, "high": 80.0, "critical": 100.0}], "critical"),
        ([{"current": 60.0, "high": None, "critical": 100.0}], "nominal"),
        (
            [
                {"current": 20.0, "high": 80.0, "critical": None},
                {"current": 81.0, "high": 80.0, "critical": None},
                {"current": 200.0, "high": None, "critical": None},
            ],
            "serious",
        ),
    ],
)
def test_the_hottest_sensor_counts(sensors: list[dict[str, float | None]], level: str) -> None:
    assert hottest(sensors) == level


def test_levels_of_macos_and_this_machine() -> None:
    assert [mac_level(n) for n in range(6)] == [
        "nominal", "fair", "serious", "critical", "critical", "critical",
    ]  # fmt: skip
    assert read_heat() in (None, "nominal", "fair", "serious", "critical")


def test_an_unknown_answer_to_heat_is_refused() -> None:
    with pytest.raises(ConfigError, match="on_heat"):
        ResourceLimits(on_heat="panic")
