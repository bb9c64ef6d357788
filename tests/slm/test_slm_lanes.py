"""Lanes: results, limits, threads left behind and replaced, and an end of the process."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from patience import LONG, Clock

from mlx_companion.errors import SLMError
from mlx_companion.slm import lanes
from mlx_companion.slm.lanes import Lane, LaneFullError


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """What lanes take for the time: work is overdue when the test says so, and not before."""
    made = Clock()
    monkeypatch.setattr(lanes, "time", made)
    return made


def run(coroutine: Any) -> Any:
    return asyncio.run(coroutine)


class Hang:
    """Work that waits to be let go, and whose start can be waited for."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self.go = threading.Event()

    def __call__(self) -> None:
        self.started.set()
        self.go.wait()

    async def has_started(self) -> None:
        while not self.started.is_set():
            await asyncio.sleep(0.001)


def raiser(error: BaseException) -> Callable[[], Any]:
    def work() -> Any:
        raise error

    return work


def test_it_returns_what_the_work_returns_and_how_long_it_took() -> None:
    done = run(Lane("a").run(lambda: time.sleep(0.02) or 7, LONG))
    assert (done.value, done.error) == (7, None)
    assert done.seconds >= 0.02


@pytest.mark.parametrize(
    "error", [ValueError("x"), StopIteration(), SystemExit(3), KeyboardInterrupt(), MemoryError()]
)
def test_whatever_the_work_raises_is_a_result(error: BaseException) -> None:
    assert run(Lane("a").run(raiser(error), LONG)).error is error


def test_work_is_done_in_order_on_one_thread() -> None:
    lane = Lane("a")
    seen: list[tuple[int, int]] = []

    async def main() -> None:
        def note(i: int) -> None:
            seen.append((i, threading.get_ident()))

        await asyncio.gather(*(lane.run(lambda i=i: note(i), LONG) for i in range(50)))

    run(main())
    assert [i for i, _ in seen] == list(range(50))
    assert threading.get_ident() not in {thread for _, thread in seen}


def test_waiting_in_the_queue_does_not_count_as_time(clock: Clock) -> None:
    lane, hang = Lane("a"), Hang()

    async def main() -> list[Any]:
        work = [asyncio.create_task(lane.run(hang, 100))]
        await hang.has_started()
        work += [asyncio.create_task(lane.run(lambda: None, 10)) for _ in range(8)]
        await asyncio.sleep(0)
        clock.now += 90
        assert not lane.reap()
        hang.go.set()
        return await asyncio.gather(*work)

    assert all(done.error is None for done in run(main()))


def test_work_that_hangs_is_late_though_it_waited_behind_something_with_more_time() -> None:
    lane, first, second = Lane("a"), Hang(), Hang()

    async def main() -> None:
        lane.post(first, LONG)
        await first.has_started()
        behind = asyncio.create_task(lane.run(second, 0.05))
        await asyncio.sleep(0)
        first.go.set()
        with pytest.raises(TimeoutError, match=r"no answer within 0\.05 s"):
            await asyncio.wait_for(behind, LONG / 2)

    run(main())
    second.go.set()


def test_work_that_hangs_is_left_behind_and_replaced() -> None:
    lane, go = Lane("a", max_abandoned=2), threading.Event()

    async def main() -> None:
        with pytest.raises(TimeoutError, match=r"no answer within 0\.05 s"):
            await lane.run(go.wait, 0.05)
        assert lane.abandoned == 1
        assert (await lane.run(lambda: 1, LONG)).value == 1
        with pytest.raises(TimeoutError):
            await lane.run(go.wait, 0.05)
        assert (lane.abandoned, lane.full) == (2, True)
        with pytest.raises(LaneFullError, match="2 threads of a hang"):
            await lane.run(lambda: 1, LONG)
        go.set()
        while lane.abandoned:
            await asyncio.sleep(0.001)
        assert (await lane.run(lambda: 2, LONG)).value == 2

    run(main())


def test_without_a_thread_it_is_told_and_the_next_one_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    lane, threads = Lane("a"), lanes._Threads()
    monkeypatch.setattr(lanes, "_threads", threads)

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        job = lane.post(lambda: 1, LONG)
        with pytest.raises(LaneFullError, match="no thread can be started for a"):
            raise job.result(LONG).error or AssertionError
    assert run(lane.run(lambda: 2, LONG)).value == 2


def test_what_waits_behind_hanging_work_runs_on_the_new_thread(clock: Clock) -> None:
    lane, hang = Lane("a"), Hang()

    async def main() -> None:
        hanging = asyncio.create_task(lane.run(hang, 0.05))
        await hang.has_started()
        behind = asyncio.create_task(lane.run(lambda: "done", LONG))
        await asyncio.sleep(0)
        clock.now += 1
        with pytest.raises(TimeoutError):
            await hanging
        assert (await behind).value == "done"

    run(main())
    hang.go.set()


