"""What counts as an answer, and what outcomes look like as JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from slm_stand_ins import answer

from mlx_companion.slm.module import MODULES
from mlx_companion.slm.outcomes import ModuleOutcome, NonsenseError, RunReport, checked
from mlx_companion.slm.results import GuardResult, ModuleResult, ResearchResult


@pytest.mark.parametrize("name", MODULES)
def test_good_answers_pass(name: str) -> None:
    result = answer(name, "hello")
    assert checked(name, result) is result


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("wrong", [None, "yes", {"needs_research": True}, 3, ResearchResult])
def test_other_things_are_no_answers(name: str, wrong: Any) -> None:
    with pytest.raises(NonsenseError, match=f"{name} answered with a"):
        checked(name, wrong)


def test_another_modules_answer_is_none() -> None:
    with pytest.raises(NonsenseError, match="not GuardResult"):
        checked("personality_guard", answer("drift_monitor", "x"))


GOOD = ResearchResult(True, 0.9, "why", "news")


@pytest.mark.parametrize(
    "change",
    [
        {"confidence": float("nan")},
        {"confidence": float("inf")},
        {"confidence": 1.01},
        {"confidence": -0.01},
        {"confidence": "high"},
        {"confidence": None},
        {"needs_research": "yes"},
        {"needs_research": None},
        {"needs_research": []},
        {"reasoning": None},
        {"reasoning": 7},
        {"category": ["news"]},
        {"factors": [1]},
        {"factors": {"live": float("nan")}},
        {"factors": {"live": object()}},
    ],
)
def test_fields_that_make_no_sense(change: dict[str, Any]) -> None:
    with pytest.raises(NonsenseError, match="research_classifier answered with"):
        checked("research_classifier", replace(GOOD, **change))


@pytest.mark.parametrize(
    ("name", "field", "item"),
    [
        ("personality_guard", "violations_detected", 7),
        ("personality_guard", "changes_made", "removed"),
        ("personality_guard", "spans", None),
        ("context_tracker", "slang_detected", "yeet"),
        ("context_tracker", "updates", {"key": "person.name", "value": "Max"}),
        ("drift_monitor", "examples", None),
    ],
)
def test_lists_with_what_does_not_belong_there(name: str, field: str, item: Any) -> None:
    wrong = replace(answer(name, "hello"), **{field: [item]})
    with pytest.raises(NonsenseError, match=rf"{field} is a list with .* in it"):
        checked(name, wrong)


def test_numbers_of_numpy_are_numbers() -> None:
    checked(
        "research_classifier",
        replace(GOOD, confidence=np.float32(0.5), needs_research=np.bool_(True)),
    )


@given(st.floats())
def test_shares_are_from_0_to_1(value: float) -> None:
    try:
        checked("research_classifier", replace(GOOD, confidence=value))
    except NonsenseError:
        assert not 0 <= value <= 1
    else:
        assert 0 <= value <= 1


def test_a_guard_that_leaves_nothing_of_a_reply_talks_nonsense() -> None:
    with pytest.raises(NonsenseError, match="nothing is left"):
        checked("personality_guard", GuardResult("Good morning.", [], " ", [], 0.9))
    checked("personality_guard", GuardResult("", [], "", [], 0.9))


def test_a_module_of_your_own_may_answer_with_any_result() -> None:
    checked("mine", ModuleResult())


def test_a_report_is_a_mapping_and_json() -> None:
    good = ModuleOutcome("research_classifier", "ok", GOOD, None, 0.01, None, "1")
    late = ModuleOutcome("context_tracker", "timeout", None, "too late", 0.6)
    off = ModuleOutcome("drift_monitor", "skipped", None, "switched off")
    report = RunReport({one.module: one for one in (good, late, off)}, 0.61)
    assert list(report) == ["research_classifier", "context_tracker", "drift_monitor"]
    assert report["context_tracker"] is late
    assert report.result("research_classifier") is GOOD
    assert report.result("context_tracker") is None
    assert report.result("personality_guard") is None
    assert report.degraded == ("context_tracker",)
    plain = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert plain["outcomes"]["research_classifier"]["result"]["category"] == "news"
    assert plain["outcomes"]["drift_monitor"]["error"] == "switched off"
