"""Pictures for `finetune_and_fuse.ipynb`: lines over steps or layers, on `byte_pictures`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from byte_pictures import GRID, INK, MUTED, OPEN, Picture

COLORS = ("#b4450e", "#0a7167", "#2e639e", "#7d4e9e", "#8a6d00", "#b02a5b", "#5a606c")
LEFT, TOP, WIDE, HIGH, LEGEND = 64, 48, 460, 190, 150
Points = Sequence[tuple[float, float]]


def lines(
    series: Mapping[str, Points],
    title: str,
    x_name: str,
    y_name: str,
    *,
    level: float | None = None,
    top: float | None = None,
) -> Picture:
    """Lines with a dot at each point, and their names beside them.

    Args:
        series: points (x, y) by name, x in whole numbers; at least one.
        title: above the picture.
        x_name, y_name: of the axes, with units.
        level: a horizontal line to draw, such as a limit.
        top: where the upright axis ends; by default at the highest point.
    """
    points = [point for line in series.values() for point in line]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    right, high = max(*xs, min(xs) + 1), max(top or max(ys), 1e-9)
    low = min(0.0, *ys)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - min(xs)) / (right - min(xs))
        return LEFT + WIDE * across, TOP + HIGH * (1 - (y - low) / (high - low))

    picture = Picture(LEFT + WIDE + LEGEND, TOP + HIGH + 46, title)
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        value = low + share * (high - low)
        y = place(min(xs), value)[1]
        picture.path(f"M{LEFT} {y:.1f}H{LEFT + WIDE}", GRID)
        picture.text(f"{value:.2f}", LEFT - 8, y + 4, anchor="end")
    for share in (0.0, 0.5, 1.0):
        # Steps and layers are whole.
        value = round(min(xs) + share * (right - min(xs)))
        picture.text(str(value), place(value, low)[0], TOP + HIGH + 16)
    picture.text(x_name, LEFT + WIDE / 2, TOP + HIGH + 34)
    picture.text(y_name, 14, TOP - 10, anchor="start")
    if level is not None:
        y = place(min(xs), level)[1]
        picture.path(f"M{LEFT} {y:.1f}H{LEFT + WIDE}", OPEN, 1.5)
        picture.text(f"{level:g}", LEFT + WIDE + 6, y + 4, color=OPEN, anchor="start")
    for number, (name, line) in enumerate(series.items()):
        color = COLORS[number % len(COLORS)]
        _draw(picture, [place(*point) for point in sorted(line)], color)
        y = TOP + 14 + 18 * number
        picture.rect(LEFT + WIDE + 34, y - 9, 10, 10, color)
        picture.text(name, LEFT + WIDE + 50, y, color=INK if number < 2 else MUTED, anchor="start")
    return picture


def _draw(picture: Picture, places: Points, color: str) -> None:
    steps = [f"{x:.1f} {y:.1f}" for x, y in places]
    picture.path("M" + "L".join(steps), color, 1.5)
    if len(places) <= 64:
        for x, y in places:
            picture.rect(x - 2, y - 2, 4, 4, color)
