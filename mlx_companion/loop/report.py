"""The report of a round: one HTML page that needs nothing else, and its numbers as JSON.

The page holds its style sheet and its charts; it loads nothing, runs no script (and forbids
both by its own policy), follows the reader's light or dark setting, and prints::

    page, numbers = write_report(folder, report)

The dictionary is made by `loop/summary.py`. Whatever it lacks is left out of the page or
shown as a dash, so that a round that ended early still has a report.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlx_companion import __version__
from mlx_companion.loop.formats import real
from mlx_companion.loop.page import figures, making, quality, record, replies, style, summary
from mlx_companion.loop.page.markup import Html, tag
from mlx_companion.runtime.files import atomic_write_json, atomic_write_text

__all__ = ["NUMBERS", "PAGE", "plain", "render", "write_report"]

PAGE, NUMBERS = "report.html", "report.json"
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_SECTIONS = {
    "figures": ("Key figures", figures.figures),
    "rules": ("Rules", quality.rules),
    "topics": ("Topics", quality.topics),
    "replies": ("Replies", replies.replies),
    "making": ("Data and training", making.making),
    "decision": ("Decision", quality.decision),
    "record": ("Record", record.record),
}


def write_report(folder: str | Path, report: dict[str, Any]) -> tuple[Path, Path]:
    """Write `report.html` and `report.json` into `folder`, each atomically.

    Args:
        folder: made when missing.
        report: the round's report dictionary; it is not changed. Its "report" is set to the
            page's path in the JSON when it has none.

    Returns:
        The paths of the page and of the JSON.

    Raises:
        DiskFullError: there is no space; what was there before is untouched.
    """
    page, numbers = Path(folder) / PAGE, Path(folder) / NUMBERS
    # The numbers first: they are worth keeping even if the page should fail.
    atomic_write_json(numbers, plain({**report, "report": report.get("report") or str(page)}))
    atomic_write_text(page, render(report))
    return page, numbers


def render(report: dict[str, Any]) -> str:
    """The page of a report dictionary, as well-formed HTML; the same input, the same page."""
    made = {name: write(report) for name, (_, write) in _SECTIONS.items()}
    shown = [name for name, content in made.items() if content is not None]
    links = [tag("a", _SECTIONS[name][0], href=f"#{name}") for name in shown]
    nav = tag("nav", links, aria_label="Sections of the report")
    foot = tag("footer", f"mlx-companion {__version__} · the same numbers are in {NUMBERS}")
    sections = [made[name] for name in shown]
    body = tag("body", tag("main", summary.hero(report), nav, sections), foot)
    return f"<!DOCTYPE html>\n{tag('html', _head(summary.headline(report)), body, lang='en')}\n"


def _head(title: str) -> Html:
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Html(style.SHEET)),
    )


def plain(value: Any) -> Any:
    """A value as JSON can hold it.

    Numbers that are not finite become None, lone surrogates U+FFFD, array scalars Python
    numbers, and whatever JSON does not know its text.
    """
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    if isinstance(value, dict):
        return {plain(str(key)): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return real(value)
    # numpy and MLX scalars and arrays.
    listed = getattr(value, "tolist", None)
    return plain(listed()) if callable(listed) else plain(str(value))
