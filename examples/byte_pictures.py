"""Pictures for `blt_one_byte.ipynb`: bytes, numbers as colours, bars, and who reads what.

Each function gives a `Picture`, SVG without a library, that a notebook shows as the last value of a
cell. Colours stand in the elements themselves, on a ground of their own: pictures look the same in
a dark notebook, and no style of one reaches another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from xml.etree import ElementTree as ET

import numpy as np

PAPER, INK, MUTED, GRID = "#ffffff", "#1d2128", "#5a606c", "#d9d6ce"
OPEN, FOLLOWED, BAR = "#0a7167", "#b4450e", "#b3bac6"
GROUNDS = ("#f4f2ed", "#d3e8e4")
# From the lowest value over zero (the middle) to the highest.
COLD, WARM = (46, 99, 158), (190, 84, 20)
SHADES = 8

SANS = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
MONO = "ui-monospace, 'SF Mono', Menlo, Consolas, 'DejaVu Sans Mono', monospace"
CELL = 14
LEFT, TOP = 96, 40


class Picture:
    """An SVG picture.

    Args:
        width: in pixels; more where the title needs it.
        height: in pixels.
        title: above the picture; also what a screen reader says.
    """

    def __init__(self, width: float, height: float, title: str) -> None:
        width = max(width, 28 + 8 * len(title))
        size = {"width": _number(width), "height": _number(height)}
        box = {"viewBox": f"0 0 {size['width']} {size['height']}", "role": "img"}
        self.svg = ET.Element("svg", {"xmlns": "http://www.w3.org/2000/svg", **size, **box})
        ET.SubElement(self.svg, "title").text = title
        self.rect(0, 0, width, height, PAPER)
        self.text(title, 14, 22, size=14, color=INK, anchor="start", bold=True)

    def _repr_svg_(self) -> str:
        return ET.tostring(self.svg, encoding="unicode")

    def rect(self, x: float, y: float, width: float, height: float, color: str) -> None:
        """A filled rectangle."""
        place = {"x": x, "y": y, "width": width, "height": height}
        self._add("rect", fill=color, **{name: _number(value) for name, value in place.items()})

    def frame(self, x: float, y: float, width: float, height: float, color: str) -> None:
        """A rectangle's outline."""
        self.rect(x, y, width, height, "none")
        self.svg[-1].attrib |= {"stroke": color, "stroke-width": "2"}

    def path(self, d: str, color: str, width: float = 1.0) -> None:
        """A line along SVG path commands."""
        self._add("path", d=d, fill="none", stroke=color, **{"stroke-width": _number(width)})

    def area(self, d: str, color: str) -> None:
        """What SVG path commands go round."""
        self._add("path", d=d, fill=color)

    def text(
        self,
        text: str,
        x: float,
        y: float,
        size: int = 11,
        color: str = MUTED,
        anchor: str = "middle",
        mono: bool = False,
        bold: bool = False,
    ) -> None:
        """One line of text."""
        look = {"fill": color, "text-anchor": anchor, "font-family": MONO if mono else SANS}
        look |= {"font-size": str(size)} | ({"font-weight": "600"} if bold else {})
        self._add("text", x=_number(x), y=_number(y), **look).text = text

    def label(self, text: str, x: float, y: float, wide: float) -> None:
        """A column's label, smaller where the column is narrow."""
        size = 10 if 6 * len(text) < wide else 7
        self.text(text, x, y, size=size, mono=True)

    def _add(self, name: str, **attributes: str) -> ET.Element:
        return ET.SubElement(self.svg, name, attributes)


class Svg:
    """A picture that is SVG text already."""

    def __init__(self, text: str) -> None:
        self._text = text

    def _repr_svg_(self) -> str:
        return self._text


def letters(data: bytes) -> list[str]:
    """One label per byte: its ASCII character, a dot for a space, else two hexadecimal digits."""
    return ["·" if b == 32 else chr(b) if 32 < b < 127 else f"{b:02x}" for b in data]


