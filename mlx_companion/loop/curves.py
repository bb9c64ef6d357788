"""Charts with two axes, as inline SVG: curves over steps, and distributions before and after.

The axes, ticks and points of a plot stand in an `<svg>` without a view box, placed by
percentages, so that their text keeps its size at any width. The lines stand in a nested one
whose view box (`WIDTH` x `HEIGHT`) is stretched over it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mlx_companion.loop.charts import at
from mlx_companion.loop.formats import count, number, real
from mlx_companion.loop.page.markup import Content, Html, tag

__all__ = ["Scale", "Series", "curves", "histogram"]

WIDTH, HEIGHT = 1000, 220
_ABOVE, _BELOW = 26, 40
_NARROWEST_BIN = 0.05


@dataclass(frozen=True)
class Series:
    """A curve.

    Args:
        points: (x, y) in ascending x; y is None where it was not a number.
        style: the class that colors it.
        dots: mark each point.
    """

    points: Sequence[tuple[float, float | None]]
    style: str
    dots: bool = False


@dataclass(frozen=True)
class Scale:
    """A linear axis from `low` to `high`, with its ticks."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def share(self, value: float) -> float:
        """Where `value` lies between the ends, 0 at `low` and 1 at `high`."""
        return (value - self.low) / (self.high - self.low)

    def label(self, tick: float) -> str:
        """A tick's text, with as many decimals as the ticks need."""
        step = self.ticks[1] - self.ticks[0] if len(self.ticks) > 1 else 1.0
        digits = max(0, -math.floor(math.log10(step) + 1e-9)) + _halves(step)
        return number(tick, digits) if digits else count(tick)

    @classmethod
    def around(
        cls,
        values: Sequence[float],
        most: int = 5,
        *,
        round_ends: bool = True,
        whole: bool = False,
    ) -> Scale:
        """A scale over `values` whose ticks are multiples of 1, 2, 2.5 or 5 times a power of ten.

        Args:
            values: what must fit; nothing gives 0..1.
            most: the most intervals between ticks.
            round_ends: end the axis on ticks, and not on the smallest and largest value.
            whole: put ticks on whole numbers only.
        """
        low, high = (min(values), max(values)) if values else (0.0, 1.0)
        if high - low <= 1e-9 * max(abs(low), abs(high), 1.0):
            spread = abs(high) / 2 if abs(high) > 1e-6 else 0.5
            low, high = low - spread, high + spread
        step = _nice_step((high - low) / most, whole=whole)
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        ticks = tuple(round(i * step, 12) for i in range(first, last + 1))
        if round_ends:
            return cls(ticks[0], ticks[-1], ticks)
        return cls(low, high, tuple(tick for tick in ticks if low <= tick <= high))


def _halves(step: float) -> int:
    """One more decimal for steps of 2.5 times a power of ten under 10."""
    mantissa = step / 10 ** math.floor(math.log10(step) + 1e-9)
    return int(abs(mantissa - 2.5) < 1e-9 and step < 10)


def _nice_step(least: float, *, whole: bool = False) -> float:
    least = max(least, 1.0) if whole else least
    power = 10.0 ** math.floor(math.log10(least))
    multiples = (1, 2, 5, 10) if whole else (1, 2, 2.5, 5, 10)
    return next(m * power for m in multiples if m * power >= least * (1 - 1e-9))


def readings(pairs: Any) -> list[tuple[float, float | None]]:
    """A report's `[[step, value], ...]` as points in ascending step; unusable steps are dropped."""
    found = [pair for pair in pairs or [] if isinstance(pair, list | tuple) and len(pair) == 2]
    points = [(step, real(y)) for x, y in found if (step := real(x)) is not None]
    return sorted(points, key=lambda point: point[0])


def curves(series: Sequence[Series], *, title: str, x: str, y: str) -> Html | None:
    """Curves over a common x axis.

    A value that is not a number breaks its curve and leaves a cross at the top.

    Args:
        series: drawn in their order, the last on top.
        title: what the chart shows, in words, for screen readers.
        x, y: names and units of the axes.

    Returns:
        The drawing, or None when there is no point at all.
    """
    points = [point for one in series for point in one.points]
    if not points:
        return None
    across = Scale.around([step for step, _ in points], round_ends=False, whole=True)
    up = Scale.around([value for _, value in points if value is not None])
    lines = [_line(run, one.style, across, up) for one in series for run in _runs(one.points)]
    marks = [_mark(point, one, across, up) for one in series for point in one.points]
    return _plot(title, (across, x), (up, y), lines, marks)


def _runs(points: Sequence[tuple[float, float | None]]) -> list[list[tuple[float, float]]]:
    """The stretches of a curve between values that are not numbers."""
    runs: list[list[tuple[float, float]]] = [[]]
    for step, value in points:
        if value is None:
            runs.append([])
        else:
            runs[-1].append((step, value))
    return [run for run in runs if len(run) > 1]


def _line(run: Sequence[tuple[float, float]], style: str, across: Scale, up: Scale) -> Html:
    return _path([(across.share(step), up.share(value)) for step, value in run], f"line {style}")


