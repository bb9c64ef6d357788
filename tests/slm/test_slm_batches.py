"""Files of JSON lines: what a module answers is checked before it is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from slm_stand_ins import StandIn, answer

from mlx_companion.slm.batches import run_file
from mlx_companion.slm.results import ResearchResult

RULE = ResearchResult(False, 0.6, "no keyword", "rule")


def run(folder: Path, module: StandIn) -> tuple[Any, list[dict[str, Any]]]:
    (folder / "in.jsonl").write_text('{"query": "good"}\n{"query": "bad"}\n')
    done = run_file(module, folder / "in.jsonl", folder / "out.jsonl")
    lines = (folder / "out.jsonl").read_text().splitlines()
    return done, [json.loads(line, parse_constant=pytest.fail) for line in lines]


@pytest.mark.parametrize(
    "nonsense",
    [
        ResearchResult(True, float("nan"), "", "x"),
        ResearchResult(True, 0.9, object(), "x"),  # type: ignore[arg-type]
        answer("drift_monitor", "x"),
        {"needs_research": True},
        None,
    ],
)
def test_nonsense_is_answered_by_the_fallback(tmp_path: Path, nonsense: Any) -> None:
    def behave(item: str) -> Any:
        return nonsense if item == "bad" else answer("research_classifier", item)

    done, rows = run(tmp_path, StandIn("research_classifier", behave, lambda _: RULE))
    assert (done.rows, done.fallbacks, done.failed) == (2, 1, 0)
    assert rows[0]["result"]["category"] == "weather"
    assert rows[1]["result"] == RULE.to_dict()
    assert "research_classifier answered with" in rows[1]["error"]


def test_a_fallback_that_talks_nonsense_is_none(tmp_path: Path) -> None:
    nonsense = ResearchResult(True, float("inf"), "", "x")
    module = StandIn("research_classifier", lambda _: nonsense, lambda _: nonsense)
    done, rows = run(tmp_path, module)
    assert (done.fallbacks, done.failed) == (0, 2)
    assert [row["result"] for row in rows] == [None, None]
