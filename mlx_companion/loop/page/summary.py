"""The top of the report: what happened, in one sentence, and the share of good replies."""

from __future__ import annotations

from mlx_companion.loop.charts import Part, dumbbell, key, legend, stack
from mlx_companion.loop.formats import ARROW, ends, interval, real, share, when, words
from mlx_companion.loop.page.markup import Html, tag
from mlx_companion.loop.page.parts import Report, listing, rows

__all__ = ["CHANGES", "fell", "headline", "hero", "outcome_sentence", "verdict"]

# How a reply pair fell: its name, and the class that colors it.
CHANGES = {
    "improved": "improved",
    "worse": "got worse",
    "bad": "still not good",
    "good": "stayed good",
}


def headline(report: Report) -> str:
    """Round and result: "Round 1: 19 % → 71 % good replies." """
    name = f"Round {report['round']}" if report.get("round") is not None else "A round"
    before, after = report.get("before"), report.get("after")
    if real(before) is None and real(after) is None:
        return f"{name}: nothing was measured."
    return f"{name}: {share(before)}{ARROW}{share(after)} good replies."


def verdict(report: Report) -> tuple[str, str]:
    """The outcome as a badge: its words, and the class that colors it."""
    outcome = report.get("outcome")
    if report.get("deployed"):
        return "Deployed", "up"
    if outcome == "deploy":
        return {
            "review": ("Waiting for approval", "wait"),
            "dry-run": ("Dry run: passed", "wait"),
        }.get(str(report.get("mode")), ("Passed", "wait"))
    return {
        "reject": ("Rejected", "down"),
        "inconclusive": ("Inconclusive", "wait"),
    }.get(str(outcome), (words(outcome or "no outcome").capitalize(), "wait"))


def outcome_sentence(report: Report) -> str:
    """What became of the candidate, in plain words."""
    candidate = report.get("candidate") or "The candidate"
    stays = f"{report.get('version') or report.get('base_version') or 'the old version'} stays."
    outcome = report.get("outcome")
    if report.get("deployed"):
        return f"{report.get('version') or candidate} was deployed."
    if outcome == "deploy" and report.get("mode") == "review":
        return f"{candidate} passed and waits for your approval."
    if outcome == "deploy":
        return f"{candidate} would have been deployed; {stays}"
    if outcome == "reject":
        return f"{candidate} was rejected; {stays}"
    return f"No clear gain, so {stays}"


def hero(report: Report) -> Html:
    """Badge, headline, reasons, and the share of good replies as a picture."""
    text, style = verdict(report)
    about = [
        when(report["started_at"]) if report.get("started_at") else None,
        report.get("model"),
        f"profile {report['profile']}" if report.get("profile") else None,
    ]
    known = [tag("span", str(item)) for item in about if item]
    above = tag("p", tag("span", text, class_=f"badge {style}"), known, class_="above")
    title = tag("h1", headline(report), " ", tag("span", outcome_sentence(report)))
    reasons = [tag("li", str(reason)) for reason in listing(report, "reasons") if reason]
    why = tag("ul", reasons) if reasons else None
    return tag("header", above, title, why, _approval(report), _good_share(report))


def _approval(report: Report) -> Html | None:
    if report.get("deployed") or report.get("mode") != "review" or not report.get("candidate"):
        return None
    if report.get("outcome") != "deploy":
        return None
    command = tag("code", f"mlx-companion promote {report['candidate']}")
    return tag("p", "Read the replies below, then run ", command, " to put it to work.")


def _good_share(report: Report) -> Html | None:
    before, after = real(report.get("before")), real(report.get("after"))
    if before is None and after is None:
        return None
    low, high = ends(report.get("interval"))
    band = None
    if before is not None and low is not None and high is not None:
        band = (before + low, before + high)
    worse = before is not None and after is not None and after < before
    keys = [
        key("before", f"{report.get('base_version') or 'before'}: {share(before)}"),
        key("after down" if worse else "after", f"{_newer(report)}: {share(after)}"),
    ]
    if band:
        keys.append(key("band", f"90 % interval of the change: {interval(report.get('interval'))}"))
    scale = tag("div", tag("span", "0 %"), tag("span", "good replies"), tag("span", "100 %"))
    drawing = tag("div", dumbbell(before, after, band=band, height=44), scale, class_="share")
    return tag("div", legend(*keys), drawing, paired_outcomes(report), class_="panel wide")


def _newer(report: Report) -> str:
    return str(report.get("candidate") or "after")


def paired_outcomes(report: Report) -> Html | None:
    """How many reply pairs improved, got worse or stayed as they were."""
    fallen = [fell(row) for row in rows(report, "gate")]
    order = ("good", "improved", "worse", "bad")
    parts = [Part(CHANGES[name], fallen.count(name), f"pair-{name}") for name in order]
    return stack(parts, unit="gate prompt", label="How the replies changed")


def fell(row: Report) -> str:
    """Which of `CHANGES` a gate row is."""
    before, after = bool(row.get("before_good")), bool(row.get("after_good"))
    if before:
        return "good" if after else "worse"
    return "improved" if after else "bad"
