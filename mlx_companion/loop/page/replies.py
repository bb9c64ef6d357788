"""Replies before and after, side by side: a dozen at once, all of them behind a click.

The list of all replies is filtered by radio buttons and the style sheet alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlx_companion.loop.formats import number, plural, real
from mlx_companion.loop.page.markup import Html, tag
from mlx_companion.loop.page.parts import Report, fold, mark, own_words, rows, section
from mlx_companion.loop.page.summary import CHANGES, fell

__all__ = ["SHOWN", "choose", "replies"]

SHOWN = 12
EXAMPLES = ("improved", "worse", "bad")
_PROMPT_CHARS, _REPLY_CHARS = 600, 2000


def replies(report: Report) -> Html | None:
    """Examples of what improved, got worse and is still not good; then every gate reply."""
    gate = rows(report, "gate")
    if not gate:
        return None
    chosen = choose(gate)
    groups = [_group(name, gate, chosen[name]) for name in EXAMPLES if chosen[name]]
    every = fold(f"All {plural(len(gate), 'gate reply', 'gate replies')}", _filtered(gate))
    lead = "The same prompt, answered by both versions. Neither was trained on it."
    return section("replies", "Replies side by side", groups, every, lead=lead)


def choose(gate: Sequence[Report], most: int = SHOWN) -> dict[str, list[Report]]:
    """Up to `most` examples, shared evenly among the kinds, over as many topics as there are.

    Returns:
        Rows by the name of their kind, in the order of the gate.
    """
    queues = {name: _varied([row for row in gate if fell(row) == name]) for name in EXAMPLES}
    taken = dict.fromkeys(EXAMPLES, 0)
    while sum(taken.values()) < most:
        open_ = [name for name in EXAMPLES if taken[name] < len(queues[name])]
        if not open_:
            break
        taken[min(open_, key=lambda name: taken[name])] += 1
    return {name: queues[name][: taken[name]] for name in EXAMPLES}


def _varied(gate: Sequence[Report]) -> list[Report]:
    """The first row of every topic, then the second of every topic, and so on."""
    seen: dict[Any, int] = {}
    ranked = []
    for row in gate:
        topic = str(row.get("topic"))
        seen[topic] = seen.get(topic, 0) + 1
        ranked.append((seen[topic], row))
    return [row for _, row in sorted(ranked, key=lambda pair: pair[0])]


def _group(name: str, gate: Sequence[Report], chosen: Sequence[Report]) -> Html:
    total = sum(fell(row) == name for row in gate)
    count = tag("small", f" {len(chosen)} of {total}")
    heading = tag("h3", CHANGES[name].capitalize(), count)
    return tag("div", heading, [_card(row) for row in chosen], class_="group")


def _filtered(gate: Sequence[Report]) -> Html:
    choices = [_choice("all", f"all {len(gate)}", checked=True)]
    for name, text in CHANGES.items():
        choices.append(_choice(name, f"{text} {sum(fell(row) == name for row in gate)}"))
    cards = tag("div", [_card(row) for row in gate], class_="replies")
    return tag("div", choices, cards, class_="filter", role="group", aria_label="Show replies")


def _choice(name: str, text: str, *, checked: bool = False) -> list[Html]:
    given = "checked" if checked else None
    button = tag("input", type="radio", name="show", id=f"show-{name}", checked=given)
    return [button, tag("label", text, for_=f"show-{name}")]


def _card(row: Report) -> Html:
    topic = row.get("topic")
    chip = tag("span", str(topic), class_="chip") if topic else None
    title = tag("header", chip, own_words(row.get("prompt"), _PROMPT_CHARS))
    sides = tag("div", _side(row, "before"), _side(row, "after"), class_="sides")
    return tag("article", title, sides, class_=f"reply {fell(row)}")


def _side(row: Report, when: str) -> Html:
    good = bool(row.get(f"{when}_good"))
    reason = str(row.get(f"{when}_reason") or "")
    relevance = row.get(f"{when}_relevance")
    about = [
        mark(good, "good", "not good"),
        tag("span", f"relevance {number(relevance)}") if real(relevance) is not None else None,
        tag("span", reason, class_="reason") if reason and not good else None,
    ]
    name = tag("h4", when)
    text = own_words(row.get(when), _REPLY_CHARS)
    return tag("div", name, text, tag("p", about, class_="about"), class_=f"side {when}")
