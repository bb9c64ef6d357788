"""What came of a round, on a terminal: the report's figures as tables, the outcome in words.

Why beside the HTML report: whoever typed `mlx-companion improve` sees at once what changed, by
how much, against which limits, and what it reads like. The functions take the report's dict
and leave out what it does not hold, so that a stored report of an older version prints too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlx_companion.loop import formats
from mlx_companion.loop.console import clean, marks, plain_table, short
from mlx_companion.store.values import dump_json

__all__ = ["outcome_sentence", "print_examples", "print_round", "result_line", "rule_table"]

_EXAMPLES = 3
_NUMBERS = ("before", "after", "change")
_REPLY_CHARS, _REASON_CHARS = 300, 90
# Rules that changed by less say nothing at the size of a gate set.
_LEAST_CHANGE = 0.01
_RESULT = (
    "deployed", "outcome", "before", "after", "distinct_before", "distinct_after", "p",
    "relevance_before", "relevance_after", "perplexity_before", "perplexity_after", "seconds",
    "peak_mb", "report", "version", "round", "scale",
)  # fmt: skip

Report = Mapping[str, Any]


def print_round(console: Console, report: Report) -> None:
    """Print what a round came to.

    Args:
        console: any width from 60 columns on.
        report: the round's report; parts that it does not have are left out.
    """
    base = report.get("base_version", "base")
    candidate = report.get("candidate") or "what was trained on it"
    _heading(console, f"Round {report.get('round', '')}: {base} against {candidate}")
    console.print(_headline(console, report))
    table = rule_table(report.get("rules") or [])
    if table.row_count:
        _heading(console, "Replies that keep each rule (only rules that changed)")
        console.print(table)
    print_examples(console, report.get("gate") or [])
    console.print()
    style = {"deploy": "bold green", "reject": "bold red"}.get(report.get("outcome", ""), "bold")
    console.print(Text(outcome_sentence(report), style=style))
    for reason in report.get("reasons") or []:
        grid = Table.grid(padding=(0, 1))
        grid.add_row("  -", Text(clean(str(reason))))
        console.print(grid)


def result_line(report: Report) -> str:
    """A round's figures as one line of strict JSON, for programs; null is what is not known."""
    return dump_json({name: report.get(name) for name in _RESULT})


def outcome_sentence(report: Report) -> str:
    """A round's outcome in plain words; when unclear, with the gain that could have been seen."""
    outcome, base = report.get("outcome"), report.get("base_version", "the old version")
    if outcome == "deploy":
        return _passed(report, base)
    if outcome == "reject":
        return f"Rejected: the new version does harm, so {base} stays active."
    effect = formats.real(report.get("detectable_effect"))
    sight = ""
    # A report's reasons say it too.
    if effect is not None and not report.get("reasons"):
        sight = f" A gain of {100 * effect:.0f} points or more would have been found (power 80 %)."
    return f"Inconclusive: neither gain nor harm is shown, so {base} stays active.{sight}"


def rule_table(rules: Sequence[Mapping[str, Any]]) -> Table:
    """The rules whose share of replies changed by a point or more, best first.

    Args:
        rules: with `rule`, and `before` and `after` as shares.
    """
    known = [(r.get("rule"), r.get("before"), r.get("after"), _difference(r)) for r in rules]
    changed = [r for r in known if r[3] is not None and abs(r[3]) >= _LEAST_CHANGE - 1e-9]
    table = plain_table("rule", numbers=_NUMBERS)
    for rule, before, after, change in sorted(changed, key=lambda r: -(r[3] or 0.0)):
        table.add_row(
            formats.words(rule),
            formats.share(before),
            formats.share(after),
            Text(formats.change(change), style="green" if (change or 0.0) > 0 else "red"),
        )
    return table


def print_examples(
    console: Console,
    gate: Sequence[Mapping[str, Any]],
    heading: str = "The same prompts, before and after",
) -> None:
    """Print three pairs of replies side by side, among them one that got worse if there is one.

    Args:
        console: where to.
        gate: with `prompt`, `before`, `after` and, where they were judged, `before_good`,
            `after_good` and the reasons.
        heading: what the pairs are.
    """
    picked = _pick_examples(gate)
    if picked:
        _heading(console, heading)
    for item in picked:
        prompt = short(str(item.get("prompt", "")), console.width - 4)
        console.print(Text(f"> {prompt}", style="cyan"))
        table = Table(
            box=None, expand=True, padding=(0, 2, 0, 0), pad_edge=False, show_header=False
        )
        table.add_column(ratio=1)
        table.add_column(ratio=1)
        table.add_row(*(_example_cell(console, item, side) for side in ("before", "after")))
        console.print(table)


