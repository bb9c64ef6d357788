"""What `slm_accuracy` measures: each small module's answers beside its gold set.

`MEASURES` maps a module's name to a function that takes the module's `process_batch` and returns
its figures. The gold sets and how they are labelled: tests/fixtures/slm/README.md. Nothing here
knows how a module works; results are read by their public fields alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.common import ROOT
from benchmarks.slm_scores import Found, binary, calibration, concordance, counts, share, surest

GOLD = ROOT / "tests" / "fixtures" / "slm"
ENUMERABLE = (
    "asterisk_action",
    "caps_enthusiasm",
    "coffee_reference",
    "exclamation_overuse",
    "name_overuse",
)
TONE = "tone_cheerleader"
# Neither slang nor plain: the labels leave these words open.
_OPEN = "gonna wanna gotta kinda dunno yeah nope cool ok haha hey ugh mum kid folks guys gig y'all"
OPEN_WORDS = frozenset(re.findall(r"\S+", _OPEN))
# Sets of each kind that were written after the first.
LATER = {
    "queries": ("second", "third"),
    "responses": ("second", "third", "fourth", "fifth", "sixth", "seventh"),
    "messages": ("second", "third"),
    "attachment": ("second", "third", "fourth", "fifth", "long"),
}
DEPTHS = {"low": 0, "medium": 1, "high": 2}
# A reply needs something to be compared with; this one says nothing about the voice.
NEUTRAL = ["The file is in the folder.", "It opens at nine.", "Row 12 is empty."]

Batch = Callable[[Sequence[Any]], list[Any]]
Row = dict[str, Any]


def rows(name: str) -> list[Row]:
    """A gold set."""
    lines = (GOLD / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def research(batch: Batch) -> dict[str, Any]:
    """The research classifier over its sets."""
    kept = ("needs research", "surest", "calibration")
    return _research(batch, "queries") | _later(batch, _research, "queries", kept)


def _later(
    batch: Batch,
    figures_of: Callable[[Batch, str], Mapping[str, Any]],
    name: str,
    kept: Sequence[str] = (),
) -> dict[str, Any]:
    """Figures of the later sets of a name, each with the set's before its own."""
    found: dict[str, Any] = {}
    for which in LATER[name]:
        figures = figures_of(batch, f"{name}_{which}")
        found |= {f"{which} set, {what}": figures[what] for what in kept or figures}
    return found


def _research(batch: Batch, name: str) -> dict[str, Any]:
    gold = rows(name)
    results = batch([row["query"] for row in gold])
    need = [row["needs_research"] for row in gold]
    said = [result.needs_research for result in results]
    chance = [r.confidence if r.needs_research else 1 - r.confidence for r in results]
    wrong = [row for row, one, other in zip(gold, need, said, strict=True) if one != other]
    return {
        "needs research": binary(need, said),
        "surest": surest(need, chance),
        "calibration": calibration(need, chance),
        "errors_by_style": _tally(wrong, gold, "style"),
        "errors_by_category": _tally(wrong, gold, "category"),
    }


def guard(batch: Batch) -> dict[str, Any]:
    """The personality guard over its sets, and its hearing of cheer over single texts."""
    gold = rows("tone")
    results = batch([{"text": row["text"]} for row in gold])
    cheer = [TONE in result.violations_detected for result in results]
    return (
        _guard(batch, "responses")
        | {"cheer in single texts": binary([row["cheer"] for row in gold], cheer)}
        | _later(batch, _guard, "responses")
    )


