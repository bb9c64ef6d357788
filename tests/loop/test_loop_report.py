"""The report page: well-formed, harmless, complete, and written atomically."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_sample import sample_report

from mlx_companion import errors
from mlx_companion.loop.page import style
from mlx_companion.loop.page.replies import SHOWN, choose
from mlx_companion.loop.report import plain, render, write_report

NASTY = '<script>alert(\'1\')</script>" onload="x" & \x00\x1b\ud800\ufffe </style> ]]> --> &lt;'


def parse(page: str) -> Element:
    """The page as XML: every element closed, every attribute quoted, every text escaped."""
    assert page.startswith("<!DOCTYPE html>\n")
    return ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>\n"))


def said(element: Element) -> str:
    return "".join(element.itertext()).replace("\u00a0", " ")


def styled(root: Element, name: str) -> list[Element]:
    return [e for e in root.iter() if name in e.get("class", "").split()]


def body(root: Element) -> str:
    found = root.find("body")
    assert found is not None
    return said(found)


def with_leaves(value: Any, change: Callable[[Any], Any]) -> Any:
    """A copy of nested data with every leaf changed."""
    if isinstance(value, dict):
        return {key: with_leaves(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [with_leaves(item, change) for item in value]
    return change(value)


def rejected() -> dict[str, Any]:
    report = sample_report(3, items=40)
    report |= {
        "outcome": "reject", "deployed": False, "version": "v0001", "candidate": None,
        "loss": {"train": [], "valid": None}, "p": 0.93, "after": 0.05,
        "reasons": ["Harm is shown, so the old version stays."],
    }  # fmt: skip
    report["margins"][2] |= {"value": 0.48, "passed": False}
    return report


def diverged() -> dict[str, Any]:
    report = rejected()
    nan, inf = float("nan"), float("inf")
    report["loss"] = {"train": [[0, 2.5], [1, nan], [2, inf], [3, 2.0]], "valid": [[0, nan]]}
    return report | {"perplexity_after": inf, "divergence": nan, "after": nan, "interval": [nan, 1]}


VARIANTS: dict[str, Callable[[], dict[str, Any]]] = {
    "deployed": sample_report,
    "rejected": rejected,
    "diverged": diverged,
    "no gate items": lambda: sample_report(items=0),
    "empty": dict,
    "all None": lambda: dict.fromkeys(sample_report(), None),
    "leaves None": lambda: with_leaves(sample_report(items=12), lambda leaf: None),
    "leaves nasty": lambda: with_leaves(
        sample_report(items=12), lambda leaf: NASTY if isinstance(leaf, str) else leaf
    ),
    "leaves text": lambda: with_leaves(sample_report(items=12), str),
    "wrong kinds": lambda: dict.fromkeys(sample_report(), 7),
}


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return sample_report()


@pytest.fixture(scope="module")
def page(report: dict[str, Any]) -> Element:
    return parse(render(report))


class Tags(HTMLParser):
    """What a browser's parser sees: elements and attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(name, value or "") for name, value in attrs]


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_page_is_well_formed_and_loads_nothing(variant: str) -> None:
    text = render(VARIANTS[variant]())
    root = parse(text)
    tags = Tags()
    tags.feed(text)
    assert not set(tags.tags) & {"script", "img", "link", "iframe", "object", "embed", "base"}
    names = {name for name, _ in tags.attributes}
    assert not {name for name in names if name.startswith("on") or name in {"src", "style"}}
    ids = [value for name, value in tags.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    links = [value for name, value in tags.attributes if name == "href"]
    assert {link.removeprefix("#") for link in links} <= set(ids)
    policies = [m.get("content", "") for m in root.iter("meta") if "http-equiv" in m.attrib]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]
    assert root.find("head/title") is not None
    text.encode("utf-8")


@pytest.mark.parametrize("variant", ["deployed", "rejected", "diverged", "empty"])
def test_no_address_outside_the_page(variant: str) -> None:
    text = render(VARIANTS[variant]())
    assert re.findall(r"(?:https?:)?//\w|url\(|@import|xmlns", text) == []


