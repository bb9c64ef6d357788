"""The key figures of a round, before and after, each with the margin that it had to keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mlx_companion.loop.formats import (
    DASH,
    SPACE,
    change,
    count,
    number,
    p_value,
    plural,
    points,
    real,
    share,
    words,
)
from mlx_companion.loop.page.markup import Content, Html, tag
from mlx_companion.loop.page.parts import Report, mark, rows, section

__all__ = ["Figure", "figures"]


@dataclass(frozen=True)
class Figure:
    """A key figure: the words by which its margin is found, and how it reads."""

    label: str
    names: tuple[str, ...]
    value: Content
    note: str = ""
    passed: bool | None = None


def figures(report: Report) -> Html:
    """Key figures before and after, each with the margin that it had to keep."""
    left = rows(report, "margins")
    tiles = []
    for figure in _figures(report):
        margin = next((m for m in left if _belongs(m, figure)), None)
        if margin is not None:
            left.remove(margin)
        tiles.append(_tile(figure, margin))
    tiles += [_tile(_other(margin), margin) for margin in left]
    lead = [
        f"Measured on {plural(report.get('items'), 'gate prompt')} that were never trained on. ",
        _power(report.get("detectable_effect")),
    ]
    return section("figures", "Key figures", tag("div", tiles, class_="tiles"), lead=lead)


def _power(effect: Any) -> str | None:
    if real(effect) is None:
        return None
    gain = points(effect).removeprefix("+")
    return f"A set of this size finds a gain of {gain} or more four times in five."


def _figures(report: Report) -> list[Figure]:
    return [
        Figure("Good replies", ("good", "objective"), _shares(report, ""), *_test(report)),
        Figure(
            "Good replies, second judge", ("likelihood", "judge"), _shares(report, "likelihood_"),
            *_second(report),
        ),
        Figure("Distinct replies", ("distinct", "variety"), _pair(report, "distinct", count)),
        Figure("Relevance", ("relevance",), _pair(report, "relevance", number)),
        Figure("Perplexity of general text", ("perplexity",), _pair(report, "perplexity", _short)),
        Figure("Divergence from the base", ("divergence",), number(report.get("divergence")),
               "nats per token"),
    ]  # fmt: skip


def _test(report: Report) -> tuple[str, bool | None]:
    p, alpha = real(report.get("p")), real(report.get("alpha"))
    change = _difference(report.get("before"), report.get("after"))
    said = [
        points(change) if change is not None else None,
        f"p = {p_value(p)}" if p is not None else None,
        f"limit {p_value(alpha)}" if p is not None and alpha is not None else None,
    ]
    text = ", ".join(part for part in said if part)
    return text, None if p is None or alpha is None else p < alpha


def _second(report: Report) -> tuple[str, bool | None]:
    """The second judge must not disagree in direction."""
    p = real(report.get("p_likelihood"))
    change = _difference(report.get("likelihood_before"), report.get("likelihood_after"))
    said = [f"p = {p_value(p)}" if p is not None else None, "must rise" if change else None]
    return ", ".join(part for part in said if part), None if change is None else change > 0


def _other(margin: Report) -> Figure:
    """A figure for a margin that belongs to no other."""
    return Figure(words(margin.get("name") or "margin").capitalize(), (), DASH)


def _difference(before: Any, after: Any) -> float | None:
    first, second = real(before), real(after)
    return None if first is None or second is None else second - first


def _shares(report: Report, prefix: str) -> Html:
    return _arrow(share(report.get(f"{prefix}before")), share(report.get(f"{prefix}after")))


def _pair(report: Report, name: str, write: Any) -> Html:
    return _arrow(write(report.get(f"{name}_before")), write(report.get(f"{name}_after")))


def _short(value: Any) -> str:
    return number(value, 1)


def _arrow(before: str, after: str) -> Html:
    if before == after == DASH:
        return tag("span", DASH)
    arrow = tag("span", " → ", class_="arrow")
    return tag("span", tag("span", before, class_="old"), arrow, tag("b", after))


def _belongs(margin: Report, figure: Figure) -> bool:
    name = str(margin.get("name") or "").lower()
    return any(word in name for word in figure.names)


def _tile(figure: Figure, margin: Report | None) -> Html:
    value, passed, note = figure.value, figure.passed, figure.note
    if margin is not None:
        given = margin.get("passed")
        passed = given if isinstance(given, bool) else passed
        value = _measured(margin, "value") if value == DASH else value
        note = _kept(margin)
    return tag(
        "div",
        tag("h3", figure.label),
        tag("p", value, class_="value"),
        tag("p", note, class_="note") if note else None,
        mark(passed, "passed", "failed"),
        class_="tile failed" if passed is False else "tile",
    )


def _kept(margin: Report) -> str:
    """What a margin measures, its value and its limit."""
    text = str(margin.get("text") or "").removesuffix(" (share)")
    about = f"{text[:1].upper()}{text[1:]}: " if text else ""
    return f"{about}{_measured(margin, 'value')}, limit{SPACE}{_measured(margin, 'limit')}"


def _measured(margin: Report, key: str) -> str:
    """A margin's value or limit; changes carry a sign, and changes of a share are percentages."""
    value, text = margin.get(key), str(margin.get("text") or "")
    if real(value) is None:
        return DASH
    if text.endswith("(share)"):
        return f"{change(value)}{SPACE}%"
    return number(value, 3, signed="change" in text)
