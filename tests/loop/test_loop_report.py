"""The report page is well-formed, harmless whatever it holds, and written atomically."""

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

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markup_reading import parse_page, said, styled_any
from report_sample import diverged_report, rejected_report, sample_report

from mlx_companion import errors
from mlx_companion.loop.report import plain, render, write_report

NASTY = '<script>alert(\'1\')</script>" onload="x" & \x00\x1b\ud800\ufffe </style> ]]> --> &lt;'


def with_leaves(value: Any, change: Callable[[Any], Any]) -> Any:
    """A copy of nested data with every leaf changed."""
    if isinstance(value, dict):
        return {key: with_leaves(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [with_leaves(item, change) for item in value]
    return change(value)


VARIANTS: dict[str, Callable[[], dict[str, Any]]] = {
    "deployed": sample_report,
    "rejected": rejected_report,
    "diverged": diverged_report,
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
    root = parse_page(text)
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
    text = said(parse_page(render(VARIANTS[variant]()))[1])
    assert not re.search(r"\b(None|nan|inf|null)\b", text)
    assert "–" in text


@pytest.mark.parametrize("key", sorted(sample_report(items=1)))
def test_every_part_may_be_missing(key: str) -> None:
    given = sample_report(items=12)
    without = {name: value for name, value in given.items() if name != key}
    parse_page(render(without))
    parse_page(render(given | {key: None}))


def test_texts_are_escaped_and_still_readable() -> None:
    root = parse_page(render(VARIANTS["leaves nasty"]()))
    expected = NASTY.translate(dict.fromkeys([0, 0x1B, 0xD800, 0xFFFE], "\ufffd"))
    words = [said(e) for e in styled_any(root, "words")]
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
    parse_page(render(report))


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
    root = parse_page(render({"gate": [row], "reasons": [text], "round": 1}))
    found = ["".join(e.itertext()) for e in styled_any(root, "words")]
    assert set(found) == {shown(text)}


def test_long_texts_are_cut_and_say_so() -> None:
    row = {"prompt": "p" * 100_000, "before": "b" * 100_000, "after": "", "topic": "t"}
    text = render({"gate": [row]})
    assert len(text) < 60_000
    words = {said(e) for e in styled_any(parse_page(text), "words")}
    assert "b" * 2000 + " … and 98,000 more characters" in words
    assert "(empty)" in words


# Writing


def test_both_files_are_written_and_replaced(tmp_path: Path) -> None:
    report = sample_report()
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

    _, numbers = write_report(tmp_path, diverged_report())
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
