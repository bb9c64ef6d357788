"""Curves and distributions are to scale: values are read back from the drawn paths."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from xml.etree.ElementTree import Element

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markup_reading import corners, parse, percent, said, styled

from mlx_companion.loop.curves import (
    HEIGHT,
    WIDTH,
    Scale,
    Series,
    bin_edges,
    curves,
    histogram,
    readings,
)


def linear(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float]:
    """Slope and intercept through the extreme points; asserts that all lie on that line."""
    i, j = int(np.argmin(xs)), int(np.argmax(xs))
    slope = (ys[j] - ys[i]) / (xs[j] - xs[i])
    intercept = ys[i] - slope * xs[i]
    # Coordinates are written with one decimal.
    assert np.allclose(np.asarray(xs) * slope + intercept, ys, atol=0.11)
    return slope, intercept


def test_a_curve_is_to_scale_and_agrees_with_its_ticks() -> None:
    points = [(float(step), 3.2 * 0.9**step + 0.4) for step in range(0, 60, 3)]
    root = parse(curves([Series(points, "train")], title="t", x="step", y="loss"))
    (path,) = styled(root, "path", "train")
    places = corners(path)
    across = linear([x for x, _ in points], [x for x, _ in places])
    up = linear([y for _, y in points], [y for _, y in places])
    assert across[0] > 0, "steps grow to the right"
    assert up[0] < 0, "a smaller loss stands lower"
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in places)
    texts = [(said(t), t.get("x", ""), float(t.get("y", 0))) for t in root.iter("text")]
    y_ticks = [(float(s), y - 4) for s, x, y in texts if x == "-8"]
    x_ticks = [(float(s), float(x[:-1]) * 10) for s, x, y in texts if y == HEIGHT + 18]
    assert len(y_ticks) >= 3
    assert len(x_ticks) >= 3
    assert all(y == pytest.approx(v * up[0] + up[1], abs=0.2) for v, y in y_ticks)
    assert all(x == pytest.approx(v * across[0] + across[1], abs=0.2) for v, x in x_ticks)


def test_series_share_their_axes() -> None:
    train = [(float(i), 2.0 - i / 10) for i in range(11)]
    valid = [(0.0, 2.5), (5.0, 1.5), (10.0, 1.2)]
    root = parse(
        curves([Series(train, "train"), Series(valid, "valid", dots=True)], title="", x="", y="")
    )
    (path,), (other,) = styled(root, "path", "train"), styled(root, "path", "valid")
    slope, intercept = linear([y for _, y in train], [y for _, y in corners(path)])
    assert [y for _, y in corners(other)] == pytest.approx(
        [v * slope + intercept for _, v in valid], abs=0.2
    )
    dots = styled(root, "circle", "valid")
    assert [percent(dot, "cx") for dot in dots] == [0, 0.5, 1]
    assert [float(dot.get("cy", 0)) for dot in dots] == pytest.approx(
        [y for _, y in corners(other)], abs=0.06
    )


def test_values_that_are_no_numbers_break_the_curve() -> None:
    values: list[float | None] = [2.0, 1.8, None, 1.7, 1.6, 1.5, None, 1.4]
    points = [(float(i), value) for i, value in enumerate(values)]
    root = parse(curves([Series(points, "train")], title="", x="", y=""))
    assert [len(corners(p)) for p in styled(root, "path", "train")] == [2, 3]
    crosses = styled(root, "text", "broken")
    assert [percent(c, "x") for c in crosses] == pytest.approx([2 / 7, 6 / 7], abs=1e-5)


@pytest.mark.parametrize(
    "points", [[(1.0, 2.0)], [(1.0, None)], [(0.0, 5.0), (1.0, 5.0)], [(3.0, 0.0), (3.0, 1.0)],
               [(0.0, 1e-12), (1e6, 1e12)]],
)  # fmt: skip
def test_odd_curves_are_drawn(points: list[tuple[float, float | None]]) -> None:
    root = parse(curves([Series(points, "train", dots=True)], title="", x="", y=""))
    places = [float(c.get("cy", "nan")) for c in root.iter("circle")]
    assert all(0 <= y <= HEIGHT for y in places)
    assert len(places) == sum(value is not None for _, value in points)


def test_no_points_no_chart() -> None:
    assert curves([Series([], "train")], title="", x="", y="") is None


def test_readings_are_sorted_and_cleaned() -> None:
    given_pairs = [[3, 1.5], [1, float("nan")], [2, None], ["x", 1], [4], None, [0, float("inf")]]
    assert readings(given_pairs) == [(0.0, None), (1.0, None), (2.0, None), (3.0, 1.5)]
    assert readings(None) == []


FINITE = st.floats(-1e9, 1e9, allow_nan=False)


@given(st.lists(FINITE, min_size=1, max_size=20), st.integers(2, 8), st.booleans())
@settings(max_examples=200)
def test_a_scale_holds_its_values_on_round_ticks(
    values: list[float], most: int, whole: bool
) -> None:
    scale = Scale.around(values, most, whole=whole)
    slack = 1e-6 * max(1.0, abs(scale.low), abs(scale.high))
    assert scale.low <= min(values) + slack
    assert scale.high >= max(values) - slack
    assert scale.share(scale.low) == 0
    assert scale.share(scale.high) == 1
    assert 2 <= len(scale.ticks) <= most + 2
    step = (scale.high - scale.low) / (len(scale.ticks) - 1)
    mantissa = step / 10 ** math.floor(math.log10(step) + 1e-6)
    assert min(abs(mantissa - nice) for nice in (1, 2, 2.5, 5, 10)) < 1e-3
    assert np.allclose(np.diff(scale.ticks), step, rtol=1e-3)
    if whole:
        assert all(tick == round(tick) for tick in scale.ticks)


@given(st.lists(FINITE, min_size=2, max_size=9, unique=True))
def test_tick_labels_tell_ticks_apart(values: list[float]) -> None:
    scale = Scale.around([v / 1e5 for v in values])
    labels = [scale.label(tick) for tick in scale.ticks]
    assert len(set(labels)) == len(labels)


# Distribution of relevance


def areas(root: Element, style: str) -> Iterator[tuple[float, float, float]]:
    """The bins of a step area: left and right x, and height (in its own coordinates)."""
    (path,) = styled(root, "path", style)
    places = corners(path)[1:-1]
    for (left, top), (right, _) in zip(places[::2], places[1::2], strict=True):
        yield left, right, HEIGHT - top


RELEVANCE = st.lists(st.floats(-1, 1, allow_subnormal=False), min_size=1, max_size=60)


@given(RELEVANCE, RELEVANCE, st.floats(-0.5, 0.8))
def test_the_area_right_of_the_threshold_counts_what_reaches_it(
    before: list[float], after: list[float], threshold: float
) -> None:
    # A value within rounding of an edge may be counted on either side of it.
    edges = np.asarray(bin_edges([*before, *after], threshold))
    for values in (before, after):
        values[:] = [v for v in values if np.abs(edges - v).min() > 1e-6] or [threshold + 0.01]
    root = parse(histogram(before, after, threshold, title="", x="relevance"))
    (line,) = styled(root, "line", "threshold")
    border = percent(line, "x1") * WIDTH
    for style, values in (("before", before), ("after", after)):
        bins = list(areas(root, style))
        unit = sum(height for _, _, height in bins) / len(values)
        reached = sum(height for left, _, height in bins if left > border - 0.2)
        assert reached / unit == pytest.approx(sum(v >= threshold for v in values), abs=0.05)


def test_both_distributions_share_one_scale() -> None:
    root = parse(histogram([0.11] * 3, [0.52] * 12, 0.3, title="", x=""))
    tall = [max(height for _, _, height in areas(root, style)) for style in ("before", "after")]
    assert tall[1] == pytest.approx(4 * tall[0], abs=0.3)
    assert "threshold 0.30" in said(root)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=30), st.none() | st.floats(-1, 1))
def test_bins_cover_the_values_and_border_on_the_threshold(
    values: list[float], threshold: float | None
) -> None:
    edges = bin_edges(values, threshold)
    assert edges[0] <= min(values) + 1e-9
    assert edges[-1] >= max(values) - 1e-9
    assert np.allclose(np.diff(edges), edges[1] - edges[0])
    if threshold is not None:
        assert min(abs(edge - threshold) for edge in edges) < 1e-9


def test_a_histogram_without_threshold_or_values() -> None:
    assert histogram([], [], 0.3, title="", x="") is None
    root = parse(histogram([0.2, 0.4], [], None, title="", x=""))
    assert styled(root, "line", "threshold") == []
