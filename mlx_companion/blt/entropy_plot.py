"""A picture of a text's patches: how open each byte was, and where that made a patch begin.

Every byte has a column: a bar as high as the entropy of its prediction, and below it the byte as a
character. Bars of bytes that begin a patch stand out, patches have two grounds in turn, and the
threshold is a dashed line. Long texts go over several rows. The picture is SVG, without a library,
and follows the reader's light or dark setting.

    save_plot(patches(model, "Gestern im Café…"), "plot.svg")
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np

from mlx_companion.blt.config import PatchMode
from mlx_companion.blt.render import summary
from mlx_companion.blt.text_patches import TextPatches
from mlx_companion.blt.visible import Shown, visible_characters
from mlx_companion.errors import DataError
from mlx_companion.runtime.files import atomic_write_text

# More than this many bytes make a picture that no one reads, of tens of MB.
MOST_BYTES = 4096

_COLUMNS = 72
_CELL = 14
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 20, 84, 4
_BARS, _LETTERS, _GAP, _LEGEND = 92, 26, 22, 20
# Of a character in the size of the style sheet's "letter".
_WIDE = 7.9
_SPACE = {" ": "·"}
# Rules that hold the entropy itself against the threshold, so that it can be drawn.
_ENTROPY_RULES: tuple[PatchMode, ...] = ("entropy", "combined")

_STYLE = """
svg { --paper: #ffffff; --ink: #1d2128; --muted: #5a606c; --grid: #d9d6ce; --bar: #b3bac6;
  --open: #0a7167; --threshold: #b4450e; --even: #f4f2ed; --odd: #e2efec; }
@media (prefers-color-scheme: dark) { svg { --paper: #121418; --ink: #e6e8ec; --muted: #a1a8b5;
  --grid: #343a45; --bar: #59616f; --open: #45c4b2; --threshold: #f2925a; --even: #1b1e24;
  --odd: #17302c; } }
text { font: 11px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; fill: var(--muted); }
.paper { fill: var(--paper); }
.title { font-size: 15px; font-weight: 600; fill: var(--ink); }
.letter { font: 13px ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
  fill: var(--ink); text-anchor: middle; white-space: pre; }
.mark { fill: var(--muted); }
.byte { font-size: 9px; fill: var(--muted); }
.even { fill: var(--even); } .odd { fill: var(--odd); }
.bar { fill: var(--bar); } .bar.open { fill: var(--open); }
.grid { stroke: var(--grid); stroke-width: 1; }
.boundary { stroke: var(--open); stroke-width: 1; stroke-opacity: .6; }
.threshold { stroke: var(--threshold); stroke-width: 1.5; stroke-dasharray: 5 4; }
.several { stroke: var(--muted); stroke-width: 1; }
"""


def save_plot(patches: TextPatches, path: str | Path, *, title: str | None = None) -> Path:
    """Write the picture to a file.

    Args:
        patches: of the text.
        path: of a file that ends in `.svg`.
        title: above the picture.

    Raises:
        DataError: another ending.
        DiskFullError: there is no space.
    """
    target = Path(path)
    if target.suffix.lower() != ".svg":
        raise DataError("the plot is an SVG picture; give a name that ends in .svg", path=target)
    atomic_write_text(target, entropy_plot(patches, title=title))
    return target


def entropy_plot(patches: TextPatches, *, title: str | None = None) -> str:
    """The picture as SVG text.

    Args:
        patches: of the text; its first `MOST_BYTES` bytes are drawn.
        title: above the picture.
    """
    count = min(len(patches.data), MOST_BYTES)
    rows = math.ceil(count / _COLUMNS)
    columns = min(_COLUMNS, max(count, 40))
    bars = 0 if patches.entropies is None else _BARS
    row_height = bars + _LETTERS + _GAP
    top = _TOP if bars else _TOP - _LEGEND
    width = _LEFT + columns * _CELL + _RIGHT
    height = top + rows * row_height + _BOTTOM
    svg = ET.Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": f"0 0 {width} {height}",
            "width": str(width),
            "height": str(height),
            "role": "img",
        },
    )
    heading = title or _default_title(patches)
    ET.SubElement(svg, "title").text = f"{heading}: {_told(patches, count)}"
    ET.SubElement(svg, "style").text = _STYLE
    ET.SubElement(svg, "rect", {"class": "paper", "width": "100%", "height": "100%"})
    _text(svg, heading, _LEFT, 26, "title")
    _text(svg, _told(patches, count), _LEFT, 45)
    _legend(svg, patches)
    characters = list(visible_characters(patches, count))
    for row in range(rows):
        first, last = row * _COLUMNS, min((row + 1) * _COLUMNS, count)
        _Row(svg, patches, first, last, top + row * row_height, bars).draw(characters)
    return ET.tostring(svg, encoding="unicode") + "\n"


class _Row:
    """One row of columns.

    Args:
        svg: what is drawn into.
        patches: of the text.
        first, last: bytes of the row.
        top: y of its upper end.
        bars: height of the highest bar.
    """

    def __init__(
        self, svg: ET.Element, patches: TextPatches, first: int, last: int, top: int, bars: int
    ) -> None:
        self.svg, self.patches = svg, patches
        self.first, self.last, self.top = first, last, top
        self.bars = bars
        self.ground = top + bars
        self.highest = _highest(patches)

    def draw(self, characters: list[Shown]) -> None:
        """Grounds, grid, bars, boundaries and characters, the later over the earlier."""
        self._grounds()
        if self.patches.entropies is not None:
            self._grid()
            self._bars(self.patches.entropies)
        self._boundaries()
        self._threshold()
        for shown in characters:
            if shown.start < self.last and shown.end > self.first:
                self._character(shown)

    def _x(self, byte: float) -> float:
        return _LEFT + (byte - self.first) * _CELL

    def _y(self, entropy: float) -> float:
        return self.ground - self.bars * entropy / self.highest

    def _grounds(self) -> None:
        for number, start, end in _spans(self.patches, self.first, self.last):
            self._rect(start, end, self.top, self.bars + _LETTERS, ("even", "odd")[number % 2])

    def _grid(self) -> None:
        right = self._x(self.last)
        for tick in _ticks(self.highest):
            y = self._y(tick)
            _line(self.svg, "grid", _LEFT, right, y, y)
            _text(self.svg, f"{tick:g}", _LEFT - 8, y + 4, anchor="end")

    def _bars(self, entropies: np.ndarray) -> None:
        opening = set(self.patches.starts.tolist())
        for byte in range(self.first, self.last):
            y = self._y(float(entropies[byte]))
            style = "bar open" if byte in opening else "bar"
            self._rect(byte + 0.18, byte + 0.82, y, self.ground - y, style)

    def _boundaries(self) -> None:
        for number, start, _ in _spans(self.patches, self.first, self.last):
            if start == self.patches.starts[number]:
                x = self._x(start)
                _line(self.svg, "boundary", x, x, self.top, self.ground + _LETTERS)

    def _threshold(self) -> None:
        rule = self.patches.rule
        if rule.mode in _ENTROPY_RULES and 0 <= rule.threshold <= self.highest:
            y = self._y(rule.threshold)
            _line(self.svg, "threshold", _LEFT, self._x(self.last), y, y)

    def _character(self, shown: Shown) -> None:
        start, end = max(shown.start, self.first), min(shown.end, self.last)
        # A byte's column is too narrow for "\\xc3": its two digits do.
        text = shown.text[2:] if shown.kind == "byte" else _SPACE.get(shown.text, shown.text)
        style = "letter" if shown.kind == "plain" and text == shown.text else "letter mark"
        if len(text) * _WIDE > (end - start) * _CELL:
            style = "letter mark byte"
        _text(self.svg, text, self._x((start + end) / 2), self.ground + 16, style)
        if end - start > 1:
            y = self.ground + 22
            _line(self.svg, "several", self._x(start) + 2, self._x(end) - 2, y, y)

    def _rect(self, start: float, end: float, y: float, height: float, style: str) -> None:
        x, width = self._x(start), (end - start) * _CELL
        place = {"x": _number(x), "y": _number(y)}
        size = {"width": _number(width), "height": _number(height)}
        ET.SubElement(self.svg, "rect", {"class": style, **place, **size})


def _legend(svg: ET.Element, patches: TextPatches) -> None:
    if patches.entropies is None:
        return
    x, y = float(_LEFT), 66
    for style, said in (("bar open", "begins a patch"), ("bar", "goes on with one")):
        place = {"x": _number(x), "y": str(y - 9), "width": "9", "height": "9"}
        ET.SubElement(svg, "rect", {"class": style, **place})
        _text(svg, said, x + 14, y)
        x += 120
    if patches.rule.mode in _ENTROPY_RULES:
        _line(svg, "threshold", x, x + 22, y - 4, y - 4)
        _text(svg, "threshold", x + 28, y)


def _default_title(patches: TextPatches) -> str:
    if patches.entropies is None:
        return "Patches"
    return "Entropy of each byte's prediction (nats)"


def _told(patches: TextPatches, drawn: int) -> str:
    said = summary(patches)
    return said if drawn == len(patches.data) else f"{said}; the first {drawn:,} bytes are shown"


def _highest(patches: TextPatches) -> float:
    """The upper end of the axis, in nats, on a tick."""
    if patches.entropies is None:
        return 1.0
    highest = float(patches.entropies[:MOST_BYTES].max())
    if patches.rule.mode in _ENTROPY_RULES:
        # A threshold that nothing ever reaches would leave no room for the bars.
        highest = max(highest, min(patches.rule.threshold, 2 * highest))
    return max(0.5, math.ceil(highest * 2) / 2)


def _ticks(highest: float) -> list[float]:
    step = 0.5 if highest <= 1.5 else 1.0 if highest <= 4 else 2.0
    return [step * i for i in range(int(highest / step) + 1)]


def _spans(patches: TextPatches, first: int, last: int) -> Iterator[tuple[int, int, int]]:
    """The patches that some bytes belong to: number, and first and last byte within these."""
    for number in range(int(patches.owners[first]), int(patches.owners[last - 1]) + 1):
        start = int(patches.starts[number])
        yield number, max(start, first), min(start + int(patches.lengths[number]), last)


def _text(
    svg: ET.Element, text: str, x: float, y: float, style: str = "", anchor: str = ""
) -> None:
    given = {"class": style, "text-anchor": anchor, "x": _number(x), "y": _number(y)}
    ET.SubElement(svg, "text", {k: v for k, v in given.items() if v}).text = text


def _line(svg: ET.Element, style: str, x1: float, x2: float, y1: float, y2: float) -> None:
    ends = {"x1": x1, "x2": x2, "y1": y1, "y2": y2}
    ET.SubElement(svg, "line", {"class": style, **{k: _number(v) for k, v in ends.items()}})


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
