"""Which prompts train and which ones test: the person's own, the packaged, and never both."""

from __future__ import annotations

import hashlib
import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from open_rounds import open_round
from tiny import tiny_llama
from word_encoder import WordEncoder

from mlx_companion.loop.collect import (
    RoundPrompt,
    collect,
    gate_sha256,
    is_gate_prompt,
    topics_of,
)
from mlx_companion.loop.judges import normalized
from mlx_companion.loop.packaged import load_prompts
from mlx_companion.loop.progress import Silent
from mlx_companion.models.load import load


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return load(tiny_llama(tmp_path_factory.mktemp("llama"), max_position_embeddings=2048))


class Notes(Silent):
    def __init__(self):
        self.heard = []

    def note(self, text):
        self.heard.append(text)


@pytest.fixture
def collected(store, lm):
    """Collects from the store under some settings; gives the payload and what was told."""

    def run(**changes):
        ctx = open_round(store, lm=lm, **{f"collect.{k}": v for k, v in changes.items()})
        ctx.encoder = WordEncoder()
        ctx.progress = Notes()
        return collect(ctx), ctx.progress.heard

    return run


def prompts(rows):
    return [row["prompt"] for row in rows]


def ask(store, *asked, reply="A reply."):
    return [store.interactions.add(prompt, reply) for prompt in asked]


def numbered(count, gate, start=0):
    """Prompts of which the hash puts all into (or out of) a gate of 25 percent."""
    found, n = [], start
    while len(found) < count:
        prompt = f"Tell me of the garden in year {n}"
        if by_hash(prompt, 25) == gate:
            found.append(prompt)
        n += 1
    return found


def by_hash(prompt, percent):
    """The rule of the split, written out."""
    digest = hashlib.sha256(normalized(prompt).encode()).hexdigest()
    return int(digest[:8], 16) % 100 < percent


@given(st.text(max_size=30), st.integers(0, 100))
def test_the_side_of_a_prompt_is_its_hash(prompt, percent):
    packaged = {normalized(row.prompt) for row in load_prompts()}
    if normalized(prompt) not in packaged:
        assert is_gate_prompt(prompt, percent) == by_hash(prompt, percent)
        assert is_gate_prompt(f" {prompt.upper()}?", percent) == by_hash(prompt.upper(), percent)


def test_sides_are_for_good():
    # Written down once: a change of the rule would mix what trained with what tests.
    sides = {
        "Why is the sky so wide?": False,
        "Who ate the plums": True,
        "How do fish sleep": False,
    }
    assert {prompt: is_gate_prompt(prompt, 25) for prompt in sides} == sides
    asked = [f"Question number {n}" for n in range(4000)]
    share = sum(is_gate_prompt(prompt, 25) for prompt in asked) / len(asked)
    assert share == pytest.approx(0.25, abs=0.03)
    assert not any(is_gate_prompt(prompt, 0) for prompt in asked[:100])
    assert all(is_gate_prompt(prompt, 100) for prompt in asked[:100])
    for row in load_prompts():
        assert is_gate_prompt(row.prompt, 25) == (row.split == "gate")


def test_an_empty_store_uses_the_packaged_prompts_and_says_so(collected):
    payload, heard = collected()
    train, gate = load_prompts("train"), load_prompts("gate")
    assert set(prompts(payload["train"])) == {row.prompt for row in train}
    assert payload["packaged"]
    assert payload["own_prompts"] == 0
    assert len(payload["gate"]) == 160
    assert set(prompts(payload["gate"])) <= {row.prompt for row in gate}
    assert len(heard) == 1
    assert "0 prompts of your own" in heard[0]
    assert "packaged" in heard[0]
    assert payload["feedback"] == payload["disliked"] == []
    json.dumps(payload)


def test_any_cut_of_the_packaged_prompts_holds_every_topic(collected):
    topics = {row.topic for row in load_prompts()}
    payload, _ = collected(max_prompts=len(topics), gate_items=len(topics))
    for side in ("train", "gate"):
        assert {row["topic"] for row in payload[side]} == topics
        assert len(payload[side]) == len(topics)


def test_own_prompts_come_first_with_or_without_feedback(store, collected):
    own = numbered(5, gate=False)
    said = ask(store, *own)
    store.feedback.add(said[1].id, "up")
    payload, heard = collected()
    assert prompts(payload["train"])[:5] == own
    assert payload["own_prompts"] == 5
    assert payload["packaged"]
    assert "5 prompts of your own" in heard[0]
    assert len({row["id"] for row in payload["train"]}) == len(payload["train"])


def test_with_enough_own_prompts_only_those_train(store, collected):
    own = [*numbered(30, gate=False), *numbered(10, gate=True)]
    ask(store, *own)
    payload, heard = collected(least_prompts=40, gate_block=5)
    assert prompts(payload["train"]) == own[:30]
    assert not payload["packaged"]
    assert heard == []
    assert prompts(payload["gate"])[:10] == own[30:]
    packaged = {row.prompt for row in load_prompts("gate")}
    assert set(prompts(payload["gate"])[10:]) <= packaged, "packaged ones fill up the gate"
    assert len(payload["gate"]) == 160


def test_no_prompt_is_on_both_sides(store, collected):
    train, gate = load_prompts("train"), load_prompts("gate")
    own = [*numbered(20, gate=False), *numbered(50, gate=True)]
    ask(store, *own, *(row.prompt.upper() for row in (*train[:9], *gate[:9])))
    payload, _ = collected(gate_block=1)
    sides = [[normalized(p) for p in prompts(payload[side])] for side in ("train", "gate")]
    assert not set(sides[0]) & set(sides[1])
    for side in sides:
        assert len(side) == len(set(side)), "a prompt is there twice"
    assert not {normalized(row.prompt) for row in gate} & set(sides[0])
    assert {normalized(row.prompt) for row in train[:9]} <= set(sides[0])


