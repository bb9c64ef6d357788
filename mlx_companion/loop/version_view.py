"""Versions of the companion on a terminal: the list of them, and two of them side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from mlx_companion.loop import formats
from mlx_companion.loop.console import plain_table
from mlx_companion.loop.round_view import print_examples
from mlx_companion.store import Version

__all__ = ["print_diff", "version_table"]


def version_table(versions: Sequence[Version]) -> Table:
    """The versions, oldest first; the active one has a star."""
    table = plain_table("", "version", "name", "made (UTC)", "from", "good replies", "p")
    for version in versions:
        get = version.metrics.get
        gated = get("after") is not None
        table.add_row(
            "*" if version.active else "",
            version.id,
            version.name,
            version.created_at[:16].replace("T", " "),
            version.parent or "",
            f"{formats.share(get('before'))} to {formats.share(get('after'))}" if gated else "",
            formats.p_value(get("p")) if gated else "",
        )
    return table


def print_diff(console: Console, old: str, new: str, found: Mapping[str, Any]) -> None:
    """Print what `loop.diff` found between the versions `old` and `new`."""
    table = plain_table("", numbers=(old, new))
    for name, values in found["metrics"].items():
        table.add_row(formats.words(name), *(_metric(value) for value in values))
    if table.row_count:
        console.print(table)
    else:
        console.print("neither version was tested by a gate, so there are no figures to compare")
    pairs = [{"prompt": e["prompt"], "before": e["old"], "after": e["new"]}
             for e in found["examples"]]  # fmt: skip
    print_examples(console, pairs, f"The same prompts, {old} and {new}")


def _metric(value: Any) -> str:
    if isinstance(value, float):
        return formats.number(value, 3) if abs(value) >= 0.001 else formats.p_value(value)
    return formats.setting(value)
