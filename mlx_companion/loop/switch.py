"""The kill switch of a data folder, and what surrounds work that takes minutes.

`mlx-companion stop` throws the switch by making a file in the data folder, and it stays thrown
until it is taken back: running work ends at its next safe point, and none begins meanwhile. So a
person can stop a companion that improves itself every night, from any terminal, with certainty::

    with long_work() as switch:
        improve(config, switch=switch)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mlx_companion.errors import LoopError
from mlx_companion.runtime.logs import close_logging, configure_logging
from mlx_companion.runtime.paths import data_dir
from mlx_companion.runtime.stop import StopSwitch

__all__ = ["long_work", "stop_file", "take_back", "throw"]


def stop_file() -> Path:
    """The file whose existence means that the switch is thrown."""
    return data_dir() / "STOP"


def throw() -> Path:
    """Throw the switch; the file that says so."""
    path = stop_file()
    path.touch()
    return path


def take_back() -> bool:
    """Take the switch back; whether it was thrown."""
    path = stop_file()
    was_thrown = path.exists()
    path.unlink(missing_ok=True)
    return was_thrown


@contextmanager
def long_work(
    *, clear_stop: bool = False, say: Callable[[str], None] = print
) -> Iterator[StopSwitch]:
    """Write logs into the data folder and listen to the switch, Ctrl-C and SIGTERM in the block.

    Args:
        clear_stop: take the switch back first.
        say: tells the person that a signal was heard and what happens now.

    Raises:
        LoopError: the switch is thrown.
    """
    path = stop_file()
    if clear_stop:
        take_back()
    elif path.exists():
        raise LoopError(
            f"the kill switch is thrown ({path}), so nothing was started; take it back with "
            "`mlx-companion resume`, or give --clear-stop"
        )

    def heard(reason: str) -> None:
        say(f"{reason}: stopping at the next safe point; once more stops at once")

    configure_logging(data_dir() / "logs")
    try:
        with StopSwitch(path, on_request=heard) as switch:
            yield switch
    finally:
        close_logging()