@pytest.mark.parametrize(
    "variant", ["all None", "leaves None", "diverged", "no gate items", "empty"]
)
def test_what_is_missing_is_a_dash(variant: str) -> None:
    text = body(parse(render(VARIANTS[variant]())))
    assert not re.search(r"\b(None|nan|inf|null)\b", text)
    assert "–" in text


@pytest.mark.parametrize("key", sorted(sample_report(items=1)))
def test_every_part_may_be_missing(key: str) -> None:
    given = sample_report(items=12)
    without = {name: value for name, value in given.items() if name != key}
    parse(render(without))
    parse(render(given | {key: None}))


def test_texts_are_escaped_and_still_readable() -> None:
    root = parse(render(VARIANTS["leaves nasty"]()))
    expected = NASTY.translate(dict.fromkeys([0, 0x1B, 0xD800, 0xFFFE], "\ufffd"))
    words = [said(e) for e in styled(root, "words")]
    assert len(words) >= 3 * 12
    assert set(words) == {expected}
    assert said(root.findall(".//header//li")[0]) == expected
    assert len(list(root.iter("style"))) == 1


def test_keys_are_escaped() -> None:
    report = sample_report(items=4)
    report["config"] = {NASTY: {NASTY: 1}}
    report["step_seconds"] = {NASTY: 1.0}
    report["calibration"][NASTY] = {"threshold": 0.3}
    report["data"]["rows"] = {NASTY: 3}
    parse(render(report))


def shown(text: str) -> str:
    """What XML and the page may hold of a text, one character at a time."""
    kept = []
    for character in text.replace("\r\n", "\n").replace("\r", "\n"):
        code = ord(character)
        control = (code < 32 and character not in "\t\n") or 127 <= code < 160
        forbidden = control or 0xD800 <= code <= 0xDFFF or code in {0xFFFE, 0xFFFF}
        kept.append("\ufffd" if forbidden else character)
    return "".join(kept)


@given(st.text(st.characters(exclude_categories=()), min_size=1, max_size=60).filter(str.strip))
def test_any_text_comes_through(text: str) -> None:
    row = {"prompt": text, "before": text, "after": text, "topic": text, "before_reason": text}
    root = parse(render({"gate": [row], "reasons": [text], "round": 1}))
    found = ["".join(e.itertext()) for e in styled(root, "words")]
    assert set(found) == {shown(text)}


def test_long_texts_are_cut_and_say_so() -> None:
    row = {"prompt": "p" * 100_000, "before": "b" * 100_000, "after": "", "topic": "t"}
    text = render({"gate": [row]})
    assert len(text) < 60_000
    words = {said(e) for e in styled(parse(text), "words")}
    assert "b" * 2000 + " … and 98,000 more characters" in words
    assert "(empty)" in words


# What the page says


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
    root = parse(render(sample_report(items=4) | change))
    assert said(styled(root, "badge")[0]) == badge
    assert said(root.findall(".//h1/span")[0]) == sentence


def test_only_a_waiting_version_asks_to_be_promoted() -> None:
    command = "mlx-companion promote v0002"
    waiting = {"deployed": False, "mode": "review"}
    assert command in body(parse(render(sample_report(items=4) | waiting)))
    for change in ({}, {"deployed": False}, waiting | {"outcome": "reject"}):
        assert command not in body(parse(render(sample_report(items=4) | change)))


def tiles(root: Element) -> dict[str, str]:
    return {said(tile[0]): said(tile) for tile in styled(root, "tile")}


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
    root = parse(render(rejected()))
    broken = [said(tile[0]) for tile in styled(root, "failed")]
    assert broken == ["Good replies", "Perplexity of general text"]
    assert "+48 %, limit +10 %" in tiles(root)["Perplexity of general text"]


def test_the_limit_itself_is_not_enough() -> None:
    root = parse(render({"p": 0.03, "alpha": 0.03, "before": 0.1, "after": 0.3}))
    assert "✗ failed" in tiles(root)["Good replies"]


