"""The pictures of `blt_bpb`: where things lie, and that they can be read."""

from __future__ import annotations

import itertools
import math
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from benchmarks import bpb_plot
from benchmarks.bpb_plot import HEIGHT, WIDTH, linear, logarithmic
from benchmarks.bpb_text import scientific

SVG = "{http://www.w3.org/2000/svg}"
POINTS = {
    "flat": (4.7e6, 2.05),
    "token": (2.6e6, 1.93),
    "blt-space": (1.2e6, 1.98),
    "blt-entropy": (1.37e6, 1.925),
}


def model(flops: float, bits: float, curve: list[tuple[float, float]]) -> dict[str, Any]:
    histogram = {"1": 30, "2": 10, "6": 50, "21": 6, "40": 4}
    return {
        "bits_per_byte": bits,
        "inference_flops_per_byte": {"total": flops},
        "position_bytes": {"mean": 5.5, "histogram": histogram},
        "training": {"flops": 2e14, "curve": curve},
    }


def result(points: dict[str, tuple[float, float]] = POINTS) -> dict[str, Any]:
    curve = [(i * 2.5e12, 1.9 + 6 / i) for i in range(1, 81)]
    return {
        "models": {name: model(*point, curve) for name, point in points.items()},
        "held_out_bytes": 1_200_000,
        "flops": 2e14,
        "aim_flops_share": 0.6,
    }


def drawn(text: str) -> ET.Element:
    return ET.fromstring(text)


def named(svg: ET.Element, style: str) -> list[ET.Element]:
    return [found for found in svg.iter() if style in found.get("class", "").split()]


def box(label: ET.Element) -> tuple[float, float, float, float]:
    """Where a text lies, with 6.3 pixels a letter."""
    width, x, y = 6.3 * len(label.text or ""), float(label.get("x", 0)), float(label.get("y", 0))
    left = {"start": x, "middle": x - width / 2, "end": x - width}[label.get("text-anchor", "")]
    return left, y - 9, left + width, y + 2


def center(mark: ET.Element) -> tuple[float, float]:
    if mark.tag == f"{SVG}circle":
        return float(mark.get("cx", 0)), float(mark.get("cy", 0))
    corners = [tuple(map(float, c.split(","))) for c in mark.get("points", "").split()]
    xs, ys = zip(*corners, strict=True)
    return (min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2


@pytest.mark.parametrize("picture", [bpb_plot.cost, bpb_plot.training, bpb_plot.patches])
def test_every_text_lies_on_the_paper(picture: Any) -> None:
    svg = drawn(picture(result()))
    assert svg.get("viewBox") == f"0 0 {WIDTH} {HEIGHT}"
    for label in svg.iter(f"{SVG}text"):
        if "rotate" not in label.get("transform", ""):
            left, top, right, bottom = box(label)
            assert left >= 0, label.text
            assert right <= WIDTH, label.text
            assert top >= 0 < bottom <= HEIGHT, label.text


def test_points_lie_where_their_figures_put_them() -> None:
    svg = drawn(bpb_plot.cost(result()))
    places = {name: center(named(svg, name)[0]) for name in POINTS}
    (x1, y1), (x2, y2) = places["token"], places["flat"]
    for name, (flops, bits) in POINTS.items():
        share = math.log(flops / 2.6e6) / math.log(4.7e6 / 2.6e6)
        assert places[name][0] == pytest.approx(x1 + share * (x2 - x1), abs=0.7)
        assert places[name][1] == pytest.approx(y1 + (bits - 1.93) / 0.12 * (y2 - y1), abs=1)
    assert y2 < y1 < HEIGHT


def test_the_field_of_the_aim_ends_at_the_token_models_figures() -> None:
    svg = drawn(bpb_plot.cost(result()))
    (aim,) = named(svg, "aim")
    places = {name: center(named(svg, name)[0]) for name in POINTS}
    assert float(aim.get("y", 0)) == pytest.approx(places["token"][1], abs=0.7)
    per_factor = (places["flat"][0] - places["token"][0]) / math.log(4.7 / 2.6)
    right = float(aim.get("x", 0)) + float(aim.get("width", 0))
    assert right == pytest.approx(places["token"][0] + per_factor * math.log(0.6), abs=0.7)
    without = {name: point for name, point in POINTS.items() if name != "token"}
    assert named(drawn(bpb_plot.cost(result(without))), "aim") == []


@pytest.mark.parametrize("gap", [0.0, 0.001, 0.004])
def test_names_of_points_that_are_close_do_not_overlap(gap: float) -> None:
    close = {name: (1e6 * (1 + i * gap), 2 + i * gap) for i, name in enumerate(POINTS)}
    labels = [box(label) for label in named(drawn(bpb_plot.cost(result(close))), "name")]
    assert len(labels) == 4
    for i, a in enumerate(labels):
        for b in labels[:i]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_names_of_curves_stand_below_each_other() -> None:
    svg = drawn(bpb_plot.training(result()))
    heights = sorted(float(label.get("y", 0)) for label in named(svg, "name"))
    assert all(b - a >= 15.9 for a, b in itertools.pairwise(heights))
    assert {label.text for label in named(svg, "name")} == set(POINTS)
    for name in POINTS:
        (curve,) = [found for found in named(svg, "curve") if name in found.get("class", "")]
        ys = [float(c.split(",")[1]) for c in curve.get("points", "").split()]
        # 72 of 80 points: the first tenth is cut off. Loss falls, so the curve goes down.
        assert 72 <= len(ys) < 80
        assert ys == sorted(ys)


def test_a_training_of_one_point_can_be_drawn() -> None:
    one = result({"token": POINTS["token"]})
    one["models"]["token"]["training"]["curve"] = [(2e14, 1.9)]
    assert len(named(drawn(bpb_plot.training(one)), "curve")) == 1
    assert len(named(drawn(bpb_plot.cost(one)), "name")) == 1


def test_bars_of_patches_add_up() -> None:
    svg = drawn(bpb_plot.patches(result()))
    for name in ("blt-space", "blt-entropy"):
        bars = [b for b in named(svg, "mark") if name in b.get("class", "").split()]
        # 20 lengths, the longer ones together, and the key.
        heights = [float(bar.get("height", 0)) for bar in bars][:21]
        assert len(bars) == 22
        assert heights[5] == max(heights) > 200
        shares = [height / sum(heights) for height in heights]
        assert shares[0] == pytest.approx(0.3, abs=1e-3)
        assert shares[20] == pytest.approx(0.1, abs=1e-3)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (1.893, 2.081, [1.9, 1.95, 2.0, 2.05]),
        (0, 2.0004e14, [0, 5e13, 1e14, 1.5e14, 2e14]),
        (0, 23, [0, 5, 10, 15, 20]),
    ],
)
def test_ticks_are_round_numbers(low: float, high: float, ticks: list[float]) -> None:
    assert list(linear(low, high, "").ticks) == pytest.approx(ticks)


def test_ticks_of_a_logarithmic_axis() -> None:
    axis = logarithmic(9e5, 5.9e6, "")
    assert list(axis.ticks) == pytest.approx([1e6, 2e6, 3e6, 5e6])
    assert axis.share(9e5) == 0
    assert axis.share(5.9e6) == 1
    assert axis.share(math.sqrt(9e5 * 5.9e6)) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(2e14, "2e14"), (2.0004e14, "2e14"), (1.905e14, "1.905e14"), (0.0, "0e0")],
)
def test_numbers_of_operations(value: float, expected: str) -> None:
    assert scientific(value) == expected
