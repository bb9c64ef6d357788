"""The pictures of `blt_bpb`: SVG, without a library, in the reader's light or dark setting.

cost(result)        bits per byte against inference FLOPs per byte, and where the aim lies
training(result)    bits per byte of the training text against training FLOPs
patches(result)     how long the patches of the held-out book are

Each takes what `bpb_report.collect` gives and returns the text of a file. Models have a shape or a
dash as well as a color, and their names stand beside what they are the names of.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree as ET

from benchmarks.bpb_text import scientific

WIDTH, HEIGHT = 760, 460
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 30, 78, 58
# Widths of letters, on average, in the sizes of the style sheet.
_LETTER = 6.6
_NAMES_RIGHT = 104

_STYLE = """
svg { --paper: #ffffff; --ink: #1d2128; --muted: #5a606c; --grid: #e2dfd8; --aim: #e2efec;
  --flat: #6a4fb3; --token: #b4450e; --blt-space: #1f6fb8; --blt-entropy: #0a7167; }
@media (prefers-color-scheme: dark) { svg { --paper: #121418; --ink: #e6e8ec; --muted: #a1a8b5;
  --grid: #2b3039; --aim: #17302c; --flat: #b7a4f2; --token: #f2925a; --blt-space: #79b8f0;
  --blt-entropy: #45c4b2; } }
text { font: 12px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; fill: var(--muted); }
.paper { fill: var(--paper); } .aim { fill: var(--aim); }
.title { font-size: 16px; font-weight: 600; fill: var(--ink); }
.grid { stroke: var(--grid); stroke-width: 1; } .axis { stroke: var(--muted); stroke-width: 1; }
.curve { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.lead { stroke: var(--muted); stroke-width: .8; stroke-opacity: .6; }
.name { font-weight: 600; }
.name { paint-order: stroke; stroke: var(--paper); stroke-width: 4px;
  stroke-linejoin: round; }
.flat { --own: var(--flat); } .token { --own: var(--token); }
.blt-space { --own: var(--blt-space); } .blt-entropy { --own: var(--blt-entropy); }
.mark, .name { fill: var(--own); } .curve { stroke: var(--own); }
.curve.flat { stroke-dasharray: 7 3; } .curve.token { stroke-dasharray: 2 2.5; }
.curve.blt-space { stroke-dasharray: 10 3 2 3; }
"""


@dataclass(frozen=True)
class Axis:
    """One axis.

    Attributes:
        low, high: its ends.
        label: what it measures, with the unit.
        log: whether equal factors are equal distances.
        ticks: where there are numbers.
    """

    low: float
    high: float
    label: str
    log: bool = False
    ticks: Sequence[float] = ()

    @property
    def decimals(self) -> int:
        """Digits behind the point that tell the ticks apart."""
        return max((len(f"{tick:g}".partition(".")[2]) for tick in self.ticks), default=0)

    def share(self, value: float) -> float:
        """Where a value lies: 0 at the lower end, 1 at the upper."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def linear(low: float, high: float, label: str) -> Axis:
    """An axis with about six round numbers."""
    raw = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(m for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    ticks = [round(i * step, 10) for i in range(first, math.floor(high / step + 1e-9) + 1)]
    return Axis(low, high, label, ticks=ticks)


def logarithmic(low: float, high: float, label: str) -> Axis:
    """A logarithmic axis; numbers at 1, 2, 3, 5, 7 times powers of ten."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [m * 10.0**p for p in powers for m in (1, 2, 3, 5, 7)]
    return Axis(low, high, label, log=True, ticks=[t for t in ticks if low <= t <= high])


class Chart:
    """A frame with two axes to draw into.

    Args:
        title, note: above it.
        x, y: the axes.
        right: room on the right for names.
    """

    def __init__(self, title: str, note: str, x: Axis, y: Axis, right: int = _RIGHT) -> None:
        self.x, self.y, self.right = x, y, WIDTH - right
        size = {"viewBox": f"0 0 {WIDTH} {HEIGHT}", "width": str(WIDTH), "height": str(HEIGHT)}
        space = {"xmlns": "http://www.w3.org/2000/svg", "role": "img"}
        self.svg = ET.Element("svg", {**space, **size})
        self.add("title").text = f"{title}: {note}"
        self.add("style").text = _STYLE
        self.add("rect", "paper", width=WIDTH, height=HEIGHT)
        self.text(title, _LEFT, 28, "title")
        self.text(note, _LEFT, 49)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """The point of two values, in pixels."""
        across = _LEFT + (self.right - _LEFT) * self.x.share(x)
        return across, HEIGHT - _BOTTOM - (HEIGHT - _BOTTOM - _TOP) * self.y.share(y)

    def axes(self) -> None:
        """Grid, numbers and labels."""
        floor = HEIGHT - _BOTTOM
        for tick in self.y.ticks:
            _, y = self.at(self.x.low, tick)
            self.line("grid", _LEFT, self.right, y, y)
            self.text(f"{tick:.{self.y.decimals}f}", _LEFT - 8, y + 4, anchor="end")
        for tick in self.x.ticks:
            x, _ = self.at(tick, self.y.low)
            self.line("grid", x, x, _TOP, floor)
            self.text(_short(tick), x, floor + 18, anchor="middle")
        self.line("axis", _LEFT, self.right, floor, floor)
        self.text(self.x.label, (_LEFT + self.right) / 2, floor + 42, anchor="middle")
        y = (floor + _TOP) / 2
        label = self.text(self.y.label, 18, y, anchor="middle")
        label.set("transform", f"rotate(-90 18 {_number(y)})")

    def add(self, name: str, style: str = "", **given: float | str) -> ET.Element:
        """An element; numbers are rounded to what can be seen."""
        values = {
            key.replace("_", "-"): value if isinstance(value, str) else _number(value)
            for key, value in given.items()
        }
        return ET.SubElement(self.svg, name, {"class": style, **values} if style else values)

    def text(
        self, said: str, x: float, y: float, style: str = "", anchor: str = "start"
    ) -> ET.Element:
        """Words at a place."""
        element = self.add("text", style, x=x, y=y, text_anchor=anchor)
        element.text = said
        return element

    def line(self, style: str, x1: float, x2: float, y1: float, y2: float) -> None:
        """A straight line, in pixels."""
        self.add("line", style, x1=x1, x2=x2, y1=y1, y2=y2)

    def mark(self, name: str, x: float, y: float, size: float = 6) -> None:
        """A model's shape, in pixels."""
        corners = _SHAPES[name]
        if not corners:
            self.add("circle", f"mark {name}", cx=x, cy=y, r=size)
            return
        points = " ".join(f"{_number(x + size * a)},{_number(y + size * b)}" for a, b in corners)
        self.add("polygon", f"mark {name}", points=points)

    def done(self) -> str:
        """The file's text."""
        return ET.tostring(self.svg, encoding="unicode") + "\n"


_SHAPES: dict[str, list[tuple[float, float]]] = {
    "flat": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
    "token": [(0, -1.2), (1.2, 0), (0, 1.2), (-1.2, 0)],
    "blt-space": [(0, -1.2), (1.1, 0.9), (-1.1, 0.9)],
    "blt-entropy": [],
}


def cost(result: Mapping[str, Any]) -> str:
    """Bits per byte against inference FLOPs per byte, the latter on a logarithmic axis."""
    models = result["models"]
    points = {
        name: (model["inference_flops_per_byte"]["total"], model["bits_per_byte"])
        for name, model in models.items()
    }
    x = [flops for flops, _ in points.values()]
    y = [bits for _, bits in points.values()]
    token = points.get("token")
    if token is not None:
        x.append(token[0] * result["aim_flops_share"])
    room = max(0.25 * (max(y) - min(y)), 0.02)
    chart = Chart(
        "Bits per byte against the cost of a byte",
        _cost_note(result),
        logarithmic(min(x) / 1.25, max(x) * 1.25, "inference FLOPs per byte (log scale)"),
        linear(min(y) - room, max(y) + room, "bits per byte of the held-out book"),
    )
    if token is not None:
        right, top = chart.at(token[0] * result["aim_flops_share"], token[1])
        width, height = right - _LEFT, HEIGHT - _BOTTOM - top
        chart.add("rect", "aim", x=_LEFT, y=top, width=width, height=height)
    chart.axes()
    places = {name: chart.at(*point) for name, point in points.items()}
    for name, (px, py) in places.items():
        chart.mark(name, px, py)
    _label_points(
        chart, places, {name: f"{name}  {bits:.3f}" for name, (_, bits) in points.items()}
    )
    return chart.done()


def _cost_note(result: Mapping[str, Any]) -> str:
    book = f"held-out book of {result['held_out_bytes'] / 1e6:.2f} MB"
    said = f"{book}, {scientific(result['flops'])} training FLOPs"
    if "token" not in result["models"]:
        return said
    share = f"{result['aim_flops_share']:.0%}"
    return f"{said}; shaded: no more bits than token, at {share} of its FLOPs or less"


def _label_points(
    chart: Chart, places: Mapping[str, tuple[float, float]], labels: Mapping[str, str]
) -> None:
    """Each label beside its point, where it covers neither a point nor another label."""
    taken = [(x - 9, y - 9, x + 9, y + 9) for x, y in places.values()]
    for name, (x, y) in places.items():
        width = len(labels[name]) * _LETTER
        offers = [(x + 12, y + 4), (x - 12 - width, y + 4)]
        offers += [(x - width / 2, y + dy) for dy in (-14, 24, -30, 40, -46, 56)]
        boxes = [(a, b - 12, a + width, b + 4) for a, b in offers]
        free = [
            i
            for i, box in enumerate(boxes)
            if box[0] >= _LEFT
            and box[2] <= chart.right + 20
            and not any(_overlap(box, other) for other in taken)
        ]
        best = free[0] if free else 0
        taken.append(boxes[best])
        chart.text(labels[name], *offers[best], f"name {name}")


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def training(result: Mapping[str, Any]) -> str:
    """Training curves, each with its name at its end."""
    curves = {name: model["training"]["curve"] for name, model in result["models"].items()}
    low = min(y for curve in curves.values() for _, y in curve)
    # The first tenth of a training would squeeze all that is worth seeing.
    high = max(y for curve in curves.values() for _, y in curve[len(curve) // 10 :])
    room = 0.05 * max(high - low, 0.01)
    most = max(model["training"]["flops"] for model in result["models"].values())
    chart = Chart(
        "Training: bits per byte of the training text",
        "means over an eightieth of the training each; blt-entropy begins where its entropy "
        "model ended",
        linear(0, most, "training FLOPs"),
        linear(low - room, high + room, "bits per byte"),
        right=_NAMES_RIGHT,
    )
    chart.axes()
    for name, curve in curves.items():
        seen = [chart.at(x, y) for x, y in curve if y <= high + room]
        points = " ".join(f"{_number(x)},{_number(y)}" for x, y in seen)
        chart.add("polyline", f"curve {name}", points=points)
    _name_ends(chart, {name: chart.at(*curve[-1]) for name, curve in curves.items()})
    return chart.done()


def _name_ends(chart: Chart, ends: Mapping[str, tuple[float, float]]) -> None:
    """Names on the right, in the order of the curves and never one over the other."""
    lowest, last = -math.inf, HEIGHT - _BOTTOM - 16.0 * (len(ends) - 1)
    for name, (x, y) in sorted(ends.items(), key=lambda item: item[1][1]):
        at = max(min(y, last), lowest + 16)
        lowest, last = at, last + 16
        chart.line("lead", x + 2, chart.right + 12, y, at)
        chart.text(name, chart.right + 15, at + 4, f"name {name}")


def patches(result: Mapping[str, Any]) -> str:
    """Patch lengths of the byte latent transformers, as shares of their patches."""
    longest = 20
    counts = {
        name: {int(size): n for size, n in model["position_bytes"]["histogram"].items()}
        for name, model in result["models"].items()
        if name.startswith("blt")
    }
    shares = {name: _shares(count, longest) for name, count in counts.items()}
    top = max(max(share) for share in shares.values())
    means = {name: result["models"][name]["position_bytes"]["mean"] for name in counts}
    chart = Chart(
        "Patch lengths in the held-out book",
        f"share of patches by their length; the last bars are all over {longest} bytes",
        Axis(0.4, longest + 1.6, "bytes per patch"),
        linear(0, 100 * top * 1.08, "% of patches"),
    )
    chart.axes()
    for number, (name, share) in enumerate(shares.items()):
        _bars(chart, name, share, number, 0.8 / len(shares))
        x, y = chart.right - 215.0, _TOP + 18 + 22 * number
        chart.add("rect", f"mark {name}", x=x, y=y - 10, width=11, height=11)
        chart.text(f"{name}, mean {means[name]:.2f} bytes", x + 18, y, f"name {name}")
    for size in range(1, longest + 2):
        x, floor = chart.at(size, 0)
        said = str(size) if size <= longest else f"> {longest}"
        chart.text(said, x, floor + 18, anchor="middle")
    return chart.done()


def _bars(chart: Chart, name: str, shares: Sequence[float], number: int, width: float) -> None:
    """One model's bars; those of the models stand side by side at each length."""
    for size, share in enumerate(shares, 1):
        left, y = chart.at(size - 0.4 + number * width, 100 * share)
        right, floor = chart.at(size - 0.4 + (number + 1) * width, 0)
        chart.add("rect", f"mark {name}", x=left, y=y, width=right - left, height=floor - y)


def _shares(counts: Mapping[int, int], longest: int) -> list[float]:
    total = sum(counts.values())
    short = [counts.get(size, 0) / total for size in range(1, longest + 1)]
    return [*short, sum(n for size, n in counts.items() if size > longest) / total]


def _short(value: float) -> str:
    """2e6 is "2 M", 2e14 stays "2e14"."""
    if value >= 1e9:
        return scientific(value)
    for limit, unit in ((1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.4g} {unit}"
    return f"{value:g}"


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
