"""How hot the machine says it is: what a system with a fan too small slows down for.

macOS publishes a level of thermal pressure to every process, without asking for rights; Linux has
sensors with limits of their own, read through psutil. Where neither answers, the level is unknown.

    read_heat()     # "nominal", "fair", "serious", "critical" or None
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable, Mapping
from typing import Any, Literal

Heat = Literal["nominal", "fair", "serious", "critical"]
LEVELS: tuple[Heat, ...] = ("nominal", "fair", "serious", "critical")

# <notify.h> and OSThermalNotification.h: a number from 0 (nominal) to 4 (the machine is to sleep).
_MAC_KEY = b"com.apple.system.thermalpressurelevel"
_MAC_LEVELS: tuple[Heat, ...] = ("nominal", "fair", "serious", "critical", "critical")
# Degrees Celsius under a sensor's own "high" that count as fair.
_FAIR_MARGIN = 5.0


def read_heat() -> Heat | None:
    """The machine's thermal pressure, None where it is not known."""
    return _mac_heat() if sys.platform == "darwin" else _sensor_heat()


def hottest(sensors: Iterable[Mapping[str, float | None]]) -> Heat | None:
    """The worst level among sensors.

    Args:
        sensors: `current`, and where there are any the limits `high` and `critical`, in degrees
            Celsius; those without a limit say nothing.
    """
    found = [level for sensor in sensors if (level := _level(sensor)) is not None]
    return max(found, key=LEVELS.index) if found else None


def _level(sensor: Mapping[str, float | None]) -> Heat | None:
    current, high, critical = (sensor.get(name) for name in ("current", "high", "critical"))
    if current is None or not (high or critical):
        return None
    if critical and current >= critical:
        return "critical"
    if not high:
        return "nominal"
    if current >= high:
        return "serious"
    return "fair" if current >= high - _FAIR_MARGIN else "nominal"


def _sensor_heat() -> Heat | None:
    import psutil

    try:
        chips = psutil.sensors_temperatures()
    except (OSError, AttributeError, ValueError):
        return None
    return hottest(entry._asdict() for entries in chips.values() for entry in entries)


def _mac_heat() -> Heat | None:
    try:
        system: Any = ctypes.CDLL("/usr/lib/libSystem.dylib")
        token, state = ctypes.c_int(), ctypes.c_uint64()
        if system.notify_register_check(_MAC_KEY, ctypes.byref(token)):
            return None
        try:
            failed = system.notify_get_state(token, ctypes.byref(state))
        finally:
            system.notify_cancel(token)
    except (OSError, AttributeError):
        return None
    return None if failed else mac_level(state.value)


def mac_level(number: int) -> Heat:
    """The level of a number that macOS publishes; unheard-of ones count as the worst."""
    return _MAC_LEVELS[min(number, len(_MAC_LEVELS) - 1)]
