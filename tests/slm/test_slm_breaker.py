"""The circuit breaker, by a clock that the test turns."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from hypothesis import given
from hypothesis import strategies as st

from mlx_companion.slm.breaker import CircuitBreaker


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def opened(clock: Clock, failures: int = 3) -> CircuitBreaker:
    breaker = CircuitBreaker(failures, 30.0, 100.0, clock)
    for _ in range(failures):
        assert breaker.allow()
        breaker.failure("boo")
    return breaker


def test_it_opens_after_failures_in_a_row() -> None:
    breaker = CircuitBreaker(3, 30.0, clock=Clock())
    breaker.failure("a")
    breaker.failure("b")
    breaker.success()
    breaker.failure("c")
    breaker.failure("d")
    assert breaker.allow()
    assert breaker.snapshot().failures == 2
    breaker.failure("e")
    assert not breaker.allow()
    state = breaker.snapshot()
    assert (state.state, state.failures, state.reason, state.retry_in) == ("open", 3, "e", 30.0)


def test_one_try_after_the_wait_and_success_closes() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now += 29.9
    assert not breaker.allow()
    clock.now += 0.2
    assert breaker.allow()
    assert breaker.snapshot().state == "half_open"
    assert not breaker.allow()
    breaker.success()
    assert breaker.snapshot().state == "closed"
    assert breaker.snapshot().reason is None
    assert breaker.allow()
    assert breaker.allow()


def test_a_failed_try_doubles_the_wait_up_to_the_longest() -> None:
    clock = Clock()
    breaker = opened(clock)
    waits = []
    for _ in range(4):
        waits.append(breaker.snapshot().retry_in)
        clock.now += waits[-1]
        assert breaker.allow()
        breaker.failure("again")
    assert waits == [30.0, 60.0, 100.0, 100.0]
    clock.now += 100
    assert breaker.allow()
    breaker.success()
    for _ in range(3):
        breaker.failure("later")
    assert breaker.snapshot().retry_in == 30.0


def test_a_try_that_was_called_off_may_be_made_again_at_once() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now += 30
    assert breaker.allow()
    breaker.withdraw()
    assert breaker.snapshot().retry_in == 0
    assert breaker.allow()
    breaker.success()
    breaker.withdraw()
    assert breaker.snapshot().state == "closed"


def test_tripping_opens_at_once() -> None:
    breaker = CircuitBreaker(3, 30.0, clock=Clock())
    breaker.trip("its weights are damaged")
    assert not breaker.allow()
    assert breaker.snapshot().reason == "its weights are damaged"


def test_only_one_of_many_threads_gets_the_try() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now += 30
    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(lambda _: breaker.allow(), range(100))) == 1


@given(st.lists(st.sampled_from(["success", "failure", "wait"]), max_size=60))
def test_it_lets_through_exactly_what_the_rule_says(events: list[str]) -> None:
    clock = Clock()
    breaker = CircuitBreaker(3, 10.0, 10.0, clock)
    failures, open_until = 0, None
    for event in events:
        if event == "wait":
            clock.now += 5
            continue
        allowed = open_until is None or clock.now >= open_until
        assert breaker.allow() == allowed
        if not allowed:
            continue
        if event == "success":
            breaker.success()
            failures, open_until = 0, None
        else:
            breaker.failure("x")
            failures += 1
            if open_until is not None or failures >= 3:
                open_until = clock.now + 10
    assert breaker.snapshot().failures == failures
