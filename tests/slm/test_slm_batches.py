"""Files of JSON lines: what a module answers is checked before it is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from slm_stand_ins import StandIn, answer

from mlx_companion.errors import DataError
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


@pytest.mark.parametrize(
    ("held", "told"),
    [
        ("NaN", "it is NaN or beyond"),
        ("-Infinity", "it is NaN or beyond"),
        ("1e400", "it is NaN or beyond"),
        ('[1, {"deep": [2, -1e999]}]', "it holds NaN or beyond"),
    ],
)
def test_a_number_that_json_has_not_is_refused_with_its_place(
    tmp_path: Path, held: str, told: str
) -> None:
    module = StandIn("research_classifier")
    (tmp_path / "in.jsonl").write_text(f'{{"query": "a"}}\n{{"query": "b", "extra": {held}}}\n')
    with pytest.raises(DataError, match=rf"in\.jsonl:2: field 'extra': {told}"):
        run_file(module, tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_large_and_deep_values_come_out_as_they_went_in(tmp_path: Path) -> None:
    deep: Any = 1.7976931348623157e308
    for _ in range(300):
        deep = [deep]
    row = {"query": "a", "deep": deep, "whole": 10**400, "small": 5e-324}
    (tmp_path / "in.jsonl").write_text(json.dumps(row) + "\n")
    run_file(StandIn("research_classifier"), tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    made = json.loads((tmp_path / "out.jsonl").read_text(), parse_constant=pytest.fail)
    del made["result"]
    assert made == row
