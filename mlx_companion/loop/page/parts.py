"""Building blocks that the sections of the report share, and careful reading of its dictionary."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from mlx_companion.loop.formats import setting
from mlx_companion.loop.page.markup import Content, Html, tag

__all__ = [
    "facts",
    "flattened",
    "fold",
    "listing",
    "mapping",
    "mark",
    "own_words",
    "panel",
    "rows",
    "section",
    "table",
]

Report = dict[str, Any]


def mapping(report: Any, key: str) -> Report:
    """The dictionary under `key`; an empty one when it is missing, None or something else."""
    value = report.get(key) if isinstance(report, dict) else None
    return value if isinstance(value, dict) else {}


def listing(report: Any, key: str) -> list[Any]:
    """The list under `key`; an empty one when it is missing, None or something else."""
    value = report.get(key) if isinstance(report, dict) else None
    return list(value) if isinstance(value, list | tuple) else []


def rows(report: Any, key: str) -> list[Report]:
    """The dictionaries in the list under `key`."""
    return [row for row in listing(report, key) if isinstance(row, dict)]


def section(name: str, title: str, *content: Content, lead: Content = None) -> Html:
    """One section of the page.

    Args:
        name: its anchor.
        title: its heading.
        content: what it shows.
        lead: the sentence under the heading that says what to see.
    """
    introduction = tag("p", lead, class_="lead") if lead else None
    heading = tag("h2", title, id=f"{name}-title")
    return tag("section", heading, introduction, content, id=name, aria_labelledby=f"{name}-title")


def panel(title: str, *content: Content, wide: bool = False) -> Html:
    """A titled box inside a section."""
    return tag("div", tag("h3", title), content, class_="panel wide" if wide else "panel")


def fold(title: str, *content: Content) -> Html:
    """Content that a click opens."""
    return tag("details", tag("summary", title), content)


def mark(passed: bool | None, yes: str, no: str) -> Html | None:
    """A tick or a cross with its word; nothing when it is not known."""
    if passed is None:
        return None
    sign, word, style = ("✓", yes, "pass") if passed else ("✗", no, "fail")
    return tag("span", tag("span", sign, aria_hidden="true"), f" {word}", class_=f"mark {style}")


def own_words(text: Any, most: int) -> Html:
    """What a person or a model wrote, kept apart from the page around it.

    Args:
        text: shown as it is, line breaks included, in its own direction of writing.
        most: longer text is cut, and says so (characters).
    """
    whole = "" if text is None else str(text)
    if not whole.strip():
        return tag("div", "(empty)", class_="words nothing")
    rest = len(whole) - most
    cut = tag("small", f" … and {rest:,} more characters") if rest > 0 else None
    return tag("div", whole[:most], cut, class_="words", dir="auto")


def table(caption: str, heads: Sequence[str], body: Iterable[Content]) -> Html:
    """A plain table; `body` holds its rows."""
    return tag(
        "table",
        tag("caption", caption, class_="sr"),
        tag("thead", tag("tr", [tag("th", head, scope="col") for head in heads])),
        tag("tbody", body),
        class_="plain",
    )


def facts(pairs: Iterable[tuple[str, Content]]) -> Html:
    """Names and their values."""
    entries = [tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs]
    return tag("dl", entries, class_="facts")


def flattened(values: Any, prefix: str = "") -> list[tuple[str, str]]:
    """A nested dictionary as dotted names and texts: `{"a": {"b": 1}}` is `[("a.b", "1")]`."""
    found: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            found += flattened(value, f"{name}.")
        else:
            found.append((name, setting(value if value != {} else None)))
    return found