def byte_strip(text: str, ids: np.ndarray, followed: int, title: str) -> Picture:
    """A text as characters, bytes and ids.

    Args:
        text: the text.
        ids: (1 + bytes,) with BOS in front.
        followed: the position to point at, BOS being 0.
        title: above the picture.
    """
    cell = 1.25 * CELL
    picture = Picture(LEFT + cell * len(ids) + 14, TOP + 84, title)
    for name, y in (("character", 16), ("byte", 40), ("id", 64)):
        picture.text(name, LEFT - 10, TOP + y, anchor="end")
    at = 1
    for number, character in enumerate(text):
        size = len(character.encode())
        x = LEFT + cell * at
        picture.rect(x, TOP, cell * size, 70, GROUNDS[number % 2])
        shown = "·" if character == " " else character
        picture.text(shown, x + cell * size / 2, TOP + 16, size=13, color=INK, mono=True)
        at += size
    picture.text("BOS", LEFT + cell / 2, TOP + 16, size=8)
    for place, value in enumerate(ids.tolist()):
        x = LEFT + cell * (place + 0.5)
        if place:
            picture.text(f"{value - 4:02x}", x, TOP + 40, size=10, mono=True)
        picture.text(str(value), x, TOP + 64, size=9, mono=True)
    picture.frame(LEFT + cell * followed, TOP, cell, 70, FOLLOWED)
    return picture


def heat(
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    *,
    cell: tuple[float, float] = (CELL, 6),
    breaks: Sequence[int] = (),
    followed: int | None = None,
    note: str = "",
) -> Picture:
    """Numbers as colours: blue below zero, white at zero, orange above.

    Args:
        values: (R, C).
        rows: a label for each row, or none at all.
        columns: a label for each column, or none at all.
        title: above the picture.
        cell: width and height of a number.
        breaks: columns in front of which a patch begins.
        followed: the column to point at.
        note: below the picture.
    """
    count, across = values.shape
    wide, high = cell
    bottom = TOP + high * count
    height = bottom + (20 if columns else 8) + (18 if note else 0)
    picture = Picture(LEFT + wide * across + 14, height, title)
    cells: dict[str, list[str]] = {}
    for row, line in enumerate(values / max(np.abs(values).max(), 1e-9)):
        for column, value in enumerate(line.tolist()):
            x, y = LEFT + wide * column, TOP + high * row
            square = f"M{_number(x)} {_number(y)}h{_number(wide)}v{_number(high)}h-{_number(wide)}z"
            cells.setdefault(_shade(value), []).append(square)
    for color, squares in cells.items():
        picture.area("".join(squares), color)
    for row, label in enumerate(rows):
        picture.text(label, LEFT - 8, TOP + high * (row + 0.5) + 4, anchor="end", mono=True)
    for column, label in enumerate(columns):
        picture.label(label, LEFT + wide * (column + 0.5), bottom + 14, wide)
    for column in breaks:
        x = _number(LEFT + wide * column)
        picture.path(f"M{x} {TOP}V{_number(bottom)}", INK)
    if followed is not None:
        picture.frame(LEFT + wide * followed, TOP, wide, high * count, FOLLOWED)
    picture.text(note, LEFT, height - 8, anchor="start")
    return picture


