"""The charts show their data where it belongs: positions are read back from the SVG."""

from __future__ import annotations

from xml.etree.ElementTree import Element

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markup_reading import parse, percent, said, styled

from mlx_companion.loop.charts import Bar, Pair, Part, bars, dumbbell, dumbbells, key, stack

SHARES = st.floats(0, 1)


@given(before=SHARES, after=SHARES)
def test_ring_and_dot_stand_at_their_shares(before: float, after: float) -> None:
    root = parse(dumbbell(before, after))
    (ring,), (dot,), (way,) = (
        styled(root, "circle", "before"),
        styled(root, "circle", "after"),
        styled(root, "line", "way"),
    )
    assert percent(ring, "cx") == pytest.approx(before, abs=1e-5)
    assert percent(dot, "cx") == pytest.approx(after, abs=1e-5)
    assert (percent(way, "x1"), percent(way, "x2")) == (percent(ring, "cx"), percent(dot, "cx"))
    assert ("down" in dot.get("class", "")) == (after < before)
    assert float(ring.get("r", 0)) > float(dot.get("r", 0)), "equal shares must show both"


def test_the_grid_marks_the_quarters() -> None:
    lines = styled(parse(dumbbell(0.1, 0.2)), "line", "grid")
    assert [percent(line, "x1") for line in lines] == [0, 0.25, 0.5, 0.75, 1]


@pytest.mark.parametrize(
    ("before", "after", "circles"), [(None, 0.4, 1), (0.4, None, 1), (None, None, 0)]
)
def test_what_was_not_measured_is_not_drawn(
    before: float | None, after: float | None, circles: int
) -> None:
    root = parse(dumbbell(before, after))
    assert len(list(root.iter("circle"))) == circles
    assert styled(root, "line", "way") == []


@pytest.mark.parametrize(
    ("band", "left", "width"),
    [((0.2, 0.5), 0.2, 0.3), ((0.5, 0.2), 0.2, 0.3), ((-0.1, 0.3), 0, 0.3), ((0.8, 1.2), 0.8, 0.2)],
)
def test_the_band_stays_between_none_and_all(
    band: tuple[float, float], left: float, width: float
) -> None:
    (box,) = styled(parse(dumbbell(0.3, 0.4, band=band)), "rect", "band")
    assert percent(box, "x") == pytest.approx(left)
    assert percent(box, "width") == pytest.approx(width)


def rows_of(table: Element) -> list[list[str]]:
    body = table.find("tbody")
    assert body is not None
    return [[said(cell) for cell in row] for row in body]


PAIRS = [
    Pair("worse", 0.96, 0.91),
    Pair("unknown", None, 0.5),
    Pair("best", 0.4, 0.96, "12"),
    Pair("same", 0.99, 0.99),
]


def test_dumbbells_are_a_table_ordered_by_gain() -> None:
    table = parse(dumbbells(PAIRS, caption="Rules", kind="rule"))
    assert said(table.findall("caption")[0]) == "Rules"
    assert rows_of(table) == [
        ["best 12", "", "40 %", "96 %", "+56"],
        ["same", "", "99 %", "99 %", "±0"],
        ["worse", "", "96 %", "91 %", "−5"],
        ["unknown", "", "–", "50 %", "–"],
    ]
    assert [row[-1].get("class") for row in table.findall("tbody/tr")] == ["up", None, "down", None]


def test_dumbbells_keep_a_given_order() -> None:
    table = parse(dumbbells(PAIRS, caption="", kind="", order=False))
    assert [row[0] for row in rows_of(table)] == ["worse", "unknown", "best 12", "same"]


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=9))
def test_bars_are_to_scale(values: list[int]) -> None:
    table = parse(
        bars([Bar(f"b{v}", v, f"{v}") for v in values], caption="c", kinds=("reason", "replies"))
    )
    widths = [percent(bar, "width") for bar in styled(table, "rect", "bar")]
    assert widths == pytest.approx([v / (max(values) or 1) for v in values], abs=1e-5)
    assert [row[2] for row in rows_of(table)] == [str(v) for v in values]


@given(st.lists(st.integers(0, 400), min_size=1, max_size=6))
def test_a_stack_is_its_parts_end_to_end(values: list[int]) -> None:
    drawn = stack(
        [Part(f"p{i}", v, f"row-{i}") for i, v in enumerate(values)], unit="row", label="Rows"
    )
    if not sum(values):
        assert drawn is None
        return
    root = parse(drawn)
    boxes = [box for box in root[0].iter("rect")]
    present = [v for v in values if v]
    ends = np.cumsum(present) / sum(present)
    assert [percent(b, "x") for b in boxes] == pytest.approx([0, *ends[:-1]], abs=2e-5)
    assert [percent(b, "x") + percent(b, "width") for b in boxes] == pytest.approx(ends, abs=3e-5)
    legend = [said(entry) for entry in root.iter("li")]
    assert len(legend) == len(values)
    assert all(f"{v}" in entry for v, entry in zip(values, legend, strict=True))


def test_labels_are_escaped() -> None:
    nasty = '<script>"x"</script>'
    table = parse(dumbbells([Pair(nasty, 0.1, 0.2, nasty)], caption=nasty, kind=nasty))
    drawn = parse(stack([Part(nasty, 1, "row-0")], unit=nasty, label=nasty))
    line = parse(key("after", nasty))
    for root in (table, drawn, line):
        assert not list(root.iter("script"))
        assert nasty in said(root)
