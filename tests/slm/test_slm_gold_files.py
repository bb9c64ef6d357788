"""The gold sets in tests/fixtures/slm keep their shape: labels known, spans real, nothing twice."""

from __future__ import annotations

import importlib.util
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

GOLD = Path(__file__).parent.parent / "fixtures" / "slm"
VIOLATIONS = {
    "asterisk_action",
    "caps_enthusiasm",
    "coffee_reference",
    "exclamation_overuse",
    "name_overuse",
    "tone_cheerleader",
}
DRIFTS = {"tone", "over_attachment", "repetition", "boundary", "anomaly"}
AT_LEAST = {
    "queries": 240,
    "queries_second": 200,
    "queries_third": 200,
    "responses": 320,
    "responses_second": 100,
    "responses_third": 200,
    "responses_fourth": 150,
    "responses_fifth": 200,
    "responses_sixth": 250,
    "responses_seventh": 250,
    "tone": 250,
    "messages": 220,
    "messages_second": 100,
    "messages_third": 150,
    "attachment": 200,
    "attachment_second": 150,
    "attachment_third": 300,
    "attachment_fourth": 500,
    "attachment_fifth": 1000,
    "attachment_long": 120,
    "histories": 100,
    "voices": 480,
}
QUERIES = [name for name in AT_LEAST if name.startswith("queries")]
RESPONSES = [name for name in AT_LEAST if name.startswith("responses")]
MESSAGES = [name for name in AT_LEAST if name.startswith("messages")]
ATTACHMENT = [name for name in AT_LEAST if name.startswith("attachment")]
TEXT_FIELD = dict.fromkeys(QUERIES, "query")


