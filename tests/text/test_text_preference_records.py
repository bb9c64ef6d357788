"""Files of preferences and prompts: what is read, and what an error says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlx_companion.errors import DataError
from mlx_companion.text.preference_records import (
    JudgedCompletion,
    PreferencePair,
    conversation,
    judge_pairs,
    parse_judged,
    parse_pair,
    read_judged,
    read_pairs,
)
from mlx_companion.text.prompt_records import parse_prompt, read_prompts
from mlx_companion.text.records import Message, ReadReport

ASKED = (Message("user", "2 + 2?"),)
TURNS = [{"role": "user", "content": "2 + 2?"}]


def turns(reply: str) -> list[dict[str, str]]:
    return [*TURNS, {"role": "assistant", "content": reply}]


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"},
        {"prompt": TURNS, "chosen": "4", "rejected": "5"},
        {"messages": TURNS, "chosen": "4", "rejected": "5", "margin": 3},
        {"chosen": turns("4"), "rejected": turns("5")},
        {"prompt": "2 + 2?", "chosen": turns("4"), "rejected": turns("5")},
        {"prompt": TURNS, "chosen": turns("4")[1:], "rejected": turns("5")[1:]},
    ],
)
def test_forms_of_a_pair(record: dict[str, Any]) -> None:
    assert parse_pair(record) == PreferencePair(ASKED, "4", "5")


def test_earlier_turns_of_the_assistant_stay_in_the_prompt() -> None:
    longer = [*turns("4"), {"role": "user", "content": "sure?"}]
    pair = parse_pair({"messages": longer, "chosen": "yes", "rejected": "no"})
    assert [message.role for message in pair.prompt] == ["user", "assistant", "user"]
    assert conversation(pair.prompt, pair.chosen).messages[-1] == Message("assistant", "yes")


@pytest.mark.parametrize("label", [True, "true", "True"])
def test_forms_of_a_judged_reply(label: Any) -> None:
    record = {"prompt": "2 + 2?", "completion": "4", "label": label}
    assert parse_judged(record) == JudgedCompletion(ASKED, "4", True)
    assert not parse_judged(record | {"label": False}).desirable


def test_pairs_become_judged_replies() -> None:
    assert judge_pairs([PreferencePair(ASKED, "4", "5", "a:1")]) == [
        JudgedCompletion(ASKED, "4", True, "a:1"),
        JudgedCompletion(ASKED, "5", False, "a:1"),
    ]


GOOD = {"prompt": "p", "chosen": "a", "rejected": "b"}


@pytest.mark.parametrize(
    ("record", "field", "problem"),
    [
        (["a"], None, "expected an object"),
        ({"prompt": "p", "chosen": "a"}, "rejected", "is missing"),
        ({"chosen": "a", "rejected": "b"}, "prompt", "is missing"),
        (GOOD | {"messages": TURNS}, "messages", "both given"),
        (GOOD | {"chosen": " "}, "chosen", "is empty"),
        (GOOD | {"chosen": 4}, "chosen", "expected text, got a number"),
        (GOOD | {"prompt": "a\0b"}, "prompt", "NUL"),
        (GOOD | {"rejected": "a"}, "rejected", "equals 'chosen'"),
        (GOOD | {"chosen": TURNS}, "chosen", "end with the assistant"),
        (GOOD | {"chosen": turns("4")}, "chosen", "not those of the prompt"),
        ({"chosen": turns("4"), "rejected": "5"}, None, None),
        ({"prompt": turns("4"), "chosen": "a", "rejected": "b"}, "prompt", "must end with a turn"),
        ({"messages": [{"role": "x", "content": "a"}], "chosen": "a", "rejected": "b"},
         "messages[0].role", "unknown role"),
        ({"prompt": [{"role": "user"}], "chosen": "a", "rejected": "b"},
         "prompt[0].content", "is missing"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_pair(record: Any, field: str | None, problem: str | None) -> None:
    if problem is None:
        assert parse_pair(record) == PreferencePair(ASKED, "4", "5")
        return
    with pytest.raises(DataError) as caught:
        parse_pair(record, path="data.jsonl", line=7)
    assert (caught.value.field, caught.value.line) == (field, 7)
    assert str(caught.value).startswith("data.jsonl:7: ")
    assert problem in str(caught.value)


@pytest.mark.parametrize("label", [1, "yes", None, 0.5])
def test_a_label_is_true_or_false(label: Any) -> None:
    with pytest.raises(DataError, match="field 'label': expected true or false"):
        parse_judged({"prompt": "p", "completion": "c", "label": label})


def test_files_are_read_or_skipped(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", GOOD, {"prompt": "p"}, GOOD | {"chosen": "c"})
    with pytest.raises(DataError, match=r"a\.jsonl:2: field 'chosen': is missing"):
        read_pairs(path)
    report = ReadReport()
    found = read_pairs(path, on_error="skip", report=report)
    assert [pair.source for pair in found] == [f"{path}:1", f"{path}:3"]
    assert (report.read, [error.line for error in report.skipped]) == (2, [2])
    with pytest.raises(DataError, match=r"no usable row \(3 were skipped\)"):
        read_judged(path, on_error="skip")
    (tmp_path / "b.csv").write_text("prompt,completion,label\np,c,false\n")
    assert read_judged(tmp_path / "b.csv")[0].desirable is False
    path.write_text("{oops\n")
    with pytest.raises(DataError, match=r"a\.jsonl:1: bad JSON"):
        read_pairs(path)


def test_prompts_keep_their_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", {"prompt": "2 + 2?", "answer": 4}, {"messages": TURNS})
    first, second = read_prompts(path)
    assert (first.prompt, first.fields["answer"], first.source) == ("2 + 2?", 4, f"{path}:1")
    assert second.prompt == TURNS
    path.write_text("")
    with pytest.raises(DataError, match="at least one prompt"):
        read_prompts(path)


@pytest.mark.parametrize(
    ("record", "field"),
    [
        ("text", None),
        ({"question": "?"}, "prompt"),
        ({"prompt": " "}, "prompt"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages"),
    ],
)
def test_what_is_wrong_with_a_prompt(record: Any, field: str | None) -> None:
    with pytest.raises(DataError) as caught:
        parse_prompt(record, path="data.jsonl", line=3)
    assert (caught.value.field, caught.value.line) == (field, 3)
