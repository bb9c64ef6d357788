"""What a person sees of patches: coloured text, a table, a picture; nothing is lost on the way."""

from __future__ import annotations

import io
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from mlx_companion.blt.config import PatchConfig
from mlx_companion.blt.entropy_plot import MOST_BYTES, entropy_plot, save_plot
from mlx_companion.blt.render import PATCH_STYLES, colored, has_colors, patch_table, summary
from mlx_companion.blt.text_patches import TextPatches
from mlx_companion.blt.visible import visible, visible_characters
from mlx_companion.errors import DataError

SVG = "{http://www.w3.org/2000/svg}"
ENTROPY = PatchConfig(threshold=1.5)
SPACE = PatchConfig(mode="space")


def cut(
    data: str | bytes,
    starts: list[int],
    entropies: list[float] | None = None,
    rule: PatchConfig = SPACE,
) -> TextPatches:
    data = data.encode() if isinstance(data, str) else data
    values = None if entropies is None else np.array(entropies, dtype=np.float32)
    return TextPatches(data, np.array(starts), values, rule, next_starts=True)


@pytest.mark.parametrize(
    ("character", "shown"),
    [
        ("a", "a"), (" ", " "), ("é", "é"), ("東", "東"), ("\n", "↵"), ("\t", "⇥"), ("\r", "␍"),
        ("\0", "␀"), ("\x1b", "␛"), ("\x7f", "␡"), ("\x9b", "\\u009b"), ("\u00a0", "\\u00a0"),
        ("\u202e", "\\u202e"), ("\u2028", "\\u2028"), ("\ufffe", "\\ufffe"), ("\u0301", "\u0301"),
        ("\U000e0001", "\\U000e0001"),
    ],
)  # fmt: skip
def test_every_character_can_be_seen(character: str, shown: str) -> None:
    assert visible(character) == (shown, "plain" if character == shown else "mark")


def test_an_accent_alone_gets_something_to_sit_on() -> None:
    assert visible("\u0301", alone=True)[0] == "◌\u0301"
    assert colored(cut("e\u0301x", [0, 1]), colors=False).plain == "e│◌\u0301x"
    assert colored(cut("e\u0301x", [0, 3]), colors=False).plain == "e\u0301│x"


def test_a_torn_character_is_shown_by_its_bytes() -> None:
    text = "é東x"
    assert colored(cut(text, [0, 1, 4]), colors=False).plain == "\\xc3│\\xa9\\xe6\\x9d│\\xb1x"
    assert colored(cut(text, [0, 2, 5]), colors=False).plain == "é│東│x"
    assert colored(cut(b"\xffa\xc3", [0]), colors=False).plain == "\\xffa\\xc3"


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=50), st.data())
def test_what_is_shown_covers_the_text_once(data: bytes, draws: st.DataObject) -> None:
    inner = draws.draw(st.sets(st.integers(1, max(1, len(data) - 1)), max_size=20))
    starts = sorted({0} | {place for place in inner if place < len(data)})
    found = cut(data, starts)
    at = 0
    for shown in visible_characters(found):
        assert shown.start == at
        assert {int(n) for n in found.owners[shown.start : shown.end]} == {shown.patch}
        if shown.kind == "byte":
            assert shown.text == f"\\x{data[at]:02x}"
        assert not any(c in shown.text for c in "\n\r\x1b\0")
        at = shown.end
    assert at == len(data)
    ET.fromstring(entropy_plot(found))


def test_colors_take_turns_and_lines_break() -> None:
    text = colored(cut("one\ntwo", [0, 2, 4]))
    assert text.plain == "one↵\ntwo"
    styles = [(text.plain[span.start : span.end], str(span.style)) for span in text.spans]
    first, second = PATCH_STYLES
    assert styles == [("on", first), ("e", second), ("↵\n", f"bold {second}"), ("two", first)]


def test_a_console_decides_about_colors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert has_colors(Console(file=io.StringIO(), force_terminal=True))
    assert not has_colors(Console(file=io.StringIO()))
    assert not has_colors(Console(file=io.StringIO(), force_terminal=True, no_color=True))
    monkeypatch.setenv("TERM", "dumb")
    assert not has_colors(Console(file=io.StringIO(), force_terminal=True))


def test_another_separator() -> None:
    assert colored(cut("ab", [0, 1]), colors=False, separator="|").plain == "a|b"


def printed(thing: object) -> list[str]:
    console = Console(file=io.StringIO(), width=80)
    console.print(thing)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore


