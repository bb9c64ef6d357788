"""What is needed to understand or repeat the round: time, memory, machine, versions, settings."""

from __future__ import annotations

from mlx_companion.loop.charts import Bar, bars
from mlx_companion.loop.formats import megabytes, real, seconds, setting, words
from mlx_companion.loop.page.markup import Html, tag
from mlx_companion.loop.page.parts import (
    Report,
    facts,
    flattened,
    fold,
    mapping,
    panel,
    section,
    table,
)

__all__ = ["record"]


def record(report: Report) -> Html:
    """Step timings, the run's facts, and the whole configuration behind a click."""
    boxes = tag("div", _timings(report), _run(report), _machine(report), class_="pair three")
    return section("record", "Record of the round", boxes, _settings(report))


def _timings(report: Report) -> Html | None:
    steps = mapping(report, "step_seconds")
    shown = [Bar(words(name), real(value) or 0.0, seconds(value)) for name, value in steps.items()]
    if not shown:
        return None
    chart = bars(shown, caption="Time of each step", kinds=("step", "time"))
    total = f"{seconds(report.get('seconds'))} in all, at most {megabytes(report.get('peak_mb'))}."
    return panel("Time", chart, tag("p", total, class_="note"))


def _run(report: Report) -> Html:
    names = ("round_id", "base_version", "candidate", "version", "scale", "mode", "seed")
    return panel("Run", facts((words(name), setting(report.get(name))) for name in names))


def _machine(report: Report) -> Html | None:
    machine = mapping(report, "machine")
    sized = {
        name.removesuffix("_mb"): megabytes(value) if name.endswith("_mb") else value
        for name, value in machine.items()
    }
    found = [(words(name), text) for name, text in flattened(sized)]
    found += flattened(mapping(report, "versions"))
    return panel("Machine and versions", facts(found)) if found else None


def _settings(report: Report) -> Html | None:
    found = flattened(mapping(report, "config"))
    if not found:
        return None
    body = [
        tag("tr", tag("th", tag("code", name), scope="row"), tag("td", tag("code", value)))
        for name, value in found
    ]
    return fold("Configuration", table("All settings of the round", ("setting", "value"), body))
