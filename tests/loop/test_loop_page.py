"""What the report page says: headline, figures, tables and replies; and how it looks."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any
from xml.etree.ElementTree import Element

import pytest
from markup_reading import parse_page, said, styled_any
from report_sample import diverged_report, rejected_report, sample_report

from mlx_companion.loop.page import style
from mlx_companion.loop.page.replies import SHOWN, choose
from mlx_companion.loop.report import render


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return sample_report()


@pytest.fixture(scope="module")
def page(report: dict[str, Any]) -> Element:
    return parse_page(render(report))


def body(root: Element) -> str:
    return said(root[1])


def percent(share: float) -> str:
    return f"{round(100 * share)} %"


def test_the_headline_says_what_happened(report: dict[str, Any], page: Element) -> None:
    title = said(page.findall(".//h1")[0])
    before, after = percent(report["before"]), percent(report["after"])
    assert title == f"Round 1: {before} → {after} good replies. v0002 was deployed."
    assert said(page.findall("head/title")[0]) == f"Round 1: {before} → {after} good replies."


@pytest.mark.parametrize(
    ("change", "badge", "sentence"),
    [
        ({}, "Deployed", "v0002 was deployed."),
        ({"deployed": False, "mode": "review", "version": "v0001"}, "Waiting for approval",
         "v0002 passed and waits for your approval."),
        ({"deployed": False, "mode": "dry-run", "version": "v0001", "candidate": None},
         "Dry run: passed", "The candidate would have been deployed; v0001 stays."),
        ({"deployed": False, "outcome": "reject", "version": "v0001"}, "Rejected",
         "v0002 was rejected; v0001 stays."),
        ({"deployed": False, "outcome": "inconclusive", "version": "v0001"}, "Inconclusive",
         "No clear gain, so v0001 stays."),
        ({"deployed": False, "outcome": None, "version": None, "base_version": None},
         "No outcome", "No clear gain, so the old version stays."),
    ],
)  # fmt: skip
def test_each_outcome_has_its_words(change: dict[str, Any], badge: str, sentence: str) -> None:
    root = parse_page(render(sample_report(items=4) | change))
    assert said(styled_any(root, "badge")[0]) == badge
    assert said(root.findall(".//h1/span")[0]) == sentence


def test_only_a_waiting_version_asks_to_be_promoted() -> None:
    command = "mlx-companion promote v0002"
    waiting = {"deployed": False, "mode": "review"}
    assert command in body(parse_page(render(sample_report(items=4) | waiting)))
    for change in ({}, {"deployed": False}, waiting | {"outcome": "reject"}):
        assert command not in body(parse_page(render(sample_report(items=4) | change)))


def tiles(root: Element) -> dict[str, str]:
    return {said(tile[0]): said(tile) for tile in styled_any(root, "tile")}


def test_key_figures_hold_values_limits_and_verdicts(page: Element) -> None:
    found = tiles(page)
    assert list(found) == [
        "Good replies", "Good replies, second judge", "Distinct replies", "Relevance",
        "Perplexity of general text", "Divergence from the base",
    ]  # fmt: skip
    assert "p = 3.1 × 10⁻²⁰, limit 0.0034" in found["Good replies"]
    assert "62 % → 81 %" in found["Good replies, second judge"]
    assert "158 → 160" in found["Distinct replies"]
    assert "0.55 → 0.60" in found["Relevance"]
    assert "+0.021, limit −0.030" in found["Relevance"]
    assert "20.1 → 20.9" in found["Perplexity of general text"]
    assert "+4 %, limit +10 %" in found["Perplexity of general text"]
    assert "0.083, limit 0.500" in found["Divergence from the base"]
    assert all("✓ passed" in text for text in found.values())


def test_a_broken_margin_is_marked() -> None:
    root = parse_page(render(rejected_report()))
    broken = [said(tile[0]) for tile in styled_any(root, "failed")]
    assert broken == ["Good replies", "Perplexity of general text"]
    assert "+48 %, limit +10 %" in tiles(root)["Perplexity of general text"]


def test_the_limit_itself_is_not_enough() -> None:
    root = parse_page(render({"p": 0.03, "alpha": 0.03, "before": 0.1, "after": 0.3}))
    assert "✗ failed" in tiles(root)["Good replies"]


def test_a_margin_of_its_own_gets_a_tile() -> None:
    margin = {"name": "bite_rate", "value": 2, "limit": 1, "passed": False, "text": "bites per day"}
    found = tiles(parse_page(render({"margins": [margin]})))
    assert found["Bite rate"] == "Bite rate2.000Bites per day: 2.000, limit 1.000✗ failed"


def table_rows(root: Element, name: str) -> list[list[str]]:
    (section,) = [s for s in root.iter("section") if s.get("id") == name]
    return [[said(cell) for cell in row] for row in section.iter("tr")]


def test_rules_kept_by_all_are_told_in_a_sentence(report: dict[str, Any], page: Element) -> None:
    names = [row[0] for row in table_rows(page, "rules")]
    always = {r["rule"] for r in report["rules"] if r["before"] == r["after"] == 1}
    assert len(always) == 2
    for rule in report["rules"]:
        words = rule["rule"].replace("_", " ")
        assert (words in names) != (rule["rule"] in always)
        assert words in body(page)
    ups = sum(r["after"] > r["before"] for r in report["rules"])
    assert f"{ups} rules are kept more often, 1 rule less often." in body(page)


def test_topics_and_judges_are_listed(report: dict[str, Any], page: Element) -> None:
    rows = {row[0].split(" ")[0]: row[2:4] for row in table_rows(page, "topics")}
    for topic in report["topics"]:
        before, after = rows[topic["topic"]]
        assert [before, after] == [percent(topic["before"]), percent(topic["after"])]
    judges = {row[0]: row for row in table_rows(page, "rules")}
    assert judges["likelihood"][2:] == ["62 %", "81 %", "+19"]


def test_the_chosen_scale_is_marked(page: Element) -> None:
    rows = table_rows(page, "decision")
    assert ["1.00", "74 %", "8.0 × 10⁻²²", "0.03", "harm: perplexity"] in rows
    (chosen,) = styled_any(page, "chosen")
    assert said(chosen[0]) == "0.75"
    assert ["relevance", "0.31", "95 %", "97 %", "0.99", "120"] in rows
    assert styled_any(parse_page(render(rejected_report())), "chosen") == []


def test_data_flow_and_record(report: dict[str, Any], page: Element) -> None:
    flow = [said(step) for step in styled_any(page, "flow")[0]]
    assert flow == [
        "260training prompts", "1,040replies generated", "312replies accepted30 % of them",
        "408training rows80 % of them generated",
    ]  # fmt: skip
    making = table_rows(page, "making")
    assert ["style: max words", "", "287"] in making
    assert ["train", "", "4 min 29 s"] in table_rows(page, "record")
    assert ["generate.temperature", "0.8"] in table_rows(page, "record")
    assert "10 min 55 s in all, at most 2.9 GB." in body(page)
    assert "51.5 GB" in body(page)


def test_many_reasons_are_summed_up() -> None:
    dropped = [[f"reason {i}", 100 - i] for i in range(20)]
    rows = table_rows(parse_page(render({"data": {"dropped": dropped}})), "making")
    assert rows[-1] == ["8 other reasons", "", str(sum(100 - i for i in range(12, 20)))]


def test_a_lost_loss_is_told() -> None:
    assert "Not a number: 3 values, marked ×." in body(parse_page(render(diverged_report())))


def test_every_gate_reply_is_there_and_can_be_filtered(
    report: dict[str, Any], page: Element
) -> None:
    (every,) = styled_any(page, "replies")
    kinds = Counter(card.get("class", "").split()[1] for card in every)
    truth = Counter((row["before_good"], row["after_good"]) for row in report["gate"])
    assert kinds == {
        "improved": truth[False, True], "worse": truth[True, False],
        "good": truth[True, True], "bad": truth[False, False],
    }  # fmt: skip
    labels = {label.get("for"): said(label) for label in page.iter("label")}
    assert labels["show-worse"] == f"got worse {truth[True, False]}"
    for kind in kinds:
        hides = f"#show-{kind}:checked ~ .replies > :not(.{kind})"
        assert hides in style.SHEET
    assert [i.get("id") for i in page.iter("input") if i.get("checked")] == ["show-all"]


def test_a_dozen_examples_are_open(page: Element) -> None:
    cards = [card for group in styled_any(page, "group") for card in styled_any(group, "reply")]
    assert len(cards) == SHOWN
    assert Counter(card.get("class", "").split()[1] for card in cards) == {
        "improved": 4, "worse": 4, "bad": 4,
    }  # fmt: skip


def gate_row(before: bool, after: bool, topic: str = "a") -> dict[str, Any]:
    return {"before_good": before, "after_good": after, "topic": topic, "prompt": topic}


def test_examples_fill_up_and_vary_in_topic() -> None:
    better = [gate_row(False, True, topic) for topic in "aaaabbbbcccdde"]
    chosen = choose([*better, gate_row(True, False), gate_row(True, True)])
    assert {name: len(rows) for name, rows in chosen.items()} == {
        "improved": 11, "worse": 1, "bad": 0,
    }  # fmt: skip
    assert [row["topic"] for row in chosen["improved"]][:5] == list("abcde")


def luminance(color: str) -> float:
    """Relative luminance of WCAG 2."""
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, two: str) -> float:
    high, low = sorted((luminance(one), luminance(two)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("palette", [style.LIGHT, style.DARK], ids=["light", "dark"])
def test_text_and_marks_have_contrast(palette: dict[str, str]) -> None:
    texts = [
        (ink, ground) for ink in ("ink", "muted", "after", "worse") for ground in ("paper", "card")
    ]
    texts += [("after", "after-soft"), ("worse", "worse-soft"), ("wait", "wait-soft")]
    for ink, ground in texts:
        assert contrast(palette[ink], palette[ground]) >= 4.5, (ink, ground)
    for ink in ("before", "after", "worse"):
        assert contrast(palette[ink], palette["card"]) >= 3, ink


def test_every_color_is_defined_in_both_palettes() -> None:
    assert style.LIGHT.keys() == style.DARK.keys()
    assert set(re.findall(r"var\(--([\w-]+)\)", style.SHEET)) <= style.LIGHT.keys()
    assert style.SHEET.count("{") == style.SHEET.count("}")


def test_every_class_of_the_page_is_styled(page: Element) -> None:
    used = {name for e in page.iter() for name in e.get("class", "").split()}
    known = set(re.findall(r"\.([a-z][\w-]*)", style.SHEET))
    assert used - known <= set()
