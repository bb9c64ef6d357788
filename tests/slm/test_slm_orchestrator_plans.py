"""The orchestrator over stand-ins: loading, plans, what is skipped, and its view of itself."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from typing import Any

import pytest
from patience import LONG, Clock, not_hanging
from slm_stand_ins import StandIn, answer, configured, factory_of, play, raising

from mlx_companion.slm import loading, orchestrator, runs
from mlx_companion.slm.module import MODULES
from mlx_companion.slm.orchestrator import SLMOrchestrator

# Loading.


def test_a_message_does_not_wait_for_loading_unless_told_to() -> None:
    go = threading.Event()

    def slow() -> StandIn:
        go.wait()
        return StandIn("context_tracker")

    async def scene(own: SLMOrchestrator) -> Any:
        own.factory.register_module("context_tracker", slow)
        first = await own.run_parallel("x")
        states = {one.module: one.state for one in own.status()}
        go.set()
        seen = {"loading"}
        while "ok" not in seen:
            seen.add((await own.run_parallel("x"))["context_tracker"].status)
        return first, states, seen

    with not_hanging(LONG):
        first, states, seen = play(scene, configured(orchestration__load_timeout=0.01))
    assert first["context_tracker"].status == "loading"
    assert states["context_tracker"] == "loading"
    assert seen == {"loading", "ok"}


def test_loading_does_not_count_as_time_of_the_message(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    for module in (orchestrator, loading, runs):
        monkeypatch.setattr(module, "time", clock)
    config = configured(orchestration__load_timeout=LONG)

    def slow() -> StandIn:
        clock.now += 2 * config.orchestration.total_timeout
        return StandIn("context_tracker")

    async def scene(own: SLMOrchestrator) -> Any:
        own.factory.register_module("context_tracker", slow)
        return await own.run_parallel("x")

    report = play(scene, config)
    assert report["context_tracker"].status == "ok"
    assert report.load_seconds == report.seconds == 2 * config.orchestration.total_timeout


def test_start_loads_and_says_what_is_wrong() -> None:
    factory = factory_of()
    factory.register_module("drift_monitor", lambda: 1 / 0)

    async def scene(own: SLMOrchestrator) -> Any:
        return await own.start(), own.get_execution_plan()

    failures, plan = play(scene, factory=factory)
    assert failures == {"drift_monitor": "ZeroDivisionError: division by zero"}
    assert [step.module for step in plan.steps] == list(MODULES[:3])
    assert all(step.loaded for step in plan.steps)


# Plans.


def test_the_plan_says_what_runs() -> None:
    config = configured(
        orchestration__max_parallel=2,
        modules__context_tracker__enabled=False,
        modules__drift_monitor__batch_size=4,
        modules__research_classifier__timeout=1,
    )
    plan = play(_plan, config)
    assert plan.groups == (("research_classifier", "personality_guard"), ("drift_monitor",))
    assert [one.module for one in plan.skipped] == ["context_tracker"]
    assert plan.steps[0].fallback == "keyword rule"
    assert plan.steps[2].fallback is None
    assert plan.steps[2].batch_size == 4
    assert plan.expected_ms <= 50 + 20 + 100
    assert json.loads(json.dumps(plan.to_dict()))["groups"][1] == ["drift_monitor"]
    text = plan.text()
    assert "context_tracker: switched off" in text
    assert "research_classifier: 50 ms, at most 1 s, loads first, else keyword rule" in text


async def _plan(own: SLMOrchestrator) -> Any:
    return own.get_execution_plan()


def test_a_plan_in_turn_has_a_group_for_each_and_adds_up() -> None:
    async def scene(own: SLMOrchestrator) -> Any:
        return own.get_execution_plan(["drift_monitor", "personality_guard"], "sequential")

    plan = play(scene)
    assert plan.groups == (("drift_monitor",), ("personality_guard",))
    assert plan.expected_ms == 120


def test_planning_starts_nothing_and_counts_nothing() -> None:
    module = StandIn("drift_monitor")

    async def scene(own: SLMOrchestrator) -> Any:
        for _ in range(5):
            own.get_execution_plan()
        return (await own.run_parallel("x"))["drift_monitor"].status

    config = configured(modules__drift_monitor__frequency=3)
    assert play(scene, config, drift_monitor=module) == "ok"
    assert len(module.seen) == 1


def test_frequency_runs_a_module_on_every_nth_message() -> None:
    async def scene(own: SLMOrchestrator) -> Any:
        return [(await own.run_parallel("x"))["drift_monitor"] for _ in range(7)]

    outcomes = play(scene, configured(modules__drift_monitor__frequency=3))
    assert [one.status for one in outcomes] == ["ok", "skipped", "skipped"] * 2 + ["ok"]
    assert outcomes[1].error == "runs on one message in 3"


def test_modules_that_share_a_backbone_share_its_pass() -> None:
    class Backbone:
        name = "tiny"

    modules = {name: StandIn(name) for name in MODULES}
    for name in ("research_classifier", "drift_monitor"):
        modules[name].backbone = Backbone()  # type: ignore[attr-defined]

    async def scene(own: SLMOrchestrator) -> Any:
        await own.start()
        return own.get_execution_plan()

    plan = play(scene, **modules)
    assert plan.shared_passes == {"tiny": ("research_classifier", "drift_monitor")}
    assert "one pass of tiny for research_classifier, drift_monitor" in plan.text()


def test_pressure_skips_what_can_wait_and_is_in_the_plan() -> None:
    config = configured(resources__memory_ceiling_mb=1.0, resources__adaptive=True)

    async def scene(own: SLMOrchestrator) -> Any:
        await own.start()
        # The look at the machine is waited for only briefly.
        while own.get_execution_plan().pressure is None:
            await asyncio.sleep(0.001)
        return own.get_execution_plan(), await own.run_parallel("x")

    plan, report = play(scene, config)
    assert {one.module for one in plan.skipped} == {"context_tracker", "drift_monitor"}
    assert plan.scale < 0.3
    assert "over the ceiling" in plan.pressure
    assert [o.status for o in report.values()] == ["ok", "ok", "skipped", "skipped"]
    assert report.degraded == ()


def test_expected_cost_is_learned() -> None:
    def slow(item: Any) -> Any:
        time.sleep(0.03)
        return answer("personality_guard", item)

    async def scene(own: SLMOrchestrator) -> Any:
        for _ in range(3):
            await own.run_parallel("x")
        return own.get_execution_plan()

    plan = play(scene, personality_guard=StandIn("personality_guard", slow))
    assert {s.module: s.expected_ms for s in plan.steps}["personality_guard"] >= 30


def test_status_shows_latencies_and_counts() -> None:
    broken = StandIn("context_tracker", raising(ValueError("boo")))

    async def scene(own: SLMOrchestrator) -> Any:
        for _ in range(2):
            await own.run_parallel("x")
        return {one.module: one for one in own.status()}

    status = play(scene, configured(modules__drift_monitor__enabled=False), context_tracker=broken)
    assert status["research_classifier"].counts == {"ok": 2}
    assert status["research_classifier"].median_ms > 0
    assert status["context_tracker"].counts == {"error": 2}
    assert status["context_tracker"].median_ms is None
    assert status["context_tracker"].last.error == "ValueError: boo"
    assert status["drift_monitor"].state == "off"
    json.dumps([one.to_dict() for one in status.values()], allow_nan=False)
