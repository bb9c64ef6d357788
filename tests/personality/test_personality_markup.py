"""Regions of Markdown: what is code, a link, a quotation, a heading."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from patience import not_hanging

from mlx_companion.personality.markup import KINDS, PROTECTED, scan

CASES = [
    ("code", "Use `a != b` here.", "`a != b`"),
    ("code", "Say ``a ` b`` now.", "``a ` b``"),
    ("code", "Text\n```py\nx = 1\n```\nText", "```py\nx = 1\n```\n"),
    ("code", "Text\n~~~\nx\n", "~~~\nx\n"),
    ("code", "Text\n\n    indented = 1\n\nText", "    indented = 1"),
    ("code", "$ sudo rm\nText", "$ sudo rm"),
    ("code", "Run ./build/run.sh now", "./build/run.sh"),
    ("link", "See https://x.org/a!b.", "https://x.org/a!b"),
    ("link", "See [text](http://x.org/latte) now", "(http://x.org/latte)"),
    ("link", "Mail sam@latte.org today", "sam@latte.org"),
    ("image", "Look ![Wow!](a.png) here", "![Wow!](a.png)"),
    ("html", "A <b>bold</b> word", "<b>"),
    ("math", "So $n!$ grows", "$n!$"),
    ("quote", 'He said "Stop!" twice', '"Stop!"'),
    ("quote", "He said \u201cStop!\u201d twice", "\u201cStop!\u201d"),
    ("quote", "He said 'Stop!' twice", "'Stop!'"),
    ("block_quote", "> Wow!\nText", "> Wow!"),
    ("heading", "## BIG\nText", "## BIG"),
    ("heading", "BIG\n===\nText", "BIG\n==="),
    ("table", "| A | B |\n|---|---|", "| A | B |"),
]


@pytest.mark.parametrize(
    ("kind", "text", "piece"), CASES, ids=[f"{k}-{t[:12]}" for k, t, _ in CASES]
)
def test_regions_are_found_exactly(kind: str, text: str, piece: str) -> None:
    spans = list(scan(text).spans(kind))
    assert text[spans[0][0] : spans[0][1]] == piece


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("code", "- item\n\n    still the item"),
        ("code", "A single ` tick"),
        ("code", "One ` tick\n\nand another ` one"),
        ("math", "It costs $5 and then $6."),
        ("quote", 'A 5" disk and a 3" disk'),
        ("quote", "Don't say it's the dogs' bowl"),
        ("quote", '*smiles* "Hello there!" *waves*'),
        ("quote", '"All of it is spoken."'),
        ("heading", "#hashtag"),
        ("html", "if a < b and c > d"),
    ],
)
def test_look_alikes_are_none(kind: str, text: str) -> None:
    assert not scan(text).holds(kind)


@settings(deadline=None)
@given(st.text(alphabet="ab \n`*_\"'<>[]()$!#|~.-/\\", max_size=200))
def test_prose_keeps_every_offset(text: str) -> None:
    markup = scan(text)
    prose = markup.prose()
    assert len(prose) == len(text)
    for at, character in enumerate(text):
        assert prose[at] == (
            " " if markup.inside(at, PROTECTED) and character != "\n" else character
        )


@settings(deadline=None)
@given(st.text(alphabet="a` \n~", max_size=120))
def test_spans_are_what_is_inside(text: str) -> None:
    markup = scan(text)
    for kind in KINDS:
        covered = {at for start, end in markup.spans(kind) for at in range(start, end)}
        assert covered == {at for at in range(len(text)) if markup.inside(at, kind)}


@pytest.mark.parametrize(
    "unit", ["`", '"a ', "<!--", "[a](", "$a ", "\\(", "_a", "'a ", "a.", "\n"]
)
def test_hostile_texts_are_read(unit: str) -> None:
    text = unit * (60_000 // len(unit))
    with not_hanging():
        assert scan(text).text == text
