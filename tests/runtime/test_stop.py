"""The kill switch: by signal, file or code; handlers come back; safe off the main thread."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from mlx_companion.errors import CompanionError, Stopped
from mlx_companion.runtime.stop import NEVER, EitherSwitch, StopSwitch


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_asks_second_interrupts(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    told: list[str] = []
    with StopSwitch(on_request=told.append) as stop:
        stop.check()
        os.kill(os.getpid(), number)
        assert stop.requested == f"received {number.name}"
        with pytest.raises(Stopped, match=number.name):
            stop.check()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert told == [f"received {number.name}"]
    assert signal.getsignal(number) is before


def test_a_file_asks(tmp_path: Path) -> None:
    with StopSwitch(tmp_path / "STOP") as stop:
        assert stop.requested is None
        (tmp_path / "STOP").touch()
        assert stop.requested is not None
        (tmp_path / "STOP").unlink()
        with pytest.raises(Stopped, match="STOP exists"):
            stop.check()


def test_code_asks_and_the_first_reason_stays() -> None:
    stop = StopSwitch()
    stop.request("out of time")
    stop.request("something else")
    assert stop.requested == "out of time"


def test_handlers_come_back_after_an_error() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ValueError, match="x"), StopSwitch():
        raise ValueError("x")
    assert signal.getsignal(signal.SIGINT) is before


def test_switches_nest() -> None:
    with StopSwitch() as outer:
        with StopSwitch() as inner:
            os.kill(os.getpid(), signal.SIGTERM)
        assert inner.requested
        assert outer.requested is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert outer.requested


def test_another_thread_can_use_it(tmp_path: Path) -> None:
    seen: list[object] = []

    def work() -> None:
        try:
            with StopSwitch(tmp_path / "STOP") as stop:
                (tmp_path / "STOP").touch()
                stop.check()
        except BaseException as error:
            seen.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert [type(error) for error in seen] == [Stopped]


def test_never_never_stops() -> None:
    before = signal.getsignal(signal.SIGINT)
    with NEVER as stop:
        assert signal.getsignal(signal.SIGINT) is before
        stop.check()
    with pytest.raises(TypeError, match="pass a StopSwitch"):
        NEVER.request("now")
    assert NEVER.requested is None


def test_being_stopped_is_no_error() -> None:
    assert not issubclass(Stopped, CompanionError)


def test_either_of_two_switches_stops() -> None:
    outer = StopSwitch()
    one, two = EitherSwitch(outer), EitherSwitch(NEVER)
    assert (one.requested, two.requested) == (None, None)
    two.request("enough")
    assert (outer.requested, one.requested, two.requested) == (None, None, "enough")
    outer.request("over")
    assert one.requested == "over"
