"""How the round made its training data, what it dropped and why, and how training went."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlx_companion.loop.charts import Bar, Part, bars, stack, swatch
from mlx_companion.loop.curves import Series, curves, readings
from mlx_companion.loop.formats import DASH, count, number, plural, real, share, words
from mlx_companion.loop.page.markup import Content, Html, join, tag
from mlx_companion.loop.page.parts import (
    Report,
    facts,
    fold,
    listing,
    mapping,
    panel,
    section,
)

__all__ = ["making"]

MOST_REASONS = 12
ROWS = {
    "new": "new",
    "replay": "replayed",
    "feedback": "your feedback",
    "written": "written by hand",
    "general": "general",
}
DIVERSITY = {
    "distinct_1": ("distinct words", share),
    "distinct_2": ("distinct word pairs", share),
    "unique_share": ("unique replies", share),
    "mean_similarity": ("mean similarity", number),
}


def making(report: Report) -> Html | None:
    """Data flow, rows, reasons for dropping, and the loss."""
    data = mapping(report, "data")
    boxes = [_flow(data), _rows(data), _pair_of([_dropped(data), _loss(report)]), _by_topic(data)]
    if not any(boxes):
        return None
    return section("making", "Data and training", boxes, lead=_origin(data))


def _origin(data: Report) -> str | None:
    if not data.get("packaged"):
        return None
    own = real(data.get("own_prompts"))
    so = "so the packaged prompts were used as well."
    return f"There was too little chat to learn from yet{_of_own(own)}, {so}"


def _of_own(prompts: float | None) -> str:
    return f" ({plural(prompts, 'prompt')} of your own)" if prompts is not None else ""


def _pair_of(boxes: Sequence[Html | None]) -> Html | None:
    found = [box for box in boxes if box is not None]
    return tag("div", found, class_="pair") if found else None


def _flow(data: Report) -> Html | None:
    made, accepted = real(data.get("generated")), real(data.get("accepted"))
    kept = share(accepted / made) if made and accepted is not None else None
    counts = [real(value) for value in mapping(data, "rows").values()]
    added = sum(value for value in counts if value is not None) if counts else None
    total = data.get("total_rows", added)
    steps: list[tuple[Any, str, str | None]] = [
        (data.get("prompts"), "training prompts", None),
        (made, "replies generated", None),
        (accepted, "replies accepted", f"{kept} of them" if kept else None),
        (total, "training rows", _synthetic(data)),
    ]
    if all(value is None for value, _, _ in steps):
        return None
    return tag("ol", [_step(*step) for step in steps], class_="flow")


def _synthetic(data: Report) -> str | None:
    made = data.get("synthetic_share")
    return None if real(made) is None else f"{share(made)} of them generated"


def _step(value: Any, name: str, note: str | None) -> Html:
    small = tag("small", note) if note else None
    return tag("li", tag("b", count(value)), tag("span", name), small)


def _rows(data: Report) -> Html | None:
    given = mapping(data, "rows")
    names = [*(name for name in ROWS if name in given), *(n for n in given if n not in ROWS)]
    parts = [
        Part(ROWS.get(name, words(name)), real(given[name]) or 0.0, f"row-{i % 6}")
        for i, name in enumerate(names)
    ]
    chart = stack(parts, unit="row", label="Training rows by where they come from")
    if chart is None:
        return None
    diversity = mapping(data, "diversity")
    measures = [(text, write(diversity.get(name))) for name, (text, write) in DIVERSITY.items()]
    shown = facts(pair for pair in measures if pair[1] != DASH) if diversity else None
    return panel("Training rows", chart, shown, wide=True)


def _dropped(data: Report) -> Html | None:
    given = [row for row in listing(data, "dropped") if isinstance(row, list | tuple) and row]
    found = [(words(row[0]), real(row[1]) if len(row) > 1 else None) for row in given]
    counted = sorted([(name, value) for name, value in found if value], key=lambda row: -row[1])
    if not counted:
        return None
    shown = [Bar(name, value, count(value)) for name, value in counted[:MOST_REASONS]]
    rest = sum(value for _, value in counted[MOST_REASONS:])
    if rest:
        number_left = plural(len(counted) - MOST_REASONS, "other reason")
        shown.append(Bar(number_left, rest, count(rest)))
    chart = bars(shown, caption="Why replies were dropped", kinds=("reason", "replies"))
    return panel("Why replies were dropped", chart)


def _loss(report: Report) -> Html | None:
    loss = mapping(report, "loss")
    train, valid = readings(loss.get("train")), readings(loss.get("valid"))
    series = [Series(train, "train"), Series(valid, "valid", dots=True)]
    chart = curves(
        series,
        title=f"Loss over steps. {_course('Training', train)} {_course('Held out', valid)}",
        x="training step",
        y="loss (nats per token)",
    )
    if chart is None:
        return None
    keys = tag("p", _loss_key("train", "training", train), _loss_key("valid", "held out", valid),
               class_="keys")  # fmt: skip
    return panel("Loss", keys, chart, _broken([*train, *valid]))


def _loss_key(style: str, name: str, points: Sequence[tuple[float, float | None]]) -> Html | None:
    if not points:
        return None
    last = number(points[-1][1])
    return tag("span", swatch(style), f"{name}, last ", tag("b", last), class_="key")


def _course(name: str, points: Sequence[tuple[float, float | None]]) -> str:
    if not points:
        return f"{name}: not measured."
    return f"{name}: from {number(points[0][1])} to {number(points[-1][1])}."


def _broken(points: Sequence[tuple[float, float | None]]) -> Html | None:
    lost = sum(value is None for _, value in points)
    if not lost:
        return None
    return tag("p", f"Not a number: {plural(lost, 'value')}, marked ×.", class_="note alarm")


def _by_topic(data: Report) -> Html | None:
    given = mapping(data, "rows_per_topic")
    found = [(words(name), real(value) or 0.0) for name, value in given.items()]
    if not found:
        return None
    shown = [Bar(name, value, count(value)) for name, value in found]
    chart = bars(shown, caption="Training rows per topic", kinds=("topic", "rows"))
    least = min(found, key=lambda row: row[1])
    note: Content = f"Fewest: {least[0]}, {count(least[1])}."
    return fold("Training rows per topic", join(chart, tag("p", note, class_="note")))