def _path(places: Sequence[tuple[float, float]], style: str, *, closed: bool = False) -> Html:
    corners = [f"{WIDTH * x:.1f} {HEIGHT * (1 - y):.1f}" for x, y in places]
    return tag("path", d="M" + "L".join(corners) + "Z" * closed, class_=style)


def _mark(
    point: tuple[float, float | None], series: Series, across: Scale, up: Scale
) -> Html | None:
    step, value = point
    if value is None:
        return tag("text", "×", x=at(across.share(step)), y=4, class_="broken")
    if not series.dots and len(series.points) > 1:
        return None
    y = HEIGHT * (1 - up.share(value))
    return tag("circle", cx=at(across.share(step)), cy=y, r=3.5, class_=series.style)


def histogram(
    before: Sequence[float], after: Sequence[float], threshold: float | None, *, title: str, x: str
) -> Html | None:
    """How two sets of values are distributed, and which of them reach a threshold.

    A threshold is always the border of two bins, so what is right of it reaches it.

    Args:
        before, after: the values (N) and (M).
        threshold: marked by a line; None is not.
        title: what the chart shows, in words, for screen readers.
        x: name of the measure.

    Returns:
        The drawing, or None when there are no values.
    """
    if not before and not after:
        return None
    edges = bin_edges([*before, *after], threshold)
    counts = [_counts(values, edges) for values in (before, after)]
    across = Scale.around([edges[0], edges[-1]], most=6, round_ends=False)
    up = Scale.around([0, max(map(max, counts))], most=4, whole=True)
    shapes = [
        _path(_steps(edges, heights, across, up), f"area {style}", closed=True)
        for heights, style in zip(counts, ("before", "after"), strict=True)
    ]
    marks = [] if threshold is None else _threshold(threshold, across)
    return _plot(title, (across, x), (up, "replies"), shapes, marks)


def bin_edges(values: Sequence[float], threshold: float | None) -> list[float]:
    """Edges of equal bins that cover `values`, one of them on the threshold."""
    anchor = threshold if threshold is not None else 0.0
    low, high = min([*values, anchor]), max([*values, anchor])
    width = max(_nice_step((high - low) / 24) if high > low else 0.0, _NARROWEST_BIN)
    first = math.floor((low - anchor) / width)
    last = math.floor((high - anchor) / width) + 1
    return [anchor + i * width for i in range(first, last + 1)]


def _counts(values: Sequence[float], edges: Sequence[float]) -> list[int]:
    width = edges[1] - edges[0]
    counts = [0] * (len(edges) - 1)
    for value in values:
        # The small excess keeps a value that lies on an edge right of it.
        place = math.floor((value - edges[0]) / width + 1e-9)
        counts[min(max(place, 0), len(counts) - 1)] += 1
    return counts


def _steps(
    edges: Sequence[float], heights: Sequence[int], across: Scale, up: Scale
) -> list[tuple[float, float]]:
    places = [(across.share(edges[0]), 0.0)]
    for left, right, height in zip(edges, edges[1:], heights, strict=False):
        places += [(across.share(left), up.share(height)), (across.share(right), up.share(height))]
    return [*places, (across.share(edges[-1]), 0.0)]


def _threshold(value: float, across: Scale) -> list[Html]:
    place = across.share(value)
    anchor, shift = ("end", -6) if place > 0.6 else ("start", 6)
    label = f"threshold {number(value)}"
    return [
        tag("line", x1=at(place), x2=at(place), y1=-14, y2=HEIGHT, class_="threshold"),
        tag("text", label, x=at(place), y=-6, dx=shift, text_anchor=anchor, class_="strong"),
    ]


def _plot(
    title: str, across: tuple[Scale, str], up: tuple[Scale, str], lines: Content, marks: Content
) -> Html:
    stretched = tag(
        "svg", lines, viewBox=f"0 0 {WIDTH} {HEIGHT}", preserveAspectRatio="none",
        width="100%", height=HEIGHT,
    )  # fmt: skip
    content = [*_y_axis(*up), *_x_axis(*across), stretched, tag("g", marks)]
    shifted = tag("g", content, transform=f"translate(0 {_ABOVE})")
    height = _ABOVE + HEIGHT + _BELOW
    return tag("svg", tag("title", title), shifted, class_="plot", height=height, role="img")


def _y_axis(scale: Scale, name: str) -> list[Html]:
    drawn = [tag("text", name, x=-40, y=-16, class_="name")]
    for tick in scale.ticks:
        y = HEIGHT * (1 - scale.share(tick))
        drawn.append(tag("line", x1=0, x2="100%", y1=y, y2=y, class_="grid"))
        drawn.append(tag("text", scale.label(tick), x=-8, y=y + 4, text_anchor="end"))
    return drawn


def _x_axis(scale: Scale, name: str) -> list[Html]:
    drawn = [tag("text", name, x="100%", y=HEIGHT + 34, text_anchor="end", class_="name")]
    for tick in scale.ticks:
        place = at(scale.share(tick))
        label = scale.label(tick)
        drawn.append(tag("line", x1=place, x2=place, y1=HEIGHT, y2=HEIGHT + 4, class_="tick"))
        drawn.append(tag("text", label, x=place, y=HEIGHT + 18, text_anchor="middle"))
    return drawn
