"""The figures of benchmarks/slm_accuracy.py: known values, and modules that are always right."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from scipy import stats

from benchmarks import slm_gold, slm_scores
from benchmarks.slm_accuracy import reliability
from mlx_companion.slm.results import ContextResult, DriftResult, GuardResult, ResearchResult


@pytest.mark.parametrize(("count", "total"), [(0, 7), (8, 10), (81, 263), (12, 12)])
def test_wilson_is_scipys(count: int, total: int) -> None:
    expected = stats.binomtest(count, total).proportion_ci(method="wilson")
    found = slm_scores.share(count, total)
    assert found["low"] == pytest.approx(expected.low, abs=1e-6)
    assert found["high"] == pytest.approx(expected.high, abs=1e-6)


def test_rates_of_a_table_worked_by_hand() -> None:
    gold = [True] * 6 + [False] * 4
    said = [True, True, True, False, False, False, True, False, False, False]
    rates = slm_scores.binary(gold, said)
    values = {name: rate["value"] for name, rate in rates.items()}
    expected = {
        "accuracy": 0.6,
        "precision": 0.75,
        "recall": 0.5,
        "f1": 0.6,
        "false_positives": 0.25,
    }
    assert values == pytest.approx(expected)
    assert rates["f1"]["low"] < 0.6 < rates["f1"]["high"]


def test_counts_of_things_in_texts() -> None:
    found = slm_scores.counts([slm_scores.Found(1, 2, 1, 1), slm_scores.Found(0, 0, 0, 1)])
    assert (found["precision"]["value"], found["recall"]["value"]) == (0.5, 0.5)


def test_calibration_error_of_two_bins() -> None:
    found = slm_scores.calibration([True, False, True, True], [0.25, 0.25, 0.95, 0.95])
    assert found["calibration_error"] == pytest.approx(0.5 * 0.25 + 0.5 * 0.05)
    assert [one["rows"] for one in found["reliability"]] == [2, 2]


def test_sets_are_pooled_as_if_they_were_one() -> None:
    rng = np.random.default_rng(5)
    chance = rng.random(90)
    gold = rng.random(90) < chance
    parts = [slm_scores.calibration(gold[i:j], chance[i:j]) for i, j in ((0, 20), (20, 90))]
    found, expected = slm_scores.pooled(parts), slm_scores.calibration(gold, chance)
    assert found["calibration_error"] == pytest.approx(expected["calibration_error"])
    for one, other in zip(found["reliability"], expected["reliability"], strict=True):
        assert one == pytest.approx(other)


def test_the_surest_leave_the_even_ones_out() -> None:
    chance = [0.99] * 17 + [0.45] * 3
    found = slm_scores.surest([True] * 20, chance)
    assert found["accuracy"]["value"] == 1.0
    assert found["accuracy"]["of"] == 17


def test_concordance_is_the_area_under_the_curve() -> None:
    rng = np.random.default_rng(3)
    gold, value = rng.integers(0, 2, 60), rng.integers(0, 9, 60).astype(float)
    wins = stats.mannwhitneyu(value[gold == 1], value[gold == 0]).statistic
    area = wins / ((gold == 1).sum() * (gold == 0).sum())
    assert slm_scores.concordance(gold.tolist(), value.tolist()) == pytest.approx(area)


def gold_of(name: str) -> list[dict[str, Any]]:
    names = [name, *(f"{name}_{later}" for later in slm_gold.LATER[name])]
    return [row for one in names for row in slm_gold.rows(one)]


def research_oracle(items: Sequence[Any]) -> list[Any]:
    need = {row["query"]: row["needs_research"] for row in gold_of("queries")}
    return [ResearchResult(need[item], 0.97, "known", "any") for item in items]


def guard_oracle(items: Sequence[Any]) -> list[Any]:
    gold = {row["text"]: row for row in gold_of("responses")}
    for row in slm_gold.rows("tone"):
        cheer = [{"violation": slm_gold.TONE, "text": row["text"]}] if row["cheer"] else []
        gold[row["text"]] = {"violations": [slm_gold.TONE] if cheer else [], "spans": cheer}
    results = []
    for item in items:
        row = gold.get(item["text"], {"violations": [], "spans": []})
        spans = [
            {
                "violation": span["violation"],
                "start": item["text"].index(span["text"]),
                "end": item["text"].index(span["text"]) + len(span["text"]),
                "text": span["text"],
            }
            for span in row["spans"]
        ]
        after = item["text"]
        for span in row["spans"]:
            after = after.replace(span["text"], "")
        results.append(GuardResult(item["text"], row["violations"], after, [], 1.0, spans))
    return results


def tracker_oracle(items: Sequence[Any]) -> list[Any]:
    gold = {row["text"]: row for row in gold_of("messages")}
    depth = {"low": 0.1, "medium": 0.5, "high": 0.9}
    results = []
    for row in (gold[item] for item in items):
        terms = [one["term"].upper() for one in row["slang"]]
        slang = [{"term": term, "sense": "", "confidence": 1.0} for term in terms]
        formal = float(row["formality"] == "formal")
        deep = depth[row.get("technical", "low")]
        results.append(ContextResult(slang, {}, {}, formal, deep))
    return results


@cache
def drift_labels() -> tuple[dict[str, Any], dict[str, float]]:
    histories = {json.dumps(row["responses"]): row for row in slm_gold.rows("histories")}
    attached = {row["text"]: float(row["attachment"]) for row in gold_of("attachment")}
    return histories, attached


def drift_oracle(items: Sequence[Any]) -> list[Any]:
    histories, attached = drift_labels()
    results = []
    for item in items:
        row = histories.get(json.dumps(item.get("responses")), {"drift": False, "drift_type": None})
        text = item.get("text") or item["responses"][0]
        value = attached.get(text, 0.0)
        results.append(
            DriftResult(row["drift"], row["drift_type"], 0.0, [], "", False, value, value)
        )
    return results


ORACLES: dict[str, Callable[[Sequence[Any]], list[Any]]] = {
    "research_classifier": research_oracle,
    "personality_guard": guard_oracle,
    "context_tracker": tracker_oracle,
    "drift_monitor": drift_oracle,
}


@pytest.mark.parametrize("name", ORACLES)
def test_a_module_that_is_always_right_has_no_errors(name: str) -> None:
    figures = slm_gold.MEASURES[name](ORACLES[name])
    rates = [figure for figure in figures.values() if isinstance(figure, dict) and "f1" in figure]
    assert rates
    for figure in rates:
        assert figure["precision"]["value"] == figure["recall"]["value"] == 1.0
        assert figure.get("false_positives", {"value": 0.0})["value"] == 0.0


def test_a_module_that_always_says_no_finds_nothing() -> None:
    def never(items: Sequence[Any]) -> list[Any]:
        return [DriftResult(False, None, 0.0, [], "", False) for _ in items]

    figures = slm_gold.drift(never)
    assert figures["drift"]["recall"]["value"] == 0.0
    assert figures["drift"]["precision"]["value"] is None
    assert figures["tone found"]["value"] == 0.0


def test_what_rewriting_must_keep() -> None:
    text = "Run `a*b` 3 times, see https://example.org/1 and\n```\nx = 1\n```"
    assert slm_gold.fixed_parts(text) == ["`a*b`", "3", "https://example.org/1", "```\nx = 1\n```"]


def test_the_plot_is_a_picture_with_each_series_named() -> None:
    modules = {"research_classifier": slm_gold.research(research_oracle)}
    drawn = ET.fromstring(reliability(modules))
    words = " ".join(element.text or "" for element in drawn.iter())
    assert "research need" in words
    assert "user attached" not in words
