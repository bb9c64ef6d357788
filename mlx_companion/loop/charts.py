"""Charts for the report, as inline SVG and plain tables: no library, no script, no picture file.

Comparisons of shares are tables with a small drawing in each row, so that a screen reader
reads the numbers and a narrow page keeps its text at full size. Positions along a row are
percentages: a circle at `cx="71%"` is the share 0.71, however wide the page is. Curves are
stretched to the page's width by a nested `<svg>`; text and points are not.

Colors come from classes that the report's style sheet defines: `before`, `after`, `up`, `down`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mlx_companion.loop.formats import change, plural, share
from mlx_companion.loop.page.markup import Content, Html, join, tag

__all__ = [
    "Bar",
    "Pair",
    "Part",
    "at",
    "bars",
    "direction",
    "dumbbell",
    "dumbbells",
    "key",
    "legend",
    "stack",
    "swatch",
]

_GRID = (0.0, 0.25, 0.5, 0.75, 1.0)
_ROW = 30
_BAR = 22


@dataclass(frozen=True)
class Pair:
    """A share before and after.

    Args:
        label: what it is the share of.
        before, after: in 0..1; None when it was not measured.
        note: said in small print after the label.
    """

    label: str
    before: float | None
    after: float | None
    note: str = ""

    @property
    def change(self) -> float | None:
        """After minus before; None when one is missing."""
        if self.before is None or self.after is None:
            return None
        return self.after - self.before


@dataclass(frozen=True)
class Bar:
    """One bar: its label, its length (0 or more) and the text that states it."""

    label: str
    value: float
    text: str


@dataclass(frozen=True)
class Part:
    """One part of a whole: its label, its size, and the class that colors it."""

    label: str
    value: float
    style: str


def at(value: float) -> str:
    """A position along a row: 0.71 is "71%"."""
    return f"{round(100 * min(max(value, 0.0), 1.0), 3):g}%"


def dumbbells(pairs: Sequence[Pair], *, caption: str, kind: str, order: bool = True) -> Html:
    """Shares before and after, one row each: a ring for before, a dot for after.

    Args:
        pairs: the rows.
        caption: what the table shows, for screen readers.
        kind: head of the first column.
        order: put the largest gain first, what was not measured last.
    """
    if order:
        unmeasured = [pair for pair in pairs if pair.change is None]
        measured = [pair for pair in pairs if pair.change is not None]
        pairs = [*sorted(measured, key=lambda pair: -(pair.change or 0.0)), *unmeasured]
    head = tag(
        "tr",
        tag("th", kind, scope="col"),
        tag("th", _axis(), tag("span", "chart", class_="sr"), scope="col", class_="track"),
        [tag("th", text, scope="col") for text in ("before", "after", "change")],
    )
    return tag(
        "table",
        tag("caption", caption, class_="sr"),
        tag("thead", head),
        tag("tbody", [_dumbbell_row(pair) for pair in pairs]),
        class_="chart dumbbells",
    )


def _dumbbell_row(pair: Pair) -> Html:
    note = [" ", tag("small", pair.note)] if pair.note else None
    return tag(
        "tr",
        tag("th", pair.label, note, scope="row"),
        tag("td", dumbbell(pair.before, pair.after), class_="track"),
        tag("td", share(pair.before)),
        tag("td", share(pair.after), class_="new"),
        tag("td", change(pair.change), class_=direction(pair.change)),
    )


def direction(difference: float | None) -> str | None:
    """The class of a change: "up", "down", or None where nothing changed."""
    if difference is None or abs(difference) < 1e-9:
        return None
    return "up" if difference > 0 else "down"


def dumbbell(
    before: float | None,
    after: float | None,
    *,
    band: tuple[float, float] | None = None,
    height: int = _ROW,
) -> Html:
    """A ring at `before`, a dot at `after`, and the way between them.

    Args:
        before, after: shares in 0..1; None is not drawn.
        band: an interval of shares to be shaded behind them.
        height: of the drawing (CSS pixels).
    """
    middle = height / 2
    drawn: list[Content] = [_grid(height)]
    if band is not None:
        low, high = sorted(band)
        width = at(min(high, 1.0) - max(low, 0.0))
        drawn.append(tag("rect", x=at(low), y=middle - 9, width=width, height=18, class_="band"))
    if before is not None and after is not None:
        style = f"way {direction(after - before) or ''}".strip()
        drawn.append(tag("line", x1=at(before), x2=at(after), y1=middle, y2=middle, class_=style))
    if before is not None:
        drawn.append(tag("circle", cx=at(before), cy=middle, r=6, class_="before"))
    if after is not None:
        worse = before is not None and after < before
        style = "after down" if worse else "after"
        drawn.append(tag("circle", cx=at(after), cy=middle, r=5, class_=style))
    return _drawing(drawn, height)


def _drawing(content: Content, height: int, style: str | None = None) -> Html:
    """A decoration of text that says the same, and therefore hidden from screen readers."""
    return tag("svg", content, height=height, class_=style, aria_hidden="true", focusable="false")


def _grid(height: float) -> list[Html]:
    return [tag("line", x1=at(x), x2=at(x), y1=0, y2=height, class_="grid") for x in _GRID]


def _axis() -> Html:
    labels = [
        tag("text", f"{100 * x:.0f}", x=at(x), y=12, text_anchor="middle", class_=style)
        for x, style in zip(_GRID, (None, "minor", None, "minor", None), strict=True)
    ]
    return _drawing(labels, 16)


def bars(rows: Sequence[Bar], *, caption: str, kinds: tuple[str, str]) -> Html:
    """Horizontal bars from zero, on one scale that the longest fills.

    Args:
        rows: the bars, in their order.
        caption: what the table shows, for screen readers.
        kinds: heads of the columns of labels and of texts.
    """
    longest = max((row.value for row in rows), default=0.0) or 1.0
    head = tag("tr", [tag("th", kind, scope="col") for kind in (kinds[0], "chart", kinds[1])])
    body = [
        tag(
            "tr",
            tag("th", row.label, scope="row"),
            tag("td", _bar(row.value / longest), class_="track"),
            tag("td", row.text),
        )
        for row in rows
    ]
    return tag(
        "table",
        tag("caption", caption, class_="sr"),
        tag("thead", head, class_="sr"),
        tag("tbody", body),
        class_="chart",
    )


def _bar(part: float) -> Html:
    bar = tag("rect", x=0, y=5, width=at(part), height=_BAR - 10, rx=2, class_="bar")
    return _drawing(bar, _BAR)


def stack(parts: Sequence[Part], *, unit: str, label: str) -> Html | None:
    """Parts of a whole side by side, with a legend that counts them.

    Args:
        parts: in their order; those of size zero stand in the legend only.
        unit: the noun of what is counted, singular.
        label: what the whole is, for screen readers.

    Returns:
        The figure, or None when the whole is nothing.
    """
    total = sum(part.value for part in parts)
    if total <= 0:
        return None
    drawn, start = [], 0.0
    for part in parts:
        width = part.value / total
        if width > 0:
            box = tag("rect", x=at(start), width=at(width), height=18, class_=part.style)
            drawn.append(box)
        start += width
    keys = [_legend_entry(part, total) for part in parts]
    legend = tag("ul", keys, class_="legend", aria_label=f"{label}: {plural(total, unit)}")
    return tag("div", _drawing(drawn, 18, "stack"), legend, class_="whole")


def _legend_entry(part: Part, total: float) -> Html:
    return tag(
        "li",
        swatch(part.style),
        f"{part.label} ",
        tag("b", f"{part.value:,.0f}"),
        tag("small", f" {share(part.value / total)}"),
        class_=None if part.value else "none",
    )


def swatch(style: str) -> Html:
    """A small square in a part's color."""
    square = tag("rect", width=12, height=12, rx=2, class_=style)
    return tag("svg", square, class_="swatch", width=12, height=12, aria_hidden="true")


def key(style: str, text: str) -> Html:
    """A legend entry: the shade of "band", the ring of "before" or the dot of "after"."""
    if style == "band":
        shape = tag("rect", width=14, height=14, class_=style)
    else:
        shape = tag("circle", cx=7, cy=7, r=5 if style == "before" else 4.5, class_=style)
    mark = tag("svg", shape, class_="swatch", width=14, height=14, aria_hidden="true")
    return tag("span", mark, text, class_="key")


def legend(*keys: Html) -> Html:
    """The line above a chart that says what its marks are."""
    return tag("p", join(*keys), class_="keys")
