"""The kill switch of a data folder."""

from __future__ import annotations

import json
import signal

import pytest

from mlx_companion.errors import LoopError, Stopped
from mlx_companion.loop.switch import long_work, stop_file, take_back, throw
from mlx_companion.runtime.logs import get_logger
from mlx_companion.runtime.paths import data_dir


def test_it_stays_thrown_until_it_is_taken_back() -> None:
    assert throw() == stop_file() == data_dir() / "STOP"
    assert throw().exists()
    assert take_back() is True
    assert not stop_file().exists()
    assert take_back() is False


def test_nothing_starts_while_it_is_thrown() -> None:
    throw()
    with pytest.raises(LoopError, match=r"nothing was started.*mlx-companion resume"), long_work():
        pytest.fail("the work began")
    assert stop_file().exists()


def test_it_can_be_taken_back_at_the_start() -> None:
    throw()
    with long_work(clear_stop=True) as switch:
        switch.check()
    assert not stop_file().exists()


def test_running_work_stops_at_its_next_check() -> None:
    with long_work() as switch:
        switch.check()
        throw()
        with pytest.raises(Stopped, match=r"safe point.*STOP"):
            switch.check()


def test_a_signal_stops_it_and_is_answered() -> None:
    heard: list[str] = []
    with long_work(say=heard.append) as switch:
        signal.raise_signal(signal.SIGINT)
        assert heard == [
            "received SIGINT: stopping at the next safe point; once more stops at once"
        ]
        with pytest.raises(Stopped):
            switch.check()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_logs_are_written_during_the_work_only() -> None:
    with long_work():
        get_logger("mlx_companion.test").info("inside")
    get_logger("mlx_companion.test").info("outside")
    (file,) = (data_dir() / "logs").glob("*.log")
    assert [json.loads(line)["message"] for line in file.read_text().splitlines()] == ["inside"]