def _guard(batch: Batch, name: str) -> dict[str, Any]:
    """Which rules are broken, where, and what rewriting leaves."""
    gold = rows(name)
    results = batch([_guard_input(row) for row in gold])
    figures: dict[str, Any] = {}
    for rule in (*ENUMERABLE, TONE):
        there = [rule in row["violations"] for row in gold]
        figures[rule] = binary(there, [rule in result.violations_detected for result in results])
    rules = [_found(row["violations"], r.violations_detected) for row, r in _pairs(gold, results)]
    figures["enumerable rules"] = counts(rules)
    figures["places"] = counts([_places(row, result) for row, result in _pairs(gold, results)])
    clean = [result for row, result in _pairs(gold, results) if not row["violations"]]
    figures["clean replies changed"] = share(
        sum(result.rewritten_response != result.original_response for result in clean), len(clean)
    )
    return figures | _rewriting(gold, results, batch)


def _rewriting(gold: Sequence[Row], results: Sequence[Any], batch: Batch) -> dict[str, Any]:
    again = batch(
        [
            {**_guard_input(row), "text": result.rewritten_response}
            for row, result in _pairs(gold, results)
        ]
    )
    broken = [
        (row, r, after)
        for (row, r), after in zip(_pairs(gold, results), again, strict=True)
        if row["violations"]
    ]
    gone = [
        span["text"] not in result.rewritten_response
        for row, result, _ in broken
        for span in row["spans"]
        if span["violation"] in ENUMERABLE[:3]
    ]
    kept = [fixed_parts(r.original_response) == fixed_parts(r.rewritten_response) for r in results]
    quiet = sum(not after.violations_detected for *_, after in broken)
    return {
        "labelled actions, capitals, coffee gone": share(sum(gone), len(gone)),
        "nothing found after rewriting": share(quiet, len(broken)),
        "code, links, numbers kept": share(sum(kept), len(kept)),
    }


def fixed_parts(text: str) -> list[str]:
    """Code, addresses and numbers, in order."""
    return re.findall(r"```.*?```|`[^`\n]+`|https?://\S+|\d+(?:[.,:]\d+)*", text, re.DOTALL)


def tracker(batch: Batch) -> dict[str, Any]:
    """The context tracker over its sets; depth over the first."""
    gold = rows("messages")
    results = batch([row["text"] for row in gold])
    later = _later(batch, _messages, "messages", ("slang", "formal", "calibration"))
    return _register(gold, results) | _depth(gold, results) | later


def _messages(batch: Batch, name: str) -> dict[str, Any]:
    gold = rows(name)
    return _register(gold, batch([row["text"] for row in gold]))


def _register(gold: Sequence[Row], results: Sequence[Any]) -> dict[str, Any]:
    slang = [_slang(row, result) for row, result in _pairs(gold, results)]
    formal = [row["formality"] == "formal" for row in gold]
    level = [result.formality_level for result in results]
    return {
        "slang": counts(slang),
        "messages without slang": binary(
            [not row.there for row in slang], [row.found == row.right == 0 for row in slang]
        ),
        "formal": binary(formal, [value >= 0.5 for value in level]),
        "calibration": calibration(formal, level),
        "formality order": concordance([int(one) for one in formal], level),
    }


def _depth(gold: Sequence[Row], results: Sequence[Any]) -> dict[str, Any]:
    depth = [DEPTHS[row["technical"]] for row in gold]
    given = [result.technical_depth for result in results]
    thirds = sum(min(int(value * 3), 2) == label for value, label in zip(given, depth, strict=True))
    return {
        "technical depth in thirds": share(thirds, len(gold)),
        "technical depth order": concordance(depth, given),
    }


def drift(batch: Batch) -> dict[str, Any]:
    """The drift monitor: histories, and the attachment of single messages and replies."""
    gold = rows("histories")
    results = [batch([{"responses": row["responses"]}])[0] for row in gold]
    there = [row["drift"] for row in gold]
    said = [bool(result.drift_detected) for result in results]
    pairs = _pairs(gold, results)
    hits = [(row, r) for row, r in pairs if row["drift"] and r.drift_detected]
    figures: dict[str, Any] = {
        "drift": binary(there, said),
        "kind right": share(sum(r.drift_type == row["drift_type"] for row, r in hits), len(hits)),
    }
    for kind in ("tone", "over_attachment", "repetition", "boundary", "anomaly"):
        found = [r.drift_detected for row, r in pairs if row["drift_type"] == kind]
        figures[f"{kind} found"] = share(sum(found), len(found))
    within = [
        r.drift_detected
        for row, r in pairs
        if row["drift_type"] == "tone" and len(row["responses"]) <= 24
    ]
    figures["tone found, 24 replies at most"] = share(sum(within), len(within))
    later = _later(batch, _attachment, "attachment")
    return figures | _attachment(batch, "attachment") | later


