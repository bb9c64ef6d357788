"""The packaged data: enough of it, varied, split without leaks, and read strictly."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from mlx_companion.errors import DataError
from mlx_companion.loop.packaged import (
    PackagedPrompt,
    general_prompts,
    general_text,
    load_prompts,
    load_qa_pairs,
    prompts_sha256,
)

GOOD = {"id": "a-1", "topic": "a", "split": "train", "prompt": "Why is the sky blue?"}


def _words(text: str) -> list[str]:
    return re.findall(r"[\w']+", text.lower())


def _grams(text: str, size: int) -> set[tuple[str, ...]]:
    spoken = _words(text)
    return {tuple(spoken[at : at + size]) for at in range(len(spoken) - size + 1)}


def _overlap(one: set[str], other: set[str]) -> float:
    return len(one & other) / len(one | other)


def _write(folder: Path, *rows: object) -> Path:
    path = folder / "own.jsonl"
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), "utf-8")
    return path


def test_enough_prompts_of_every_topic_in_both_splits() -> None:
    train, gate = load_prompts("train"), load_prompts("gate")
    assert len(train) >= 260
    assert len(gate) >= 160
    assert len(load_prompts()) == len(train) + len(gate)
    topics = Counter(row.topic for row in train)
    assert len(topics) >= 14
    assert set(topics) == {row.topic for row in gate}
    assert min(Counter(row.topic for row in gate).values()) >= 5


def test_prompts_are_varied() -> None:
    prompts = [row.prompt for row in load_prompts()]
    lengths = [len(_words(prompt)) for prompt in prompts]
    assert min(lengths) <= 4
    assert max(lengths) >= 45
    openings = Counter(tuple(_words(prompt)[:2]) for prompt in prompts)
    assert max(openings.values()) <= 0.08 * len(prompts)
    assert len(openings) >= 0.5 * len(prompts)
    assert sum("?" not in prompt for prompt in prompts) >= 0.2 * len(prompts)
    assert sum(prompt[0].islower() for prompt in prompts) >= 20


def test_gate_prompts_are_not_train_prompts_in_other_words() -> None:
    train, gate = load_prompts("train"), load_prompts("gate")
    seen = {gram: row.prompt for row in train for gram in _grams(row.prompt, 6)}
    shared = [(row.prompt, seen[g]) for row in gate for g in _grams(row.prompt, 6) if g in seen]
    assert shared == []
    bags = [(row.prompt, set(_words(row.prompt))) for row in train]
    for row in gate:
        mine = set(_words(row.prompt))
        nearest = max(bags, key=lambda bag: _overlap(mine, bag[1]))
        assert _overlap(mine, nearest[1]) < 0.6, (row.prompt, nearest[0])


def test_sorted_by_topic_with_ids_that_say_it() -> None:
    rows = load_prompts()
    assert [row.topic for row in rows] == sorted(row.topic for row in rows)
    assert all(row.id.startswith(f"{row.topic}-{row.split}-") for row in rows)


def test_pairs_ask_something_else_than_the_prompts() -> None:
    pairs = load_qa_pairs()
    assert len(pairs) >= 220
    assert {pair.topic for pair in pairs} == {row.topic for row in load_prompts()}
    prompts = {" ".join(_words(row.prompt)) for row in load_prompts()}
    assert not prompts & {" ".join(_words(pair.question)) for pair in pairs}
    assert all(8 <= len(pair.answer.split()) <= 40 for pair in pairs)
    assert len({pair.answer for pair in pairs}) == len(pairs)


def test_relevance_is_more_than_shared_words() -> None:
    # An answer that shares few words with its question keeps the threshold about meaning.
    def shared(question: str, answer: str) -> int:
        return len({w for w in _words(question) if len(w) > 3} & set(_words(answer)))

    counts = [shared(pair.question, pair.answer) for pair in load_qa_pairs()]
    assert counts.count(0) >= 0.25 * len(counts)
    assert sum(count >= 2 for count in counts) >= 0.15 * len(counts)


def test_general_text_is_plain_prose() -> None:
    text = general_text()
    assert 12_000 <= len(text.encode("utf-8")) <= 20_000
    paragraphs = text.strip().split("\n\n")
    assert len(paragraphs) == len(set(paragraphs)) >= 20
    assert all("\n" not in paragraph for paragraph in paragraphs)


def test_general_prompts() -> None:
    rows = general_prompts()
    assert len(rows) == 40
    assert len({row.kind for row in rows}) >= 6
    assert not {row.prompt for row in rows} & {row.prompt for row in load_prompts()}


def test_hash_follows_content_and_not_layout(tmp_path: Path) -> None:
    other = {**GOOD, "id": "a-2", "prompt": "Why is grass green?"}
    path = _write(tmp_path, GOOD, other)
    before = prompts_sha256("train", path)
    path = _write(tmp_path, json.dumps(other, sort_keys=True), GOOD)
    assert prompts_sha256("train", path) == before
    path = _write(tmp_path, GOOD, {**other, "prompt": "Why is grass tall?"})
    assert prompts_sha256("train", path) != before
    assert len({prompts_sha256(), prompts_sha256("train"), prompts_sha256("gate")}) == 3


def test_rows_of_ones_own(tmp_path: Path) -> None:
    odd = {**GOOD, "id": "a-2", "split": "gate", "prompt": "Line\u2028separator, \u8336 and \u00e9"}
    path = _write(tmp_path, GOOD, json.dumps(odd, ensure_ascii=False))
    assert load_prompts(None, path) == (PackagedPrompt(**GOOD), PackagedPrompt(**odd))
    assert load_prompts("gate", path) == (PackagedPrompt(**odd),)


@pytest.mark.parametrize(
    ("rows", "line", "field", "message"),
    [
        ([GOOD, "{"], 2, None, "not JSON"),
        ([GOOD, "", {**GOOD, "id": "b"}], 2, None, "not JSON"),
        (["[" * 100_000], 1, None, "not JSON"),
        (["[]"], 1, None, "expected a JSON object, got list"),
        ([{**GOOD, "promt": "x"}], 1, "promt", "did you mean 'prompt'"),
        ([{key: GOOD[key] for key in ("id", "topic", "split")}], 1, "prompt", "is None"),
        ([{**GOOD, "prompt": "  "}], 1, "prompt", "non-empty text"),
        ([{**GOOD, "topic": 3}], 1, "topic", "is 3"),
        ([{**GOOD, "split": "test"}], 1, "split", "expected train or gate"),
        ([GOOD, {**GOOD, "prompt": "Another."}], 2, "id", "repeats line 1"),
        ([GOOD, {**GOOD, "id": "b", "prompt": "why  is the sky BLUE?"}], 2, "prompt", "repeats"),
    ],
)
def test_wrong_rows_name_line_and_field(
    tmp_path: Path, rows: list[object], line: int, field: str | None, message: str
) -> None:
    path = _write(tmp_path, *rows)
    with pytest.raises(DataError) as caught:
        load_prompts(None, path)
    assert (caught.value.path, caught.value.line, caught.value.field) == (path, line, field)
    assert message in str(caught.value)


def test_wrong_files(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    with pytest.raises(DataError, match="cannot be read"):
        load_prompts(path=path)
    path.write_bytes(b"")
    with pytest.raises(DataError):
        load_prompts(path=path)
    path.write_bytes(json.dumps(GOOD).encode() + b"\n\xff\xfe\n")
    with pytest.raises(DataError, match=r"own\.jsonl:2: not UTF-8"):
        load_prompts(path=path)


def test_unknown_split() -> None:
    with pytest.raises(DataError, match="expected train or gate"):
        load_prompts("test")  # type: ignore[arg-type]
