"""Curves of training runs as one HTML page that needs nothing else, and their numbers as JSON.

write_curves("curves.html", book, [book.get("3f2a"), book.get("91bc")])
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mlx_companion import __version__
from mlx_companion.errors import DataError
from mlx_companion.loop.charts import swatch
from mlx_companion.loop.curves import Series, curves
from mlx_companion.loop.formats import number, plural
from mlx_companion.loop.page import style
from mlx_companion.loop.page.markup import Html, tag
from mlx_companion.loop.page.parts import panel, section
from mlx_companion.runtime.files import atomic_write_json, atomic_write_text
from mlx_companion.training.run_book import RunBook, TrackedRun

__all__ = ["MOST_RUNS", "write_curves"]

Points = list[tuple[float, float | None]]
# Told apart in light and dark and by most kinds of color vision.
_COLORS = ("#3b6fd4", "#c8553d", "#2f8f6b", "#9a6fc9", "#b5892b", "#5d7480")
MOST_RUNS = len(_COLORS)
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_SMOOTHING = 0.9


def write_curves(path: str | Path, book: RunBook, runs: Sequence[TrackedRun]) -> tuple[Path, Path]:
    """Draw loss, held-out loss, learning rate and speed of some runs.

    Args:
        path: the page; the numbers come beside it, with the suffix ".json".
        book: which the runs are of.
        runs: 1 to `MOST_RUNS`.

    Returns:
        The paths of the page and of the numbers.

    Raises:
        DataError: no or too many runs, or none that has a step.
    """
    if not 1 <= len(runs) <= MOST_RUNS:
        raise DataError(f"{len(runs)} runs cannot be drawn together; give 1 to {MOST_RUNS}")
    numbers = [{name: book.series(run.id, name) for name in book.names(run.id)} for run in runs]
    if not any(one.get("loss") for one in numbers):
        raise DataError("these runs have no steps yet, so there is nothing to draw")
    page = Path(path)
    beside = page.with_suffix(".json")
    listed = [{"id": run.id, "name": run.name} for run in runs]
    joined = [about | {"series": one} for about, one in zip(listed, numbers, strict=True)]
    atomic_write_json(beside, joined)
    atomic_write_text(page, _page(runs, numbers))
    return page, beside


def _page(runs: Sequence[TrackedRun], numbers: Sequence[dict[str, Any]]) -> str:
    title = f"Training: {', '.join(run.name for run in runs)}"
    charts = [
        _chart("Training loss", "loss (nats per token), smoothed", numbers, _smoothed("loss")),
        _chart("Held-out loss", "loss (nats per token)", numbers, _plain("valid_loss"), dots=True),
        _chart("Learning rate", "learning rate x 1,000", numbers, _scaled("lr", 1e3)),
        _chart("Speed", "target tokens per second, smoothed", numbers, _speed),
    ]
    keys = [_key(i, run, one) for i, (run, one) in enumerate(zip(runs, numbers, strict=True))]
    body = tag(
        "body",
        tag(
            "main",
            tag("header", tag("h1", title), tag("p", keys, class_="keys")),
            section("curves", "Curves", charts),
        ),
        tag("footer", f"mlx-companion {__version__}"),
    )
    return f"<!DOCTYPE html>\n{tag('html', _head(title), body, lang='en')}\n"


def _head(title: str) -> Html:
    colors = "\n".join(
        f".line.run{i} {{ stroke: {c}; stroke-width: 2; }}\n"
        f"circle.run{i}, .swatch .run{i} {{ fill: {c}; }}"
        for i, c in enumerate(_COLORS)
    )
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Html(style.SHEET + colors)),
    )


def _chart(
    title: str,
    unit: str,
    numbers: Sequence[dict[str, Any]],
    points: Callable[[dict[str, Any]], Points],
    dots: bool = False,
) -> Html | None:
    series = [Series(points(one), f"run{i}", dots=dots) for i, one in enumerate(numbers)]
    chart = curves(series, title=f"{title} over steps", x="training step", y=unit)
    return None if chart is None else panel(title, chart, wide=True)


def _key(index: int, run: TrackedRun, one: dict[str, Any]) -> Html:
    held_out = [value for _, value in one.get("valid_loss", []) if value is not None]
    told = f"{plural(run.step, 'step')}"
    if held_out:
        told += f", held-out loss {number(held_out[0], 3)} to {number(held_out[-1], 3)}"
    return tag(
        "span", swatch(f"run{index}"), tag("b", f"{run.name} ({run.id})"), f" {told}", class_="key"
    )


def _plain(name: str) -> Callable[[dict[str, Any]], Points]:
    return lambda one: list(one.get(name, []))


def _scaled(name: str, factor: float) -> Callable[[dict[str, Any]], Points]:
    return lambda one: [(s, None if v is None else v * factor) for s, v in one.get(name, [])]


def _smoothed(name: str) -> Callable[[dict[str, Any]], Points]:
    return lambda one: _mean(one.get(name, []))


def _mean(points: Points) -> Points:
    """An exponential mean, corrected at its beginning as Adam's moments are."""
    mean, weight, found = 0.0, 0.0, Points()
    for step, value in points:
        if value is None:
            found.append((step, None))
            continue
        mean = _SMOOTHING * mean + (1 - _SMOOTHING) * value
        weight = _SMOOTHING * weight + 1 - _SMOOTHING
        found.append((step, mean / weight))
    return found


def _speed(one: dict[str, Any]) -> Points:
    seconds = dict(one.get("seconds", []))
    return _mean([(s, t / seconds[s]) for s, t in one.get("targets", []) if t and seconds.get(s)])