def bars(
    values: np.ndarray,
    labels: Sequence[str],
    title: str,
    *,
    unit: str = "",
    marked: int | None = None,
    wide: float = CELL,
    line: float | None = None,
) -> Picture:
    """Upright bars.

    Args:
        values: (C,), zero and up.
        labels: one per bar.
        title: above the picture.
        unit: of the values.
        marked: the bar to point at.
        wide: of a bar and the space around it.
        line: a level to draw, such as the mean.
    """
    high, ground = 120, TOP + 130
    top = max(float(values.max()), 1e-9)
    picture = Picture(LEFT + wide * len(values) + 14, ground + 26, title)
    for share in (0.0, 0.5, 1.0):
        y = ground - high * share
        picture.path(f"M{LEFT} {_number(y)}H{_number(LEFT + wide * len(values))}", GRID)
        picture.text(f"{top * share:.3g}", LEFT - 8, y + 4, anchor="end")
    picture.text(unit, 14, ground + 4, anchor="start")
    for place, (value, label) in enumerate(zip(values.tolist(), labels, strict=True)):
        x, height = LEFT + wide * place, high * value / top
        color = FOLLOWED if place == marked else BAR
        picture.rect(x + wide * 0.15, ground - height, wide * 0.7, height, color)
        picture.label(label, x + wide / 2, ground + 16, wide)
    if line is not None:
        y = _number(ground - high * line / top)
        picture.path(f"M{LEFT} {y}H{_number(LEFT + wide * len(values))}", OPEN, 1.5)
    return picture


def links(
    data: bytes, owners: np.ndarray, source: np.ndarray, followed: int, title: str
) -> Picture:
    """Which patch every byte reads.

    Args:
        data: the text, N bytes.
        owners: (1 + N,) the patch of each position, BOS in front.
        source: (1 + N,) the patch that each position reads.
        followed: the position to point at.
        title: above the picture.
    """
    labels = ["BOS", *letters(data)]
    picture = Picture(LEFT + CELL * len(labels) + 14, TOP + 150, title)
    picture.text("bytes", LEFT - 10, TOP + 16, anchor="end")
    picture.text("patches", LEFT - 10, TOP + 126, anchor="end")
    places = np.arange(len(labels))
    middle = {int(p): LEFT + CELL * (places[owners == p].mean() + 0.5) for p in owners}
    for place, label in enumerate(labels):
        ground = GROUNDS[int(owners[place]) % 2]
        x = LEFT + CELL * place
        for y in (TOP, TOP + 110):
            picture.rect(x, y, CELL, 24, ground)
        size = 10 if place else 6
        picture.text(label, x + CELL / 2, TOP + 16, size=size, color=INK, mono=True)
    for place in sorted(range(len(labels)), key=lambda at: at == followed):
        x, target = LEFT + CELL * (place + 0.5), middle[int(source[place])]
        curve = (x, TOP + 26, x, TOP + 70, target, TOP + 66, target, TOP + 108)
        color, width = (FOLLOWED, 2.5) if place == followed else (BAR, 1.0)
        picture.path("M{} {}C{} {} {} {} {} {}".format(*map(_number, curve)), color, width)
    for patch, x in middle.items():
        picture.text(str(patch), x, TOP + 126, size=10, color=INK)
    return picture


def schedule(data: bytes, work: Mapping[str, np.ndarray], title: str) -> Picture:
    """What is computed for each byte.

    Args:
        data: the text, N bytes.
        work: (1 + N,) bool for each part of the model.
        title: above the picture.
    """
    labels = ["", *letters(data)]
    bottom = TOP + 22 * len(work)
    picture = Picture(LEFT + CELL * len(labels) + 60, bottom + 24, title)
    for row, (name, done) in enumerate(work.items()):
        y = TOP + 22 * row
        picture.text(name, LEFT - 10, y + 13, anchor="end")
        color = OPEN if done.all() else FOLLOWED
        for place, computed in enumerate(done.tolist()):
            x = LEFT + CELL * place
            picture.rect(x + 1, y + 1, CELL - 2, 16, color if computed else GROUNDS[0])
        picture.text(f"{int(done.sum())}", LEFT + CELL * len(labels) + 10, y + 13, anchor="start")
    for place, label in enumerate(labels):
        x = LEFT + CELL * (place + 0.5)
        picture.label(label, x, bottom + 12, CELL)
    return picture


def _shade(value: float) -> str:
    """The colour of a value from -1 to 1, one of few."""
    level = round(value * SHADES) / SHADES
    toward = WARM if level > 0 else COLD
    mixed = (round(255 + (end - 255) * abs(level)) for end in toward)
    return "#{:02x}{:02x}{:02x}".format(*mixed)


def _number(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".")
