"""A round's report on the terminal: the right figures, in plain words, within 80 columns."""

from __future__ import annotations

import io
import json
import math
import re
from typing import Any

import pytest
from rich.console import Console

from mlx_companion.loop.round_view import outcome_sentence, print_round, result_line


def sample(**changes: Any) -> dict[str, Any]:
    """A small report, in the form that a round writes."""
    report: dict[str, Any] = {
        "round": 2, "outcome": "deploy", "deployed": True, "mode": "auto", "scale": 1.0,
        "base_version": "v0001", "candidate": "v0002", "version": "v0002",
        "reasons": ["Both judges see a gain."], "items": 160,
        "before": 0.1875, "after": 0.70625, "p": 3.2e-19, "alpha": 0.03,
        "p_likelihood": 0.004, "likelihood_before": 0.2, "likelihood_after": 0.65,
        "detectable_effect": 0.106, "distinct_before": 158, "distinct_after": 160,
        "relevance_before": 0.551, "relevance_after": 0.602,
        "perplexity_before": 20.1, "perplexity_after": 20.9, "divergence": 0.081,
        "seconds": 812.0, "peak_mb": 2900.0, "report": "/x/report.html",
        "margins": [
            {"name": "relevance", "value": -0.011, "limit": -0.03, "passed": True, "text": "t"},
            {"name": "variety", "value": 0.0127, "limit": -0.1, "passed": True, "text": "t"},
            {"name": "perplexity", "value": 0.1398, "limit": 0.1, "passed": False, "text": "t"},
        ],
        "rules": [
            {"rule": "max_words", "before": 0.4, "after": 0.98},
            {"rule": "no_lists", "before": 0.95, "after": 0.93},
            {"rule": "no_emoji", "before": 0.99, "after": 0.9951},
            {"rule": "readable", "before": 0.5, "after": None},
        ],
        "gate": [
            pair("bread", "cooking", False, True), pair("rice", "cooking", False, True),
            pair("maps", "travel", False, True), pair("stars", "science", False, True),
            pair("songs", "music", True, False),
        ],
    }  # fmt: skip
    return report | changes


def pair(about: str, topic: str, before: bool, after: bool) -> dict[str, Any]:
    return {
        "prompt_id": about, "topic": topic, "prompt": f"Tell me of {about}.",
        "before": f"Old reply on {about}! " * 8, "after": f"New reply on {about}.",
        "before_good": before, "after_good": after,
        "before_reason": None if before else "style: no_exclamation: 8 of them",
        "after_reason": None if after else "relevance: 0.1",
    }  # fmt: skip


def printed(report: dict[str, Any], width: int = 80, encoding: str = "utf-8") -> list[str]:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, errors="replace", write_through=True)
    print_round(Console(file=file, width=width, force_terminal=False), report)
    text = raw.getvalue().decode(encoding).replace("\N{NO-BREAK SPACE}", " ")
    return [line.rstrip() for line in text.splitlines()]


def row(lines: list[str], name: str) -> list[str]:
    """The cells of the table row that begins with `name`."""
    found = [line for line in lines if line.startswith(name + " ")]
    assert len(found) == 1, f"{name} in {lines}"
    return re.split(r"\s{2,}", found[0])


def test_the_headline_holds_every_figure_and_its_limit() -> None:
    lines = printed(sample())
    assert row(lines, "good replies")[:4] == ["good replies", "19 %", "71 %", "+52"]
    assert row(lines, "good replies")[4] == "p = 3.2 × 10⁻¹⁹ (limit 0.03)"
    assert row(lines, "good, second judge")[1:] == ["20 %", "65 %", "+45", "p = 0.004"]
    assert row(lines, "distinct replies")[1:] == ["158", "160", "+2", "✓ +1 % (limit −10 %)"]
    assert row(lines, "relevance")[1:] == [
        "0.55",
        "0.60",
        "+0.05",
        "✓ at worst −0.01 (limit −0.03)",
    ]
    assert row(lines, "perplexity")[1:] == ["20.10", "20.90", "+0.80", "✗ +14 % (limit +10 %)"]
    assert row(lines, "divergence from base")[1:] == ["0.08"]