def test_a_table_of_patches() -> None:
    found = cut("one\ntwo", [0, 1, 4], [2.5, 1.25, 0.5, 1, 3, 0.25, 0.125], ENTROPY)
    assert printed(patch_table(found)) == [
        "at byte  bytes  first  highest after  patch",
        "      0      1   2.50                 o",
        "      1      3   1.25           1.00  ne↵",
        "      4      3   3.00           0.25  two",
    ]
    assert printed(patch_table(cut("[a] [b]", [0, 4]))) == [
        "at byte  bytes  patch",
        "      0      4  [a]",
        "      4      3  [b]",
    ]


def test_a_summary() -> None:
    assert summary(cut("a", [0])) == "1 byte in 1 patch, 1.00 bytes each, longest 1 (space)"
    assert summary(cut("abc", [0, 2], [2, 1, 2], ENTROPY)) == (
        "3 bytes in 2 patches, 1.50 bytes each, longest 2 (entropy, threshold 1.50 nats)"
    )


def classes(svg: ET.Element, name: str, style: str) -> list[ET.Element]:
    return [e for e in svg.iter(SVG + name) if style in (e.get("class") or "").split()]


def test_the_plot_has_a_bar_for_each_byte() -> None:
    values = [3.0, 1.0, 0.0, 2.0, 1.4]
    svg = ET.fromstring(entropy_plot(cut("ab\ncé", [0, 3], [*values, 0.5], ENTROPY)))
    bars = classes(svg, "rect", "bar")[2:]  # two are the legend
    heights = [float(bar.get("height", "")) for bar in bars]
    assert len(bars) == 6
    assert heights == pytest.approx([v * heights[0] / 3 for v in [*values, 0.5]], abs=0.02)
    assert [i for i, bar in enumerate(bars) if bar.get("class") == "bar open"] == [0, 3]
    floor = {float(b.get("y", "")) + float(b.get("height", "")) for b in bars}
    assert max(floor) - min(floor) < 0.02
    assert [e.text for e in classes(svg, "text", "letter")] == ["a", "b", "↵", "c", "é"]
    (line,) = classes(svg, "line", "threshold")[1:]
    ground, top = min(floor), min(float(bar.get("y", "")) for bar in bars)
    assert float(line.get("y1", "")) == pytest.approx((ground + top) / 2, abs=0.02)
    assert len(classes(svg, "line", "boundary")) == 2
    assert svg.findtext(SVG + "title", "").endswith("(entropy, threshold 1.50 nats)")


def test_a_rule_that_goes_by_bytes_has_no_bars() -> None:
    svg = ET.fromstring(entropy_plot(cut("a b", [0, 2])))
    assert not classes(svg, "rect", "bar")
    assert not classes(svg, "line", "threshold")
    assert [e.text for e in classes(svg, "text", "letter")] == ["a", "·", "b"]


def test_a_threshold_of_rises_is_not_drawn_among_entropies() -> None:
    rule = PatchConfig(mode="monotonic", threshold=0.5)
    svg = ET.fromstring(entropy_plot(cut("ab", [0, 1], [1.0, 2.0], rule)))
    assert not classes(svg, "line", "threshold")


@pytest.mark.parametrize("threshold", [-1.0, 0.0, 99.0])
def test_thresholds_that_never_or_always_fire(threshold: float) -> None:
    svg = ET.fromstring(entropy_plot(cut("ab", [0], [0.0, 0.0], PatchConfig(threshold=threshold))))
    assert all(float(bar.get("height", "")) >= 0 for bar in classes(svg, "rect", "bar"))


def test_long_texts_go_over_rows_and_end() -> None:
    text = "é" * MOST_BYTES
    found = cut(text, list(range(0, 2 * MOST_BYTES, 7)), [1.0] * 2 * MOST_BYTES, ENTROPY)
    svg = ET.fromstring(entropy_plot(found))
    bars = classes(svg, "rect", "bar")[2:]
    assert len(bars) == MOST_BYTES
    width, height = float(svg.get("width", "")), float(svg.get("height", ""))
    assert all(
        0 < float(b.get("x", "")) < width and 0 < float(b.get("y", "")) < height for b in bars
    )
    assert f"the first {MOST_BYTES:,} bytes are shown" in svg.findtext(SVG + "title", "")


def test_a_plot_is_saved(tmp_path: Path) -> None:
    path = save_plot(cut("<&>", [0]), tmp_path / "new" / "plot.svg", title="<b>")
    svg = ET.fromstring(path.read_text(encoding="utf-8"))
    assert classes(svg, "text", "title")[0].text == "<b>"
    with pytest.raises(DataError, match=r"plot\.png: the plot is an SVG picture"):
        save_plot(cut("a", [0]), tmp_path / "plot.png")
