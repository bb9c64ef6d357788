"""The orchestrator over stand-ins: order, limits, faults, recovery, and a loop that is not held."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from patience import LONG, Clock, not_hanging, until
from slm_pauses import HELD, Pauses, calmest
from slm_stand_ins import StandIn, answer, configured, factory_of, hello, play, raising

from mlx_companion.errors import DataError, SLMError
from mlx_companion.slm import health
from mlx_companion.slm.breaker import CircuitBreaker
from mlx_companion.slm.module import MODULES
from mlx_companion.slm.orchestrator import SLMOrchestrator
from mlx_companion.slm.results import ResearchResult

RULE = ResearchResult(False, 0.6, "no keyword", "rule")


@pytest.fixture
def go() -> Any:
    """What hanging modules wait for; set at the end, so that no thread is left."""
    event = threading.Event()
    yield event
    event.set()


# The plain case.


def test_every_module_answers_a_message() -> None:
    modules = {name: StandIn(name) for name in MODULES}
    report = play(hello, **modules)
    assert list(report) == list(MODULES)
    assert {o.status for o in report.values()} == {"ok"}
    assert {o.version for o in report.values()} == {"7"}
    assert modules["research_classifier"].seen == ["hello"]
    assert modules["drift_monitor"].seen == [{"text": "hello"}]
    assert report.degraded == ()
    json.dumps(report.to_dict(), allow_nan=False)


def test_inputs_by_module_run_those_modules() -> None:
    guard = StandIn("personality_guard")
    given = {"personality_guard": {"text": "Hi."}, "context_tracker": "hi"}
    report = play(lambda own: own.run_parallel(given), personality_guard=guard)
    assert list(report) == ["personality_guard", "context_tracker"]
    assert guard.seen == [{"text": "Hi."}]
    report = play(lambda own: own.run_parallel(given, ["context_tracker"]))
    assert list(report) == ["context_tracker"]


@pytest.mark.parametrize(
    ("inputs", "modules", "told"),
    [
        ("hi", ["gard"], "there is no module 'gard'"),
        ({"personality_gard": "x"}, None, "did you mean 'personality_guard'"),
        ({"context_tracker": "x"}, ["personality_guard"], "no input was given for personality_g"),
        (["hi"], None, "got a list; expected a message"),
    ],
)
def test_wrong_calls_are_told(inputs: Any, modules: Any, told: str) -> None:
    with pytest.raises(SLMError, match=told):
        play(lambda own: own.run_parallel(inputs, modules))


@pytest.mark.parametrize("limit", [1, 2, 4])
def test_they_run_beside_each_other_up_to_the_limit(limit: int) -> None:
    lock, now, most = threading.Lock(), 0, 0
    # As many as may run meet here; one fewer would wait for ever.
    meeting = threading.Barrier(limit)

    def behave(name: str, item: Any) -> Any:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        meeting.wait(LONG)
        # Time for one too many to come in.
        time.sleep(0.02)
        with lock:
            now -= 1
        return answer(name, item)

    modules = {n: StandIn(n, partial(behave, n)) for n in MODULES}
    report = play(hello, configured(orchestration__max_parallel=limit), **modules)
    assert report.degraded == ()
    assert most == limit


def test_in_turn_they_run_one_by_one() -> None:
    inside = threading.Lock()

    def alone(name: str, item: Any) -> Any:
        assert inside.acquire(blocking=False)
        time.sleep(0.01)
        inside.release()
        return answer(name, item)

    modules = {n: StandIn(n, partial(alone, n)) for n in MODULES}
    report = play(lambda own: own.run_sequential("x"), **modules)
    assert {o.error for o in report.values()} == {None}


def test_in_turn_they_run_in_the_order_asked_for() -> None:
    order: list[str] = []
    modules = {n: StandIn(n, lambda item, n=n: order.append(n) or answer(n, item)) for n in MODULES}
    wanted = ["drift_monitor", "research_classifier", "context_tracker"]
    report = play(lambda own: own.run_sequential("x", wanted), **modules)
    assert order == wanted == list(report)


# Faults.


def test_a_module_that_hangs_is_late_and_the_others_answer(go: threading.Event) -> None:
    config = configured(modules__context_tracker__timeout=0.1)
    report = play(hello, config, context_tracker=StandIn("context_tracker", lambda _: go.wait()))
    assert report["context_tracker"].status == "timeout"
    assert report["context_tracker"].result is None
    assert "0.1 s" in report["context_tracker"].error
    assert report.degraded == ("context_tracker",)


def test_the_total_limit_ends_everything(go: threading.Event) -> None:
    hangs = {name: StandIn(name, lambda _: go.wait()) for name in MODULES}
    config = configured(orchestration__total_timeout=0.2)
    report = play(hello, config, **hangs)
    assert {o.status for o in report.values()} == {"timeout"}
    # Each of them alone has minutes.
    assert {o.error for o in report.values()} == {"the message's 0.2 s were used up"}


def test_in_turn_the_total_limit_holds_too(go: threading.Event) -> None:
    slow = StandIn("research_classifier", lambda _: go.wait())
    config = configured(orchestration__total_timeout=0.2, orchestration__failures=1)
    report = play(lambda own: own.run_sequential("x"), config, research_classifier=slow)
    assert [o.status for o in report.values()] == ["timeout"] * 4


@pytest.mark.parametrize(
    ("behave", "status", "told"),
    [
        (raising(ValueError("boo")), "error", "ValueError: boo"),
        (raising(SLMError("its weights are gone")), "error", "its weights are gone"),
        (raising(SystemExit(1)), "error", "SystemExit"),
        (raising(StopIteration()), "error", "StopIteration"),
        (lambda _: None, "nonsense", "answered with a NoneType"),
        (lambda _: answer("drift_monitor", "x"), "nonsense", "not ResearchResult"),
        (lambda _: replace(RULE, confidence=float("nan")), "nonsense", "confidence is nan"),
    ],
)
def test_the_classifier_falls_back_to_its_rule(behave: Any, status: str, told: str) -> None:
    broken = StandIn("research_classifier", behave, rules=lambda _: RULE)
    report = play(hello, research_classifier=broken)
    outcome = report["research_classifier"]
    assert (outcome.status, outcome.result, outcome.fallback) == (status, RULE, "keyword rule")
    assert told in outcome.error
    assert report.degraded == ("research_classifier",)


def test_a_late_guard_falls_back_to_its_rules_unless_told_not_to(go: threading.Event) -> None:
    def guard() -> StandIn:
        return StandIn(
            "personality_guard",
            lambda _: go.wait(),
            rules=lambda item: answer("personality_guard", item),
        )

    late = configured(modules__personality_guard__timeout=0.05)
    outcome = play(hello, late, personality_guard=guard())["personality_guard"]
    assert (outcome.status, outcome.fallback) == ("timeout", "rules")
    assert outcome.result.rewritten_response == "hello"
    strict = configured(
        modules__personality_guard__timeout=0.05, orchestration__fallback_on_timeout=False
    )
    outcome = play(hello, strict, personality_guard=guard())["personality_guard"]
    assert (outcome.status, outcome.result, outcome.fallback) == ("timeout", None, None)


@pytest.mark.parametrize(
    ("rules", "told"),
    [
        (raising(ValueError("rules too")), "its fallback: ValueError: rules too"),
        (lambda _: "nonsense", "its fallback: personality_guard answered with a str"),
        (None, "its fallback: no answer within 0.05 s"),
    ],
)
def test_a_fallback_that_fails_as_well_breaks_nothing(
    rules: Any, told: str, go: threading.Event
) -> None:
    hangs = rules is None
    doing = (lambda _: go.wait()) if hangs else rules
    broken = StandIn("personality_guard", raising(ValueError("boo")), doing)
    config = configured(orchestration__fallback_timeout=0.05) if hangs else None
    outcome = play(hello, config, personality_guard=broken)["personality_guard"]
    assert (outcome.status, outcome.result, outcome.fallback) == ("error", None, None)
    assert outcome.error.startswith("ValueError: boo; ")
    assert told in outcome.error


def test_a_module_that_cannot_be_loaded_is_unavailable_then_left_alone() -> None:
    factory = factory_of()
    builds = []

    def damaged() -> Any:
        builds.append(1)
        raise SLMError("weights.safetensors was changed or damaged; restore the pack")

    factory.register_module("context_tracker", damaged)

    async def scene(own: SLMOrchestrator) -> Any:
        return [await own.run_parallel("x"), await own.run_parallel("x"), own.status()]

    first, second, status = play(scene, factory=factory)
    assert first["context_tracker"].status == "unavailable"
    assert "restore the pack" in first["context_tracker"].error
    assert second["context_tracker"].status == "open"
    assert "restore the pack" in second["context_tracker"].error
    assert len(builds) == 1
    assert {one.module: one.state for one in status}["context_tracker"] == "broken"
    assert first["research_classifier"].ok


def test_a_module_whose_loading_failed_meanwhile_is_not_loading(go: threading.Event) -> None:
    def make() -> StandIn:
        go.wait()
        raise SLMError("its pack is damaged")

    factory = factory_of(configured(orchestration__load_timeout=0.0))
    factory.register_module("context_tracker", make)

    def state(own: SLMOrchestrator) -> str:
        return next(one.state for one in own.status() if one.module == "context_tracker")

    async def scene(own: SLMOrchestrator) -> None:
        assert "not loaded yet" in (await own.start(["context_tracker"]))["context_tracker"]
        assert state(own) == "loading"
        go.set()
        while state(own) == "loading":
            await asyncio.sleep(0.002)
        assert state(own) == "not loaded"

    with not_hanging(LONG):
        play(scene, None, factory)


def test_a_module_that_is_mended_comes_back() -> None:
    factory = factory_of()
    attempts = []

    def flaky() -> StandIn:
        attempts.append(1)
        if len(attempts) < 3:
            raise OSError("no route to host")
        return StandIn("context_tracker")

    factory.register_module("context_tracker", flaky)
    config = configured(orchestration__reset_seconds=0.01, orchestration__max_reset_seconds=0.02)

    async def scene(own: SLMOrchestrator) -> list[str]:
        seen = []
        for _ in range(6):
            seen.append((await own.run_parallel("x"))["context_tracker"].status)
            await asyncio.sleep(0.05)
        return seen

    assert play(scene, config, factory) == ["unavailable"] * 2 + ["ok"] * 4


def test_repeated_failure_opens_the_circuit_and_it_closes_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    monkeypatch.setattr(health, "CircuitBreaker", partial(CircuitBreaker, clock=clock.monotonic))
    calls = []

    def behave(item: Any) -> Any:
        calls.append(item)
        if len(calls) <= 3:
            raise ValueError("boo")
        return answer("research_classifier", item)

    config = configured(orchestration__failures=3, orchestration__reset_seconds=30)

    async def scene(own: SLMOrchestrator) -> list[str]:
        seen = [(await own.run_parallel("x"))["research_classifier"].status for _ in range(5)]
        clock.now += 30
        seen += [(await own.run_parallel("x"))["research_classifier"].status for _ in range(2)]
        return seen

    module = StandIn("research_classifier", behave)
    seen = play(scene, config, research_classifier=module)
    assert seen == ["error"] * 3 + ["open"] * 2 + ["ok"] * 2
    assert len(calls) == 5


def test_a_wrong_input_is_not_the_modules_fault() -> None:
    wrong = StandIn("context_tracker", raising(DataError("expected a text", field="text")))

    async def scene(own: SLMOrchestrator) -> Any:
        return [(await own.run_parallel("x"))["context_tracker"] for _ in range(6)]

    assert {one.status for one in play(scene, context_tracker=wrong)} == {"error"}


def test_hung_threads_are_counted_and_bounded(go: threading.Event) -> None:
    config = configured(
        modules__context_tracker__timeout=0.02,
        orchestration__max_abandoned=2,
        orchestration__failures=100_000,
        orchestration__reset_seconds=0.001,
        orchestration__max_reset_seconds=0.001,
    )

    async def scene(own: SLMOrchestrator) -> Any:
        async def status() -> str:
            return (await own.run_parallel("x"))["context_tracker"].status

        before = threading.active_count()
        seen = [await status() for _ in range(40)]
        hung = {one.module: one.abandoned for one in own.status()}
        grown = threading.active_count() - before
        go.set()
        # Its threads come back when the machine lets them, and then it answers in time again.
        while await status() != "ok":
            await asyncio.sleep(0.01)
        return seen, hung, grown

    module = StandIn(
        "context_tracker",
        lambda item: answer("context_tracker", item) if go.is_set() else go.wait(),
    )
    with not_hanging(LONG):
        seen, hung, grown = play(scene, config, context_tracker=module)
    assert seen[:2] == ["timeout", "timeout"]
    assert set(seen[2:]) == {"open"}
    assert hung["context_tracker"] == 2
    # Two that hang, and for each of six lanes one at work and perhaps one on its way to the idle.
    assert grown <= 2 + 6 * 2


def test_waiting_behind_other_messages_is_no_failure_of_the_module(go: threading.Event) -> None:
    async def scene(own: SLMOrchestrator) -> Any:
        runs = [own.run_parallel(f"message {n}", ["context_tracker"]) for n in range(6)]
        reports = await asyncio.gather(*runs)
        return [one["context_tracker"].status for one in reports], own.status()

    module = StandIn("context_tracker", lambda _: go.wait())
    config = configured(orchestration__total_timeout=0.2)
    with not_hanging(LONG):
        statuses, modules = play(scene, config, context_tracker=module)
    tracker = next(one for one in modules if one.module == "context_tracker")
    assert set(statuses) == {"timeout"}
    # Only the first one has begun.
    assert (tracker.breaker.state, tracker.breaker.failures) == ("closed", 1)


def test_a_fallback_that_hangs_takes_no_other_modules_place(go: threading.Event) -> None:
    broken = raising(ValueError("broken"))
    tracker = StandIn("context_tracker", broken, lambda _: go.wait())
    rules = StandIn("research_classifier", broken, lambda _: RULE)
    config = configured(orchestration__fallback_timeout=0.02, orchestration__failures=1000)

    async def scene(own: SLMOrchestrator) -> Any:
        for _ in range(4):
            await own.run_parallel("x", ["context_tracker"])
        found = None
        while found is None:
            # On a busy machine even rules may take longer than that.
            found = (await own.run_parallel("x", ["research_classifier"])).result(
                "research_classifier"
            )
        return found

    with not_hanging(LONG):
        assert play(scene, config, context_tracker=tracker, research_classifier=rules) == RULE


def test_cancelling_calls_off_what_has_not_begun(go: threading.Event) -> None:
    drift = StandIn("drift_monitor")
    slow = StandIn("research_classifier", lambda _: go.wait())

    async def scene(own: SLMOrchestrator) -> Any:
        await own.start()
        task = asyncio.create_task(own.run_sequential("x"))
        while not slow.seen:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return own.status()

    status = play(scene, research_classifier=slow, drift_monitor=drift)
    assert drift.seen == []
    assert {one.breaker.state for one in status} == {"closed"}
    assert sum(one.counts.get("ok", 0) for one in status) == 0


def test_many_messages_at_once_all_get_their_own_answers() -> None:
    async def scene(own: SLMOrchestrator) -> Any:
        texts = [f"message {i}" for i in range(60)]
        return texts, await asyncio.gather(*(own.run_parallel(text) for text in texts))

    texts, reports = play(scene)
    assert [r.result("personality_guard").original_response for r in reports] == texts
    assert all(not r.degraded for r in reports)


# The event loop.


def _spin(item: Any) -> Any:
    """Keeps the interpreter busy, as a module of plain Python does."""
    end = time.thread_time() + 0.06
    while time.thread_time() < end:
        sum(range(100))
    return answer("research_classifier", item)


def test_the_event_loop_is_never_held(go: threading.Event) -> None:
    modules = {
        "research_classifier": StandIn("research_classifier", _spin),
        "personality_guard": StandIn("personality_guard", raising(ValueError("boo"))),
        "context_tracker": StandIn("context_tracker", lambda _: go.wait()),
        "drift_monitor": StandIn(
            "drift_monitor", lambda item: time.sleep(0.2) or answer("drift_monitor", item)
        ),
    }
    config = configured(modules__context_tracker__timeout=0.1)

    async def scene(own: SLMOrchestrator) -> float:
        await own.start()
        return await calmest(lambda: own.run_parallel("hello"))

    assert play(scene, config, **modules) < HELD


def test_the_event_loop_turns_while_each_module_works() -> None:
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    def behave(name: str, item: Any) -> Any:
        seen = turns
        until(lambda: turns > seen + 3)
        return answer(name, item)

    async def scene(own: SLMOrchestrator) -> Any:
        turning = asyncio.create_task(turn())
        reports = [await own.run_parallel("x"), await own.run_sequential("x")]
        turning.cancel()
        return reports

    for report in play(scene, **{n: StandIn(n, partial(behave, n)) for n in MODULES}):
        assert {o.error for o in report.values()} == {None}


def test_the_measure_sees_a_loop_that_waits_and_one_that_is_kept() -> None:
    watch = Pauses()

    async def wait() -> None:
        before = watch.ticks
        until(lambda: watch.ticks > before + 50)

    async def keep() -> None:
        await asyncio.to_thread(lambda: sum(range(10_000_000)))

    assert asyncio.run(watch.during(wait())) >= 0.03
    assert asyncio.run(Pauses().during(keep())) >= 0.03


def test_attributes_of_a_module_that_fail_or_wait_are_its_own_fault() -> None:
    class Odd(StandIn):
        @property
        def version(self) -> str:  # type: ignore[override]
            raise SLMError("the version cannot be read")

    async def scene(own: SLMOrchestrator) -> Any:
        return await own.run_parallel("x"), own.status()

    report, _ = play(scene, context_tracker=Odd("context_tracker"))
    assert report["context_tracker"].status in ("error", "unavailable")
    assert "the version cannot be read" in report["context_tracker"].error
    assert report["research_classifier"].ok
