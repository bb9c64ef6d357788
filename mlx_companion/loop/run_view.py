"""Training runs on a terminal: the list of them, one in full, several side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.table import Table
from rich.text import Text

from mlx_companion.loop import formats
from mlx_companion.loop.console import clean, plain_table
from mlx_companion.training.run_book import INTERRUPTED, RUNNING, TrackedRun
from mlx_companion.training.tracking import flattened

__all__ = ["compared", "compared_table", "run_facts", "run_table"]

_STYLES = {RUNNING: "green", INTERRUPTED: "yellow"}
# The figures that two runs are compared by, where they have them.
_FIGURES = (
    "valid_before",
    "valid_after",
    "train_loss",
    "steps",
    "targets",
    "padding",
    "targets_per_second",
    "seconds",
    "peak_mb",
)


def run_table(runs: Sequence[TrackedRun]) -> Table:
    """The runs, newest first; times are UTC."""
    table = plain_table("run", "name", "status", "steps", "held out", "time", "started")
    for run in runs:
        table.add_row(
            run.id,
            clean(run.name),
            Text(run.status, style=_STYLES.get(run.status, "")),
            f"{run.step}/{run.total_steps}",
            _losses(run.summary),
            formats.seconds(run.summary.get("seconds")),
            _when(run.started),
        )
    return table


def run_facts(run: TrackedRun) -> dict[str, Any]:
    """What is known of one run, flat, for people."""
    known = {
        "run": run.id,
        "folder": run.folder,
        "status": run.status,
        "steps": f"{run.step} of {run.total_steps}",
        "started (UTC)": _when(run.started),
        "last heard of (UTC)": _when(run.updated),
        "model": run.about.get("model"),
    }
    figures = {name: value for name, value in run.summary.items() if name in _FIGURES}
    changed = {f"settings {name}": value for name, value in flattened(run.settings).items()}
    return {name: value for name, value in (known | figures | changed).items() if value is not None}


def compared(runs: Sequence[TrackedRun]) -> dict[str, dict[str, list[Any]]]:
    """Settings that differ between runs, and the figures of each, in the order given."""
    settings = [flattened(run.settings) | _identity(run) for run in runs]
    names = list(dict.fromkeys(name for one in settings for name in one))
    values = {name: [one.get(name) for one in settings] for name in names}
    differ = {name: row for name, row in values.items() if any(v != row[0] for v in row[1:])}
    figures = {name: [run.summary.get(name) for run in runs] for name in _FIGURES}
    known = {name: row for name, row in figures.items() if any(v is not None for v in row)}
    return {"settings": differ, "figures": known}


def compared_table(runs: Sequence[TrackedRun], found: Mapping[str, Any]) -> Table:
    """What `compared` found, a column for each run."""
    table = plain_table("", numbers=tuple(run.id for run in runs))
    for name, row in found["figures"].items():
        table.add_row(formats.words(name), *(_figure(value) for value in row))
    for name, row in found["settings"].items():
        table.add_row(name, *(formats.setting(value) for value in row))
    return table


def _identity(run: TrackedRun) -> dict[str, Any]:
    """What a run was made of besides settings; hashes are cut, as people read them."""
    cut = {name: str(run.about.get(name, ""))[:12] for name in ("base_sha256", "data_sha256")}
    return {"model": run.about.get("model"), **cut}


def _losses(summary: Mapping[str, Any]) -> str:
    before, after = summary.get("valid_before"), summary.get("valid_after")
    if after is None:
        return ""
    return f"{formats.number(before)}{formats.ARROW}{formats.number(after)}"


def _figure(value: Any) -> str:
    return formats.number(value, 4) if isinstance(value, float) else formats.setting(value)


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
