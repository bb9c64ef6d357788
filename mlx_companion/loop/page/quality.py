"""What changed in the replies, rule by rule and topic by topic, and how the gate decided."""

from __future__ import annotations

from collections.abc import Sequence

from mlx_companion.loop.charts import Pair, dumbbells, key, legend
from mlx_companion.loop.curves import histogram
from mlx_companion.loop.formats import count, number, p_value, plural, real, share, words
from mlx_companion.loop.page.markup import Content, Html, tag
from mlx_companion.loop.page.parts import Report, listing, mapping, panel, rows, section, table

__all__ = ["decision", "rules", "topics"]

MEASURES = {
    "relevance": "Relevance: cosine of prompt and reply (sentence encoder)",
    "likelihood": "Second judge: what the prompt tells about the reply (nats per token)",
}


def rules(report: Report) -> Html | None:
    """Each rule of the profile and each judge, before and after."""
    pairs = [_named(pair) for pair in _pairs(report, "rules", "rule")]
    judges = [_named(pair) for pair in _pairs(report, "judges", "judge")]
    if not pairs and not judges:
        return None
    always = [pair for pair in pairs if pair.before == pair.after == 1.0]
    moved = [pair for pair in pairs if pair not in always]
    kept = ", ".join(pair.label for pair in always)
    charts: list[Content] = []
    if moved:
        caption = "Share of gate replies that keep each rule"
        charts.append(dumbbells(moved, caption=caption, kind="rule"))
    if always:
        charts.append(tag("p", "Kept by every reply before and after: ", kept, ".", class_="note"))
    shown = panel("Share of replies that keep the rule", charts, wide=True) if pairs else None
    return section(
        "rules", "Rules", shown, _judges(judges), lead=_moves(pairs, "rule", "kept") or None
    )


def _judges(judges: Sequence[Pair]) -> Html | None:
    if not judges:
        return None
    caption = "Share of gate replies that pass each judge"
    chart = dumbbells(judges, caption=caption, kind="judge", order=False)
    return panel("Share of replies that pass the judge", chart, wide=True)


def _pairs(report: Report, name: str, label: str) -> list[Pair]:
    return [
        Pair(str(row.get(label) or "?"), real(row.get("before")), real(row.get("after")))
        for row in rows(report, name)
    ]


def _named(pair: Pair) -> Pair:
    return Pair(words(pair.label), pair.before, pair.after, pair.note)


def _moves(pairs: Sequence[Pair], noun: str, verb: str) -> str:
    """How many of `pairs` rose and fell: "14 rules are kept more often, 1 rule less often." """
    changes = [pair.change for pair in pairs if pair.change is not None]
    if not changes:
        return ""
    rose, fell = sum(c > 0 for c in changes), sum(c < 0 for c in changes)
    are = "is" if rose == 1 else "are"
    return f"{plural(rose, noun)} {are} {verb} more often, {plural(fell, noun)} less often."


def topics(report: Report) -> Html | None:
    """The share of good replies by topic, and the distribution of relevance."""
    spread = _relevance(report)
    given = rows(report, "topics")
    pairs = [
        Pair(pair.label, pair.before, pair.after, _items(row))
        for pair, row in zip(_pairs(report, "topics", "topic"), given, strict=True)
    ]
    if not pairs and spread is None:
        return None
    caption = "Share of good gate replies by topic"
    chart = panel("Good replies by topic", dumbbells(pairs, caption=caption, kind="topic, prompts"))
    boxes = [chart if pairs else None, spread]
    return section("topics", "Topics and relevance", tag("div", boxes, class_="pair"))


def _items(row: Report) -> str:
    return count(row.get("items")) if real(row.get("items")) is not None else ""


def _relevance(report: Report) -> Html | None:
    gate = rows(report, "gate")
    found = [[real(row.get(f"{when}_relevance")) for row in gate] for when in ("before", "after")]
    before, after = ([value for value in values if value is not None] for values in found)
    calibration = mapping(mapping(report, "calibration"), "relevance")
    threshold = real(calibration.get("threshold"))
    title = f"Relevance of {len(before)} replies before and {len(after)} after"
    chart = histogram(before, after, threshold, title=title, x="relevance (cosine)")
    if chart is None:
        return None
    note = None if threshold is None else _over(before, after, threshold)
    return panel("Relevance to the prompt", _keys(), chart, note)


def _keys() -> Html:
    return legend(key("before", "before"), key("after", "after"))


def _over(before: Sequence[float], after: Sequence[float], threshold: float) -> Html:
    shares = [
        sum(value >= threshold for value in values) / len(values) if values else None
        for values in (before, after)
    ]
    text = f"At or over the threshold: {share(shares[0])} before, {share(shares[1])} after."
    return tag("p", text, class_="note")


def decision(report: Report) -> Html | None:
    """Which scales of the adapter were tried, and how the judges were calibrated."""
    boxes = [box for box in (_tries(report), _calibration(report)) if box is not None]
    if not boxes:
        return None
    lead = (
        "An adapter that breaks a margin is tried again scaled down; every look at the same "
        "gate prompts is paid for with a smaller allowed p."
    )
    return section("decision", "How the gate decided", tag("div", boxes, class_="pair"), lead=lead)


def _tries(report: Report) -> Html | None:
    tries = rows(report, "tries")
    if not tries:
        return None
    chosen = real(report.get("scale")) if report.get("outcome") == "deploy" else None
    body = [_try(row, chosen) for row in tries]
    heads = ("scale", "good replies", "p", "allowed", "outcome")
    return panel("Scales tried", table("Scales of the adapter that were tried", heads, body))


def _try(row: Report, chosen: float | None) -> Html:
    scale = real(row.get("scale"))
    cells = (share(row.get("after")), p_value(row.get("p")), p_value(row.get("alpha")))
    return tag(
        "tr",
        tag("th", number(scale), scope="row"),
        [tag("td", cell) for cell in cells],
        tag("td", _told(row)),
        class_="chosen" if scale is not None and scale == chosen else None,
    )


def _told(row: Report) -> str:
    broken = ", ".join(words(name) for name in listing(row, "broken"))
    outcome = words(row.get("outcome") or "")
    return f"{outcome}: {broken}" if broken else outcome


def _calibration(report: Report) -> Html | None:
    calibration = mapping(report, "calibration")
    body = [_calibrated(name, mapping(calibration, name)) for name in calibration]
    body = [row for row in body if row is not None]
    most = real(calibration.get("most_perplexity"))
    if not body and most is None:
        return None
    heads = ("judge", "threshold", "real kept", "shuffled refused", "AUC", "pairs")
    shown = table("Thresholds of the judges and how they separate", heads, body) if body else None
    note = (
        "Each threshold was put where it separates the answers of written question-answer "
        "pairs from the same answers shuffled."
    )
    limit = None if most is None else f" Replies with a perplexity over {number(most, 0)} fail."
    return panel("Calibration of the judges", shown, tag("p", note, limit, class_="note"))


def _calibrated(name: str, values: Report) -> Html | None:
    if not values:
        return None
    cells = (
        number(values.get("threshold")),
        share(values.get("kept")),
        share(values.get("refused")),
        number(values.get("auc")),
        number(values.get("pairs"), 0),
    )
    head = tag("th", words(name), scope="row", title=MEASURES.get(name))
    return tag("tr", head, [tag("td", cell) for cell in cells])