def test_only_rules_that_changed_are_listed_the_best_first() -> None:
    lines = printed(sample())
    start = next(i for i, line in enumerate(lines) if line.startswith("rule "))
    assert [re.split(r"\s{2,}", line) for line in lines[start + 1 : start + 3]] == [
        ["max words", "40 %", "98 %", "+58"],
        ["no lists", "95 %", "93 %", "−2"],
    ]
    assert lines[start + 3] == ""
    assert not any("no emoji" in line or "readable" in line for line in lines)


def test_three_examples_of_different_topics_and_one_that_got_worse() -> None:
    prompts = [line[2:] for line in printed(sample()) if line.startswith("> ")]
    assert prompts == ["Tell me of bread.", "Tell me of maps.", "Tell me of songs."]
    text = "\n".join(printed(sample()))
    assert "✗ Old reply on bread!" in text
    assert "✓ New reply on bread." in text
    assert "(style: no_exclamation" in text
    assert "✗ New reply on songs." in text


def test_replies_that_did_not_change_are_shown_when_there_are_no_others() -> None:
    same = pair("tea", "cooking", True, True)
    lines = printed(sample(gate=[same | {"after": same["before"]}]))
    assert [line for line in lines if line.startswith("> ")] == ["> Tell me of tea."]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_line_is_wider_than_the_console(width: int) -> None:
    long = pair("a very long matter " * 20, "x", False, True)
    lines = printed(sample(gate=[long], reasons=["because " * 40]), width=width)
    assert max(map(len, lines)) <= width


def test_an_old_terminal_gets_marks_it_can_write() -> None:
    text = "\n".join(printed(sample(), encoding="ascii"))
    assert "ok New reply on bread." in text
    assert "x Old reply on bread!" in text


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "Deployed: v0002 is now the active version."),
        ({"scale": 0.5}, "Deployed: v0002 is now the active version at 50 % strength."),
        (
            {"deployed": False, "mode": "review"},
            "Passed, and waits for you: mlx-companion promote v0002; "
            "until then v0001 stays active.",
        ),
        (
            {"deployed": False, "mode": "dry-run"},
            "Passed; this was a dry run, so nothing was changed and v0001 stays active.",
        ),
        (
            {"outcome": "reject", "deployed": False},
            "Rejected: the new version does harm, so v0001 stays active.",
        ),
        (
            {"outcome": "inconclusive", "deployed": False},
            "Inconclusive: neither gain nor harm is shown, so v0001 stays active.",
        ),
    ],
)
def test_the_outcome_is_told_in_plain_words(changes: dict[str, Any], expected: str) -> None:
    report = sample(**changes)
    assert outcome_sentence(report).replace("\N{NO-BREAK SPACE}", " ") == expected
    lines = " ".join(printed(report, width=200))
    assert expected in lines
    assert "- Both judges see a gain." in lines


def test_without_reasons_the_detectable_gain_is_told() -> None:
    unclear = sample(outcome="inconclusive", deployed=False, reasons=[])
    assert outcome_sentence(unclear).endswith(
        " A gain of 11 points or more would have been found (power 80 %)."
    )


def test_no_change_is_written_as_such() -> None:
    assert row(printed(sample(distinct_after=158)), "distinct replies")[3] == "±0"


def test_a_round_without_a_candidate_has_a_heading() -> None:
    assert "Round 2: v0001 against what was trained on it" in printed(sample(candidate=None))


def test_a_report_may_lack_anything() -> None:
    for name in sample():
        report = sample()
        del report[name]
        assert printed(report)
    assert printed({})
    assert printed(sample(before=math.nan, p=math.nan, margins=[{}], rules=[{}], gate=[{}]))


def test_the_result_line_is_one_line_of_strict_json() -> None:
    line = result_line(sample(p=math.nan, reasons=["left out"]))
    assert "\n" not in line
    found = json.loads(line, parse_constant=lambda name: pytest.fail(name))
    assert found["p"] is None
    assert {name: found[name] for name in ("deployed", "before", "version", "peak_mb")} == {
        "deployed": True, "before": 0.1875, "version": "v0002", "peak_mb": 2900.0
    }  # fmt: skip
    assert {
        "deployed", "before", "after", "distinct_before", "distinct_after", "p",
        "relevance_before", "relevance_after", "perplexity_before", "perplexity_after",
        "seconds", "peak_mb", "report", "version", "outcome", "round", "scale",
    } == set(found)  # fmt: skip
