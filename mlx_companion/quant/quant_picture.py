"""The picture of a quantization: bits and error of each layer, from first to last.

Above, how many bits per weight each layer got; below, what it costs (nats, where layers were
measured; else the squared error over the squared size, in per cent). SVG without a library, in the
reader's light or dark setting; each bar says its layer when pointed at.

    Path("report.svg").write_text(report_picture(report))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

if TYPE_CHECKING:
    from mlx_companion.quant.quant_report import LayerReport, QuantReport

_WIDTH, _LEFT, _RIGHT, _PANEL, _GAP, _TOP = 860, 64, 20, 150, 58, 84
_COLORS = {"attention": "#3d6fb4", "feed-forward": "#b4770e", "embedding and head": "#0a8f7f",
           "other": "#8a63b0"}  # fmt: skip
_WORDS = {
    "attention": ("attn", "attention", "q_proj", "k_proj", "v_proj", "o_proj"),
    "feed-forward": ("mlp", "intermediate", "output", "experts"),
    "embedding and head": ("embed", "lm_head"),
}
_STYLE = """
svg { --paper: #ffffff; --ink: #1d2128; --muted: #5a606c; --grid: #e2dfd8; }
@media (prefers-color-scheme: dark) { svg { --paper: #121418; --ink: #e6e8ec; --muted: #a1a8b5;
  --grid: #2b3039; } }
text { font: 12px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; fill: var(--muted); }
.paper { fill: var(--paper); } .title { font-size: 15px; font-weight: 600; fill: var(--ink); }
.tick { text-anchor: end; } .grid { stroke: var(--grid); }
"""


def report_picture(report: QuantReport) -> str:
    """The picture as SVG text."""
    height = _TOP + 2 * _PANEL + _GAP + 44
    size = {"viewBox": f"0 0 {_WIDTH} {height}", "width": str(_WIDTH), "height": str(height)}
    root = ET.Element("svg", {"xmlns": "http://www.w3.org/2000/svg", "role": "img", **size})
    title = f"{report.level} ({report.recipe}): {report.bits_per_weight:.2f} bits per weight"
    ET.SubElement(root, "title").text = f"{title}, {report.measure} {report.divergence:.5f}"
    ET.SubElement(root, "style").text = _STYLE
    _rect(root, 0, 0, _WIDTH, height, **{"class": "paper"})
    _text(root, 20, 26, title, "title")
    unit = "KL to the original" if report.measure == "kl" else "1 - cosine"
    note = f"{unit} {report.divergence:.4f}, same choice {report.agreement:.1%}"
    _text(root, 20, 46, f"{note}, {report.bytes / 1e6:,.1f} MB")
    known = any(layer.loss is not None for layer in report.layers)
    costs = [(own.loss or 0.0) if known else 100 * own.error for own in report.layers]
    _panel(root, _TOP, "bits per weight", report.layers, [o.bits_per_weight for o in report.layers])
    label = "expected loss of the layer alone, nats" if known else "squared error, % of the weights"
    _panel(root, _TOP + _PANEL + _GAP, label, report.layers, costs)
    _legend(root, height - 14)
    return ET.tostring(root, encoding="unicode") + "\n"


def _panel(
    root: ET.Element, top: float, label: str, layers: Sequence[LayerReport], values: Sequence[float]
) -> None:
    most = max(values, default=0.0) or 1.0
    _text(root, _LEFT, top - 8, label)
    for share in (0.0, 0.5, 1.0):
        y = top + _PANEL * (1 - share)
        place = {"x1": str(_LEFT), "x2": str(_WIDTH - _RIGHT), "y1": f"{y:.1f}", "y2": f"{y:.1f}"}
        ET.SubElement(root, "line", place | {"class": "grid"})
        _text(root, _LEFT - 6, y + 4, f"{most * share:.3g}", "tick")
    step = (_WIDTH - _LEFT - _RIGHT) / max(len(layers), 1)
    for number, (layer, value) in enumerate(zip(layers, values, strict=True)):
        size = _PANEL * value / most
        own = _rect(
            root, _LEFT + number * step, top + _PANEL - size, max(step * 0.85, 0.6), size,
            fill=_COLORS[_kind(layer.path)],
        )  # fmt: skip
        ET.SubElement(own, "title").text = f"{layer.path}: {layer.packing}, {value:.4g}"


def _kind(path: str) -> str:
    for kind, words in _WORDS.items():
        if any(word in path for word in words):
            return kind
    return "other"


def _legend(root: ET.Element, y: float) -> None:
    x = float(_LEFT)
    for name, color in _COLORS.items():
        _rect(root, x, y - 10, 11, 11, fill=color)
        _text(root, x + 16, y, name)
        x += 40 + 6.8 * len(name)


def _rect(root: ET.Element, x: float, y: float, w: float, h: float, **more: str) -> ET.Element:
    places = {"x": f"{x:.1f}", "y": f"{y:.1f}", "width": f"{w:.1f}", "height": f"{h:.1f}"}
    return ET.SubElement(root, "rect", places | more)


def _text(root: ET.Element, x: float, y: float, text: str, style: str = "note") -> None:
    ET.SubElement(root, "text", {"x": f"{x:.1f}", "y": f"{y:.1f}", "class": style}).text = text