def rows(name: str) -> list[dict[str, Any]]:
    lines = (GOLD / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def texts(name: str) -> list[str]:
    return [one[TEXT_FIELD.get(name, "text")] for one in rows(name)]


@pytest.mark.parametrize("name", AT_LEAST)
def test_enough_rows(name: str) -> None:
    assert len(rows(name)) >= AT_LEAST[name]


def test_no_text_is_in_two_places() -> None:
    names = [name for name in AT_LEAST if name != "histories"]
    squeezed = Counter(re.sub(r"\W+", " ", t).strip().lower() for n in names for t in texts(n))
    # Broken replies may consist of signs only, which squeeze to nothing.
    assert [text for text, count in squeezed.items() if count > 1 and text] == []


@pytest.mark.parametrize("name", [name for name in AT_LEAST if name != "histories"])
def test_texts_are_trimmed_and_not_empty(name: str) -> None:
    assert [text for text in texts(name) if not text or text != text.strip()] == []


def test_both_labels_in_every_style_of_query() -> None:
    seen = Counter((one["style"], one["needs_research"]) for one in rows("queries"))
    styles = {style for style, _ in seen}
    assert len(styles) >= 10
    assert all(seen[style, label] >= 6 for style in styles for label in (True, False))
    share = sum(one["needs_research"] for one in rows("queries")) / len(rows("queries"))
    assert 0.45 < share < 0.55


@pytest.mark.parametrize("name", QUERIES)
def test_queries_have_these_fields_only(name: str) -> None:
    fields = {"query", "needs_research", "category", "style"}
    assert all(set(one) == fields for one in rows(name))
    assert all(isinstance(one["needs_research"], bool) for one in rows(name))


@pytest.mark.parametrize("name", RESPONSES)
def test_spans_occur_in_their_reply_and_agree_with_its_violations(name: str) -> None:
    for one in rows(name):
        assert {span["violation"] for span in one["spans"]} == set(one["violations"])
        assert set(one["violations"]) <= VIOLATIONS
        assert all(span["text"] in one["text"] for span in one["spans"]), one["text"]


def test_each_violation_is_common_and_often_clean() -> None:
    replies = rows("responses")
    found = Counter(name for one in replies for name in one["violations"])
    assert all(found[name] >= 30 for name in VIOLATIONS)
    assert 0.4 < sum(not one["violations"] for one in replies) / len(replies) < 0.55
    assert sum(len(one["violations"]) > 1 for one in replies) >= 20
    assert sum("\n" in one["text"] for one in replies) >= 40


def test_a_broken_name_rule_names_the_person() -> None:
    for one in rows("responses"):
        if "name_overuse" in one["violations"]:
            assert one["text"].count(one["user_name"]) >= 2


def test_exclamation_marks_are_there_where_labelled() -> None:
    marked = [one for one in rows("responses") if "exclamation_overuse" in one["violations"]]
    assert all(one["text"].count("!") >= 2 for one in marked)


@pytest.mark.parametrize("name", MESSAGES)
def test_slang_terms_occur_in_their_message(name: str) -> None:
    for one in rows(name):
        assert all(slang["term"].lower() in one["text"].lower() for slang in one["slang"])
        assert all(slang["sense"] for slang in one["slang"])
        assert one["formality"] in ("formal", "informal")
    assert all(one["technical"] in ("low", "medium", "high") for one in rows("messages"))


def test_messages_have_every_kind() -> None:
    kinds = Counter((one["formality"], one["technical"]) for one in rows("messages"))
    assert all(kinds[f, t] >= 10 for f in ("formal", "informal") for t in ("low", "medium", "high"))
    informal = [one for one in rows("messages") if one["formality"] == "informal"]
    assert sum(not one["slang"] for one in informal) >= 60
    assert sum(bool(one["slang"]) for one in informal) >= 80


def test_ambiguous_slang_stands_in_both_senses() -> None:
    slang = {s["term"].lower() for one in rows("messages") for s in one["slang"]}
    plain = " ".join(one["text"].lower() for one in rows("messages") if not one["slang"])
    both = [term for term in slang if re.search(rf"\b{re.escape(term)}\b", plain)]
    assert len(both) >= 20


@pytest.mark.parametrize("name", ATTACHMENT)
def test_attachment_has_both_labels_for_both_roles(name: str) -> None:
    seen = Counter((one["role"], one["attachment"]) for one in rows(name))
    assert set(seen) == {(r, label) for r in ("user", "assistant") for label in (True, False)}
    assert min(seen.values()) >= 30


def test_voices_are_many_and_broad() -> None:
    topics = {(one["voice"], one["topic"]) for one in rows("voices")}
    per_voice = Counter(one["voice"] for one in rows("voices"))
    plain = [voice for voice, count in per_voice.items() if count >= 40]
    assert len(plain) >= 12
    assert all(sum(voice == name for voice, _ in topics) >= 10 for name in plain)


def test_histories_are_what_they_say() -> None:
    histories = rows("histories")
    for one in histories:
        assert 16 <= len(one["responses"]) <= 40
        assert len(one["responses"]) % 2 == 0
        assert one["drift"] == (one["drift_type"] is not None)
        twice = len(set(one["responses"])) < len(one["responses"])
        assert not twice or one["drift_type"] == "repetition"
    kinds = Counter(one["drift_type"] for one in histories)
    assert set(kinds) == DRIFTS | {None}
    assert min(kinds.values()) >= 10
    assert kinds[None] >= 40


def test_topics_of_the_halves_are_disjoint() -> None:
    # Two voices have a few topics in common by name, so a topic counts with its voice.
    topic_of = {one["text"]: (one["voice"], one["topic"]) for one in rows("voices")}
    for one in rows("histories"):
        replies, half = one["responses"], len(one["responses"]) // 2
        first, second = ({topic_of[r] for r in part} for part in (replies[:half], replies[half:]))
        assert not first & second
        assert len({voice for voice, _ in first}) == 1
        if not one["drift"]:
            assert {voice for voice, _ in first} == {voice for voice, _ in second}


def test_histories_are_what_the_composer_writes() -> None:
    spec = importlib.util.spec_from_file_location("compose", GOLD / "compose_histories.py")
    assert spec is not None
    assert spec.loader is not None
    composer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(composer)
    assert composer.compose() == rows("histories")