def test_work_that_somebody_else_left_behind_is_late_for_its_own_caller(clock: Clock) -> None:
    lane, hang = Lane("a"), Hang()

    async def main() -> None:
        hanging = asyncio.create_task(lane.run(hang, 0.05))
        await hang.has_started()
        # Not a turn for the caller: the lane is looked at before it can look itself.
        clock.now += 0.1
        assert lane.reap()
        with pytest.raises(TimeoutError, match="no answer within"):
            await asyncio.wait_for(hanging, LONG)

    run(main())
    hang.go.set()


def test_what_waits_behind_the_last_hanging_thread_is_told(clock: Clock) -> None:
    lane, hang = Lane("a", max_abandoned=1), Hang()

    async def main() -> None:
        hanging = asyncio.create_task(lane.run(hang, 0.05))
        await hang.has_started()
        behind = asyncio.create_task(lane.run(lambda: 1, LONG))
        await asyncio.sleep(0)
        clock.now += 1
        with pytest.raises(TimeoutError):
            await hanging
        assert isinstance((await behind).error, LaneFullError)

    run(main())
    hang.go.set()


def test_a_cancelled_caller_takes_its_work_out_of_the_queue() -> None:
    lane, hang = Lane("a"), Hang()
    ran: list[int] = []

    async def main() -> None:
        first = asyncio.create_task(lane.run(hang, LONG))
        await hang.has_started()
        second = asyncio.create_task(lane.run(lambda: ran.append(2), LONG))
        await asyncio.sleep(0)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        hang.go.set()
        await first
        await lane.run(lambda: ran.append(3), LONG)

    run(main())
    assert ran == [3]
    assert lane.abandoned == 0


def test_work_of_a_cancelled_caller_is_left_behind_when_overdue() -> None:
    lane, hang = Lane("a"), Hang()

    async def main() -> None:
        first = asyncio.create_task(lane.run(hang, 0.1))
        await hang.has_started()
        first.cancel()
        assert (await lane.run(lambda: 1, LONG)).value == 1

    run(main())
    assert lane.abandoned == 1
    hang.go.set()


def test_a_closed_lane_takes_nothing() -> None:
    lane = Lane("a")
    run(lane.run(lambda: 1, LONG))
    lane.close()
    with pytest.raises(SLMError, match="closed"):
        run(lane.run(lambda: 1, LONG))


def test_threads_do_not_pile_up() -> None:
    before = threading.active_count()
    go = threading.Event()

    async def main() -> None:
        lane = Lane("a", max_abandoned=3)
        for _ in range(50):
            with contextlib.suppress(TimeoutError, LaneFullError):
                await lane.run(go.wait, 0.005)
        assert threading.active_count() <= before + 3

    run(main())
    go.set()


def test_a_loop_that_ends_first_ends_quietly(capfd: pytest.CaptureFixture[str]) -> None:
    lane, hang = Lane("a"), Hang()

    async def main() -> None:
        task = asyncio.create_task(lane.run(hang, LONG))
        await hang.has_started()
        task.cancel()

    run(main())
    hang.go.set()
    run(lane.run(lambda: 1, LONG))
    assert capfd.readouterr().err == ""


def test_a_hung_thread_does_not_keep_the_process() -> None:
    code = (
        "import asyncio, time\n"
        "from mlx_companion.slm.lanes import Lane\n"
        "async def main():\n"
        "    try:\n"
        "        await Lane('a').run(lambda: time.sleep(600), 0.05)\n"
        "    except TimeoutError:\n"
        "        print('late', flush=True)\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=LONG
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "late\n", "")


def test_idle_threads_are_used_again() -> None:
    before = threading.active_count()

    async def main() -> None:
        for i in range(60):
            lane = Lane(f"again {i}")
            await lane.run(lambda: None, LONG)
            lane.close()
            while any(one.name == f"slm-again {i}" for one in threading.enumerate()):
                await asyncio.sleep(0.001)

    run(main())
    # One, unless a thread was held up between its new name and its place among the idle ones.
    assert threading.active_count() - before <= 10


def test_the_process_ends_well_when_a_thread_of_it_used_mlx() -> None:
    code = (
        "import mlx_companion, asyncio\n"
        "from mlx_companion.slm.lanes import Lane\n"
        "def work():\n"
        "    import mlx_lm\n"
        "    import mlx.core as mx\n"
        "    mx.eval(mx.ones(3) + 1)\n"
        "lane = Lane('a')\n"
        "asyncio.run(lane.run(work, 300))\n"
        "lane.close()\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, timeout=LONG)
    assert done.returncode == 0, done.stderr
