"""A picture of a plan's memory: one bar per plan, its parts side by side, and where memory ends.

The longest bar and the machine's memory share one scale. What is over the line of usable memory
does not fit. The picture is SVG, without a library, and follows the reader's light or dark setting.

    save_picture([plan("llama3.1-8b", "m4-pro-24", bits=4)], "memory.svg")
    save_picture(context_cost("llama3.1-8b", "m4-pro-24"), "contexts.svg")
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

from mlx_companion.errors import DataError
from mlx_companion.quant.plan import Plan
from mlx_companion.runtime.files import atomic_write_text

_WIDTH, _LEFT, _RIGHT, _TOP, _ROW, _BAR = 860, 150, 90, 92, 46, 26
_LEGEND = 20
# Of a character of the text's size, on the wide side.
_CHARACTER = 6.6
_COLORS = {
    "weights": "#3d6fb4", "cache": "#0a8f7f", "working": "#9aa3b2", "adapters": "#b4770e",
    "gradients": "#c9574f", "optimizer": "#8a63b0", "activations": "#0a8f7f",
    "backward": "#9aa3b2", "logits": "#d99a3d",
}  # fmt: skip
_STYLE = """
svg { --paper: #ffffff; --ink: #1d2128; --muted: #5a606c; --grid: #d9d6ce; --limit: #b4310e; }
@media (prefers-color-scheme: dark) { svg { --paper: #121418; --ink: #e6e8ec; --muted: #a1a8b5;
  --grid: #343a45; --limit: #ff8f6b; } }
text { font: 12px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; fill: var(--muted); }
.paper { fill: var(--paper); } .track { fill: none; stroke: var(--grid); }
.title { font-size: 15px; font-weight: 600; fill: var(--ink); }
.name { fill: var(--ink); text-anchor: end; } .total { fill: var(--ink); }
.over { fill: var(--limit); font-weight: 600; }
.limit { stroke: var(--limit); stroke-width: 1.5; stroke-dasharray: 5 4; }
.end { text-anchor: middle; } .limit-name { fill: var(--limit); text-anchor: middle; }
"""


def save_picture(plans: Sequence[Plan], path: str | Path, *, title: str | None = None) -> Path:
    """Write the picture to a file.

    Args:
        plans: of one machine; at least one.
        path: of a file that ends in `.svg`.
        title: above the picture; by default model and machine.

    Raises:
        DataError: another ending.
        DiskFullError: there is no space.
    """
    target = Path(path)
    if target.suffix.lower() != ".svg":
        raise DataError("the picture is SVG; give a name that ends in .svg", path=target)
    atomic_write_text(target, memory_picture(plans, title=title))
    return target


def memory_picture(plans: Sequence[Plan], *, title: str | None = None) -> str:
    """The picture as SVG text. Arguments as of `save_picture`."""
    place = plans[0].machine
    names = [part for part in _COLORS if any(part in found.parts for found in plans)]
    height = _TOP + len(plans) * _ROW + 26 + _LEGEND
    scale = (_WIDTH - _LEFT - _RIGHT) / max(place.memory, *(found.total for found in plans))
    work = "LoRA training" if plans[0].training else "generation"
    named = f"{plans[0].shape.name} ({plans[0].quantization.name}), {work}"
    shown = title or f"{named}: memory on {place.name}"
    root = ET.Element(
        "svg", xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {_WIDTH} {height}", role="img"
    )
    root.set("width", str(_WIDTH))
    ET.SubElement(root, "title").text = shown
    ET.SubElement(root, "desc").text = "; ".join(map(_sentence, plans))
    ET.SubElement(root, "style").text = _STYLE
    _rect(root, 0, 0, _WIDTH, height, **{"class": "paper"})
    _text(root, 20, 28, shown, "title")
    one_context = len({(found.context, found.training is None) for found in plans}) == 1
    for row, found in enumerate(plans):
        _bar(root, _TOP + row * _ROW, found, scale, "" if one_context else f"{found.context:,}")
    _limit(root, place.usable * scale, height - _LEGEND - 22, place.usable)
    _legend(root, height - 16, names)
    return ET.tostring(root, encoding="unicode") + "\n"


def _bar(root: ET.Element, y: float, found: Plan, scale: float, context: str) -> None:
    label = f"{context} positions" if context else found.shape.name
    _text(root, _LEFT - 10, y + _BAR / 2 + 4, label, "name")
    _rect(root, _LEFT, y, found.machine.memory * scale, _BAR, **{"class": "track"})
    x = float(_LEFT)
    for part, color in _COLORS.items():
        size = found.parts.get(part, 0) * scale
        if size:
            own = _rect(root, x, y, size, _BAR, fill=color)
            ET.SubElement(own, "title").text = f"{part}: {_gb(found.parts[part])}"
        x += size
    end = max(x, _LEFT + found.machine.memory * scale)
    style = "total" if found.fits else "total over"
    _text(root, end + 8, y + _BAR / 2 + 4, _gb(found.total), style)


def _limit(root: ET.Element, size: float, bottom: float, usable: int) -> None:
    x = f"{_LEFT + size:.1f}"
    ET.SubElement(
        root, "line", {"x1": x, "x2": x, "y1": "66", "y2": f"{bottom:.1f}", "class": "limit"}
    )
    _text(root, _LEFT + size, 58, f"usable: {_gb(usable)}", "limit-name")


def _legend(root: ET.Element, y: float, names: Sequence[str]) -> None:
    x = float(_LEFT)
    for name in names:
        _rect(root, x, y - 10, 11, 11, fill=_COLORS[name])
        _text(root, x + 16, y, name, "key")
        x += 34 + _CHARACTER * len(name)


def _rect(root: ET.Element, x: float, y: float, w: float, h: float, **more: str) -> ET.Element:
    places = {"x": f"{x:.1f}", "y": f"{y:.1f}", "width": f"{w:.1f}", "height": f"{h:.1f}"}
    return ET.SubElement(root, "rect", places | more)


def _text(root: ET.Element, x: float, y: float, text: str, style: str) -> None:
    ET.SubElement(root, "text", {"x": f"{x:.1f}", "y": f"{y:.1f}", "class": style}).text = text


def _sentence(found: Plan) -> str:
    parts = ", ".join(f"{name} {_gb(size)}" for name, size in found.parts.items())
    return f"{found.shape.name} at {found.context:,}: {parts}; in all {_gb(found.total)}"


def _gb(size: int) -> str:
    """Such as 4.5 GB, 812 MB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