def test_a_margin_of_its_own_gets_a_tile() -> None:
    margin = {"name": "bite_rate", "value": 2, "limit": 1, "passed": False, "text": "bites per day"}
    found = tiles(parse(render({"margins": [margin]})))
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
    (chosen,) = styled(page, "chosen")
    assert said(chosen[0]) == "0.75"
    assert ["relevance", "0.31", "95 %", "97 %", "0.99", "120"] in rows
    assert styled(parse(render(rejected())), "chosen") == []


def test_data_flow_and_record(report: dict[str, Any], page: Element) -> None:
    flow = [said(step) for step in styled(page, "flow")[0]]
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
    rows = table_rows(parse(render({"data": {"dropped": dropped}})), "making")
    assert rows[-1] == ["8 other reasons", "", str(sum(100 - i for i in range(12, 20)))]


def test_a_lost_loss_is_told() -> None:
    assert "Not a number: 3 values, marked ×." in body(parse(render(diverged())))


# Replies


def test_every_gate_reply_is_there_and_can_be_filtered(
    report: dict[str, Any], page: Element
) -> None:
    (every,) = styled(page, "replies")
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
    cards = [card for group in styled(page, "group") for card in styled(group, "reply")]
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


# Style


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


# Writing


def test_both_files_are_written_and_replaced(tmp_path: Path, report: dict[str, Any]) -> None:
    given_report = copy.deepcopy(report)
    folder = tmp_path / "rounds" / "1"
    html, numbers = write_report(folder, given_report)
    assert (html.name, numbers.name) == ("report.html", "report.json")
    assert given_report == report, "the caller's report must not change"
    assert html.read_text(encoding="utf-8") == render(report)
    assert json.loads(numbers.read_text(encoding="utf-8")) == report | {"report": str(html)}
    write_report(folder, {"round": 2, "report": "elsewhere.html"})
    assert json.loads(numbers.read_text(encoding="utf-8")) == {
        "round": 2, "report": "elsewhere.html",
    }  # fmt: skip
    assert sorted(path.name for path in folder.iterdir()) == ["report.html", "report.json"]


def test_a_page_that_fails_leaves_the_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(report: dict[str, Any]) -> str:
        raise errors.LoopError("no page")

    monkeypatch.setattr("mlx_companion.loop.report.render", fail)
    with pytest.raises(errors.LoopError):
        write_report(tmp_path, {"round": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_json_has_null_for_what_is_no_number(tmp_path: Path) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    _, numbers = write_report(tmp_path, diverged())
    loaded = json.loads(numbers.read_text(encoding="utf-8"), parse_constant=refuse)
    assert loaded["perplexity_after"] is None
    assert loaded["loss"]["train"] == [[0, 2.5], [1, None], [2, None], [3, 2.0]]


def test_what_json_does_not_know_is_made_plain() -> None:
    given_values = {
        "array": np.array([1.5, np.nan]), "scalar": np.float32(0.5), "truth": np.bool_(True),
        "path": Path("a") / "b", 3: (1, 2), "text": "a\ud800\x00b", "big": 10**20,
    }  # fmt: skip
    assert plain(given_values) == {
        "array": [1.5, None], "scalar": 0.5, "truth": True, "path": "a/b", "3": [1, 2],
        "text": "a\ufffd\ufffd\ufffd\x00b", "big": 10**20,
    }  # fmt: skip
    json.dumps(plain(given_values), allow_nan=False).encode("utf-8")


def test_the_same_report_makes_the_same_page(repository: Path) -> None:
    code = (
        "import hashlib; from report_sample import sample_report\n"
        "from mlx_companion.loop.report import render\n"
        "print(hashlib.sha256(render(sample_report()).encode()).hexdigest())"
    )
    paths = os.pathsep.join([str(repository), str(repository / "tests")])
    made = set()
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": paths}
        done = subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, env=environment
        )
        made.add(done.stdout)
    assert len(made) == 1