def _passed(report: Report, base: str) -> str:
    scale = formats.real(report.get("scale")) or 1.0
    strength = f" at {formats.share(scale)} strength" if scale < 1 else ""
    if report.get("deployed"):
        return f"Deployed: {report.get('version')} is now the active version{strength}."
    if report.get("mode") == "review":
        return (
            f"Passed{strength}, and waits for you: mlx-companion promote "
            f"{report.get('candidate')}; until then {base} stays active."
        )
    return f"Passed{strength}; this was a dry run, so nothing was changed and {base} stays active."


class _Figure(NamedTuple):
    """One row of the headline; `margin` names the report's margin that belongs to it."""

    name: str
    before: Any
    after: Any
    write: Callable[[Any], str]
    margin: str
    test: str = ""


def _figures(report: Report) -> list[_Figure]:
    def figure(
        name: str, key: str, write: Callable[[Any], str], margin: str, test: str = ""
    ) -> _Figure:
        before = report.get(f"{key}_before" if key else "before")
        after = report.get(f"{key}_after" if key else "after")
        return _Figure(name, before, after, write, margin, test)

    items, alpha = report.get("items"), formats.real(report.get("alpha"))
    needed = "" if alpha is None else f" (limit {formats.p_value(alpha)})"
    return [
        figure("good replies", "", formats.share, "good", _p(report.get("p"), needed)),
        figure(
            "good, second judge", "likelihood", formats.share, "likelihood",
            _p(report.get("p_likelihood")),
        ),
        figure("distinct replies", "distinct", formats.count, "variety", f"of {items}"),
        figure("relevance", "relevance", formats.number, "relevance"),
        figure("perplexity", "perplexity", formats.number, "perplexity"),
        _Figure(
            "divergence from base", None, report.get("divergence"), formats.number, "divergence"
        ),
    ]  # fmt: skip


def _headline(console: Console, report: Report) -> Table:
    table = plain_table("", numbers=_NUMBERS)
    table.add_column("", ratio=1)
    margins = {str(m.get("name", "")): m for m in report.get("margins") or []}
    for row in _figures(report):
        margin = margins.pop(row.margin, None)
        if row.before is None and row.after is None:
            continue
        table.add_row(
            row.name,
            "" if row.before is None else row.write(row.before),
            "" if row.after is None else row.write(row.after),
            _change(row),
            row.test if margin is None else _limit(margin, console),
            style="bold" if row.margin == "good" else "",
        )
    for name, margin in margins.items():
        value = formats.number(margin.get("value"))
        table.add_row(formats.words(name), "", value, "", _limit(margin, console))
    return table


# These two margins are relative changes.
_SHARES = {"variety", "perplexity"}


def _limit(margin: Mapping[str, Any], console: Console) -> Text:
    """A margin: whether it holds, the value that was held against it, and the limit."""
    passed, name = bool(margin.get("passed")), margin.get("name")
    if name in _SHARES:
        value, limit = (f"{formats.change(margin.get(key))} %" for key in ("value", "limit"))
    else:
        value, limit = (formats.number(margin.get(key)) for key in ("value", "limit"))
    value = f"at worst {value}" if name == "relevance" else value
    text = f"{marks(console)[not passed]} {value} (limit {limit})"
    return Text(text, style="green" if passed else "red")


def _pick_examples(gate: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Replies that became good, of different topics, and one that got worse or stayed bad."""
    changed = [g for g in gate if g.get("before") != g.get("after")] or list(gate)
    gains = [g for g in changed if g.get("after_good") and not g.get("before_good")]
    bad = [g for g in changed if not g.get("after_good")]
    bad.sort(key=lambda g: not g.get("before_good"))
    by_topic = {g.get("topic"): g for g in reversed(gains)}
    first = list(reversed(by_topic.values()))[: _EXAMPLES - bool(bad)]
    order = [*first, *bad[:1], *gains, *bad, *changed]
    return [g for i, g in enumerate(order) if g not in order[:i]][:_EXAMPLES]


def _example_cell(console: Console, item: Mapping[str, Any], side: str) -> Text:
    good, reason = item.get(f"{side}_good"), str(item.get(f"{side}_reason") or "")
    mark = "" if good is None else f"{marks(console)[not good]} "
    cell = Text(mark, style="green" if good else "red")
    cell.append(short(str(item.get(side, "")), _REPLY_CHARS), style="default")
    if reason and not good:
        cell.append(f"\n({short(reason, _REASON_CHARS)})", style="dim")
    return cell


def _heading(console: Console, text: str) -> None:
    console.print()
    console.print(Text(text, style="bold"))


def _p(value: Any, more: str = "") -> str:
    return "" if formats.real(value) is None else f"p = {formats.p_value(value)}{more}"


def _difference(item: Mapping[str, Any]) -> float | None:
    before, after = formats.real(item.get("before")), formats.real(item.get("after"))
    return None if before is None or after is None else after - before


def _change(row: _Figure) -> str:
    difference = _difference({"before": row.before, "after": row.after})
    if difference is None:
        return ""
    if row.write is formats.share:
        return formats.change(difference)
    if not difference:
        return "±0"
    return formats.number(difference, 0 if row.write is formats.count else 2, signed=True)