def _attachment(batch: Batch, name: str) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for role in ("user", "assistant"):
        gold = [row for row in rows(name) if row["role"] == role]
        items = [_attachment_input(row) for row in gold]
        results = [batch([item])[0] for item in items]
        value = [getattr(result, f"{role}_attachment") for result in results]
        there = [row["attachment"] for row in gold]
        figures[f"{role} attachment"] = binary(there, [one >= 0.5 for one in value])
        figures[f"{role} calibration"] = calibration(there, value)
    return figures


def _attachment_input(row: Mapping[str, Any]) -> dict[str, Any]:
    if row["role"] == "user":
        return {"text": row["text"]}
    return {"baseline": NEUTRAL, "responses": [row["text"]]}


MEASURES: dict[str, Callable[[Batch], dict[str, Any]]] = {
    "research_classifier": research,
    "personality_guard": guard,
    "context_tracker": tracker,
    "drift_monitor": drift,
}


def _pairs(gold: Sequence[Row], results: Sequence[Any]) -> list[tuple[Row, Any]]:
    return list(zip(gold, results, strict=True))


def _guard_input(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: row[key] for key in ("text", "user_name") if key in row}


def _found(there: Sequence[str], said: Sequence[str]) -> Found:
    gold, found = set(there) & set(ENUMERABLE), set(said) & set(ENUMERABLE)
    both = len(gold & found)
    return Found(both, len(found), both, len(gold))


def _places(row: Mapping[str, Any], result: Any) -> Found:
    gold = [
        (span["violation"], match.start(), match.end())
        for span in row["spans"]
        for match in re.finditer(re.escape(span["text"]), row["text"])
    ]
    found = [
        (span["violation"], span["start"], span["end"])
        for span in result.spans
        if span["violation"] in (*ENUMERABLE, TONE)
    ]
    right = sum(any(_meet(one, other) for other in gold) for one in found)
    labelled = {(span["violation"], span["text"]) for span in row["spans"]}
    hit = sum(
        any(_meet((name, m.start(), m.end()), other) for other in found
            for m in re.finditer(re.escape(text), row["text"]))
        for name, text in labelled
    )  # fmt: skip
    return Found(right, len(found), hit, len(labelled))


def _meet(one: tuple[str, int, int], other: tuple[str, int, int]) -> bool:
    return one[0] == other[0] and one[1] < other[2] and other[1] < one[2]


def _slang(row: Mapping[str, Any], result: Any) -> Found:
    gold = [slang["term"].lower() for slang in row["slang"]]
    found = [item["term"].lower() for item in result.slang_detected]
    found = [term for term in found if term not in OPEN_WORDS]
    right = sum(any(_same_term(term, other) for other in gold) for term in found)
    hit = sum(any(_same_term(term, other) for other in found) for term in gold)
    return Found(right, len(found), hit, len(gold))


def _same_term(one: str, other: str) -> bool:
    """The same words, or one within the other: "throw shade" and "shade"."""
    short, long = sorted((one, other), key=len)
    return re.search(rf"(?<!\w){re.escape(short)}", long) is not None


def _tally(wrong: Sequence[Row], gold: Sequence[Row], key: str) -> dict[str, str]:
    names = sorted({row[key] for row in gold})
    return {
        name: f"{sum(row[key] == name for row in wrong)} of {sum(row[key] == name for row in gold)}"
        for name in names
    }