def test_own_gate_prompts_join_in_blocks(store, collected):
    own = numbered(9, gate=True)
    hashes = []
    for count in range(10):
        if count:
            ask(store, own[count - 1])
        payload, _ = collected(gate_block=4, gate_items=20)
        kept = [prompt for prompt in prompts(payload["gate"]) if prompt in own]
        assert kept == own[: count // 4 * 4]
        assert len(payload["gate"]) == 20
        hashes.append(payload["gate_sha256"])
    assert hashes == [hashes[0]] * 4 + [hashes[4]] * 4 + [hashes[8]] * 2
    assert len(set(hashes)) == 3


def test_a_full_gate_takes_the_newest_blocks(store, collected):
    own = numbered(12, gate=True)
    ask(store, *own)
    payload, _ = collected(gate_block=4, gate_items=8)
    assert prompts(payload["gate"]) == own[4:]


def test_asking_again_changes_nothing(store, collected):
    own = [*numbered(6, gate=False), *numbered(6, gate=True)]
    ask(store, *own)
    before, _ = collected(gate_block=2)
    ask(store, *(f"  {prompt.upper()}?" for prompt in reversed(own)))
    after, _ = collected(gate_block=2)
    assert after == before


def test_the_newest_training_prompts_are_kept(store, collected):
    own = numbered(12, gate=False)
    ask(store, *own)
    payload, _ = collected(max_prompts=5)
    assert prompts(payload["train"]) == own[7:]


def test_what_the_model_cannot_read_is_left_out(store, lm, collected):
    fine, long = numbered(2, gate=False)[0], "Very long. " * 400
    wide = "\u4f60\u597d" * 400
    assert len(wide) < 2000 < len(long)
    assert len(lm.tokenizer.encode(wide)) > 2048
    said = ask(store, fine, long, wide, "x" * 100_000)
    for each in said:
        store.feedback.add(each.id, "edit", "Better.")
    payload, _ = collected()
    assert payload["own_prompts"] == 1
    asked = {*prompts(payload["train"]), *prompts(payload["gate"])}
    assert fine in asked
    assert not {long, wide, "x" * 100_000} & asked
    assert [row["prompt"] for row in payload["feedback"]] == [fine]
    assert [prompt for prompt, _ in payload["disliked"]] == [fine]
    shorter, _ = collected(max_prompt_chars=len(fine) - 1)
    assert shorter["own_prompts"] == 0


def test_feedback_becomes_rows_of_prompts_that_may_train(store, collected):
    train = numbered(7, gate=False)
    said = dict(zip(train, ask(store, *train), strict=True))
    tested = ask(store, *numbered(2, gate=True))
    kinds = [["edit"], ["up"], ["down"], ["up", "down"], ["down", "up"], ["edit", "down"], []]
    for prompt, given_kinds in zip(train, kinds, strict=True):
        for kind in given_kinds:
            edited = f"Edited: {prompt}" if kind == "edit" else None
            store.feedback.add(said[prompt].id, kind, edited)
    store.feedback.add(tested[0].id, "edit", "Never.")
    store.feedback.add(tested[1].id, "up")
    (blank,) = ask(store, numbered(8, gate=False)[-1], reply=" ")
    store.feedback.add(blank.id, "up")
    payload, _ = collected()
    assert payload["feedback"] == [
        {"prompt": train[0], "response": f"Edited: {train[0]}"},
        {"prompt": train[1], "response": "A reply."},
        {"prompt": train[4], "response": "A reply."},
        {"prompt": train[5], "response": f"Edited: {train[5]}"},
    ]
    disliked = [train[0], train[2], train[3], train[5], tested[0].prompt]
    assert sorted(payload["disliked"]) == sorted([prompt, "A reply."] for prompt in disliked)


def test_collecting_twice_gives_the_same(store, collected):
    ask(store, *numbered(5, gate=False), *numbered(5, gate=True))
    assert collected()[0] == collected()[0]


def test_a_gate_set_is_named_by_its_prompts_alone():
    rows = [RoundPrompt(str(i), "t", text) for i, text in enumerate(["a", "b", "c\u4f60"])]
    name = gate_sha256(rows)
    assert len(name) == 64
    assert gate_sha256(reversed(rows)) == name
    assert gate_sha256([RoundPrompt("other", "x", row.prompt) for row in rows]) == name
    assert gate_sha256(rows[:2]) != name
    assert gate_sha256([RoundPrompt("0", "t", "ab"), rows[2]]) != name


def test_topics_are_those_of_the_nearest_packaged_prompts():
    known = load_prompts("train")
    encoder = WordEncoder()
    found = topics_of(encoder, [row.prompt for row in known])
    agreeing = sum(a == row.topic for a, row in zip(found, known, strict=True))
    assert agreeing / len(known) > 0.6, "its own topic holds the prompt itself"
    assert set(found) <= {row.topic for row in known}
    assert topics_of(encoder, []) == []
    cooking = Counter(topics_of(encoder, ["How long do I boil rice and bake bread dough?"] * 3))
    assert len(cooking) == 1


def test_own_prompts_get_a_topic(store, collected):
    own = numbered(3, gate=False)
    ask(store, *own)
    payload, _ = collected()
    topics = {row.topic for row in load_prompts()}
    assert {row["topic"] for row in payload["train"][:3]} <= topics
    assert payload["train"][0]["topic"] == topics_of(WordEncoder(), own)[0]
