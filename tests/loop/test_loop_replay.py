"""The training mix: how many rows of which prompts, topics and origins, on a real store."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st
from open_rounds import add_samples, finish, good, open_round

from mlx_companion.errors import LoopError
from mlx_companion.loop.judge import pairs_split
from mlx_companion.loop.judges import normalized
from mlx_companion.loop.replay import (
    SYNTHETIC,
    mix,
    most_synthetic,
    pick,
    real_rows_needed,
    training_samples,
)
from mlx_companion.personality import check, load_profile
from mlx_companion.store import Example
from mlx_companion.text import Message

NOBODY = {"gate": [], "feedback": []}


def example(number, prompt, reply, topic, new_words, likelihood=0.0):
    """A sample as the store would give it back."""
    given = dict.fromkeys(f.name for f in fields(Example)) | {
        "id": f"{number:05d}",
        "prompt": prompt,
        "prompt_sha": prompt,
        "response": reply,
        "topic": topic,
        "sample_index": number,
        "source": "generated",
        "scores": {"echo": {"value": new_words}, "likelihood": {"value": likelihood}},
    }
    return Example(**given)


SAMPLES = st.lists(
    st.tuples(
        st.sampled_from(["Why?", "why", "Who?", "When?", "Where?", "How?"]),
        st.sampled_from(["One.", "one", "Two.", "Three.", "Four."]),
        st.integers(-3, 3),
        st.integers(-3, 3),
    ),
    max_size=30,
).map(
    lambda rows: [
        example(i, prompt, reply, f"topic-{ord(prompt[1]) % 3}", *values)
        for i, (prompt, reply, *values) in enumerate(rows)
    ]
)


@given(SAMPLES, st.integers(1, 3), st.integers(0, 12))
def test_pick_keeps_k_distinct_samples_and_every_topic(samples, k, room):
    picked = pick(samples, k, room)
    assert len(picked) <= room
    assert len({e.id for e in picked}) == len(picked)
    replies = defaultdict(list)
    for e in picked:
        replies[normalized(e.prompt)].append(normalized(e.response))
    for texts in replies.values():
        assert len(texts) == len(set(texts)) <= k
    topics = {e.topic for e in samples}
    if room >= len(topics):
        assert {e.topic for e in picked} == topics
    else:
        assert len({e.topic for e in picked}) == len(picked), "no topic twice before all once"


@given(SAMPLES, st.integers(1, 3))
def test_pick_leaves_nothing_out_when_there_is_room(samples, k):
    distinct = defaultdict(set)
    for e in samples:
        distinct[normalized(e.prompt)].add(normalized(e.response))
    assert len(pick(samples, k, 1000)) == sum(min(k, len(texts)) for texts in distinct.values())


@given(SAMPLES, st.integers(0, 12))
def test_pick_spends_room_on_different_prompts_first(samples, room):
    picked = pick(samples, 3, room)
    for topic in {e.topic for e in samples}:
        prompts = {normalized(e.prompt) for e in samples if e.topic == topic}
        counts = Counter(normalized(e.prompt) for e in picked if e.topic == topic)
        if counts and max(counts.values()) > 1:
            assert set(counts) == prompts


def test_pick_takes_the_best_by_both_measures():
    rows = [
        example(0, "Why?", "Neither.", "a", 1, 0.1),
        example(1, "Why?", "Rich.", "a", 9, 0.0),
        example(2, "Why?", "Both.", "a", 8, 0.8),
        example(3, "Why?", "Likely.", "a", 0, 0.9),
    ]
    assert [e.response for e in pick(rows, 1, 10)] == ["Both."]
    assert pick(rows, 2, 10) == pick(rows, 2, 10)
    assert pick([], 2, 10) == []


def test_rows_that_are_given_count_for_their_prompt():
    rows = [example(i, "Why?", f"Reply {i}.", "a", 1.0 - i / 10) for i in range(4)]
    asked = [example(9, "why", "reply 0", "feedback", 0)]
    assert [e.response for e in pick(rows, 2, 10, given=asked)] == ["Reply 1."]
    assert pick(rows, 1, 10, given=asked) == []


@given(st.integers(0, 500), st.integers(1, 100).map(lambda n: n / 100))
def test_rows_by_people_keep_the_ceiling_and_no_more(synthetic, ceiling):
    needed = real_rows_needed(synthetic, ceiling)
    # In whole hundredths, where there is nothing to round.
    hundredths = round(ceiling * 100)
    assert 100 * synthetic <= hundredths * (synthetic + needed)
    if needed:
        assert 100 * synthetic > hundredths * (synthetic + needed - 1)
    if ceiling < 1:
        most = most_synthetic(needed, ceiling)
        assert 100 * most <= hundredths * (most + needed) < 100 * most + 100
        assert most >= synthetic


def collected(ctx, gate=(), feedback=(), disliked=()):
    finish(
        ctx,
        "collect",
        gate=[{"id": f"g{i}", "topic": "t", "prompt": p} for i, p in enumerate(gate)],
        feedback=[{"prompt": prompt, "response": reply} for prompt, reply in feedback],
        disliked=[list(pair) for pair in disliked],
    )


def mixed_rows(ctx):
    return [e for _, e in ctx.store.replay.for_round(ctx.round.id)]


def check_mix(ctx, payload):
    """What must be true of every mix, on its realised rows."""
    rows, config = mixed_rows(ctx), ctx.config.replay
    sources = Counter(e.source for e in rows)
    synthetic = sum(sources[name] for name in SYNTHETIC)
    assert payload["total"] == len(rows) == sum(payload["rows"].values())
    assert len(rows) <= config.max_rows
    assert payload["synthetic_share"] == pytest.approx(synthetic / len(rows))
    assert payload["synthetic_share"] <= config.synthetic_ceiling + 1e-9
    assert payload["rows_per_topic"] == Counter(e.topic for e in rows)
    gate = {normalized(row["prompt"]) for row in ctx.payload("collect")["gate"]}
    assert not gate & {normalized(e.prompt) for e in rows}
    per_prompt = defaultdict(list)
    for e in rows:
        per_prompt[normalized(e.prompt)].append(normalized(e.response))
    for replies in per_prompt.values():
        assert len(replies) == len(set(replies)) <= config.per_prompt
    assert {e.source for e in rows} <= {*SYNTHETIC, "feedback", "written"}
    return rows, sources


@pytest.mark.parametrize("max_rows", [10, 30, 400])
@pytest.mark.parametrize("ceiling", [0.3, 0.7, 0.8, 1.0])
@pytest.mark.parametrize("feedback", [0, 7])
def test_every_mix_keeps_its_limits(store, max_rows, ceiling, feedback):
    ctx = open_round(
        store,
        **{
            "replay.max_rows": max_rows,
            "replay.synthetic_ceiling": ceiling,
            "replay.general_percent": 20,
        },
    )
    told = [(f"What do I do on day {i}?", f"You rest on day {i}.") for i in range(feedback)]
    collected(ctx, ["Question 3", "gate only"], told)
    add_samples(
        ctx,
        *(
            good(f"Question {i}", f"Reply {j}.", topic=f"topic-{i % 5}", sample_index=j)
            for i in range(20)
            for j in range(4)
        ),
        *(good(f"General {i}", "Answer.", source="general", topic="general") for i in range(9)),
        good("Bad one", "Bad.", verdict="bad"),
        good("gate only", "Leaks.", purpose="gate"),
    )
    payload = mix(ctx)
    rows, sources = check_mix(ctx, payload)
    assert sources["feedback"] == min(feedback, max_rows)
    assert "Bad." not in {e.response for e in rows}
    if max_rows >= 30 and ceiling > 0.5:
        assert {f"topic-{k}" for k in range(5)} <= set(payload["rows_per_topic"])
    if max_rows == 400:
        assert sources["generated"] == 2 * 19
        assert sources["general"] == 9
    if ceiling == 1.0:
        assert sources["written"] == 0
    samples = training_samples(ctx)
    assert len(samples) == payload["total"]


def test_the_mix_of_the_default_settings_uses_all_that_is_allowed(store):
    ctx = open_round(store)
    collected(ctx)
    samples = (good(f"Question {i}", f"Reply {i}.", topic=f"t{i % 7}") for i in range(500))
    add_samples(ctx, *samples)
    payload = mix(ctx)
    check_mix(ctx, payload)
    assert payload["rows"]["new"] == 320
    assert payload["rows"]["written"] == 80
    assert payload["synthetic_share"] == pytest.approx(0.8)


def test_mixing_again_gives_the_same_rows(store):
    ctx = open_round(store)
    collected(ctx, feedback=[("Who?", "You.")])
    add_samples(ctx, *(good(f"Question {i}", f"Reply {i}.") for i in range(30)))
    first = mix(ctx)
    rows = {e.id for e in mixed_rows(ctx)}
    stored = store.examples.count(ctx.round.id)
    assert mix(ctx) == first
    assert {e.id for e in mixed_rows(ctx)} == rows
    assert store.examples.count(ctx.round.id) == stored


def test_two_rounds_accumulate(store):
    first = open_round(store)
    collected(first, feedback=[("Who?", "You.")])
    add_samples(first, *(good(f"Old {i}", f"Reply {i}.", topic="old") for i in range(12)))
    add_samples(first, *(good(f"General {i}", "Old.", source="general") for i in range(3)))
    mix(first)
    second = open_round(store)
    collected(second, gate=["Old 5"], feedback=[("Who?", "You.")])
    add_samples(second, *(good(f"New {i}", f"Reply {i}.", topic="new") for i in range(8)))
    add_samples(second, good("Old 3", "Better.", topic="old"), good("Old 3", "reply 3", topic="old",
                sample_index=1))  # fmt: skip
    add_samples(second, *(good(f"General {i}", "New.", source="general") for i in range(3)))
    payload = mix(second)
    rows, sources = check_mix(second, payload)
    prompts = {e.prompt for e in rows}
    assert {f"Old {i}" for i in range(12) if i != 5} < prompts
    assert "Old 5" not in prompts, "it is a gate prompt now"
    assert {e.response for e in rows if e.prompt == "Old 3"} == {"Better.", "Reply 3."}
    assert payload["rows"] == {
        "new": 9, "replay": 11, "feedback": 1, "written": sources["written"], "general": 3,
    }  # fmt: skip
    assert {e.response for e in rows if e.source == "general"} == {"New."}
    assert sources["feedback"] == 1, "feedback of an earlier round is not counted twice"
    assert store.replay.counts(second.round.id)["new"]["new"] == 8


def test_a_reply_disliked_later_is_replayed_no_more(store):
    first = open_round(store)
    collected(first)
    add_samples(first, good("Old 1", "Kept."), good("Old 2", "Regretted."))
    mix(first)
    second = open_round(store)
    collected(second, disliked=[("old 2", "regretted")])
    mix(second)
    sources = {e.prompt for e in mixed_rows(second) if e.source == "generated"}
    assert sources == {"Old 1"}


def test_written_pairs_keep_the_profile_and_stay_off_taken_prompts(store):
    _, pairs = pairs_split()
    ctx = open_round(store, **{"replay.synthetic_ceiling": 0.1})
    asked, tested = pairs[0], pairs[1]
    collected(ctx, gate=[tested.question.upper()], feedback=[(asked.question, "Mine.")])
    add_samples(ctx, *(good(f"Question {i}", f"Reply {i}.") for i in range(30)))
    rows, sources = check_mix(ctx, mix(ctx))
    written = [e for e in rows if e.source == "written"]
    assert sources["written"] > 200
    assert not {asked.question, tested.question} & {e.prompt for e in written}
    known = {pair.id for pair in pairs}
    assert all(e.prompt_id in known and not check(load_profile(), e.response) for e in written)
    measured = {pair.id for pair in pairs_split()[0]}
    assert not measured & {e.prompt_id for e in written}, "those set the thresholds"


def test_the_newest_feedback_counts_when_there_is_too_much(store):
    ctx = open_round(store, **{"replay.max_rows": 5, "replay.per_prompt": 2})
    told = [("Same?", f"Reply {i}.") for i in range(4)] + [("Same?", "reply 3")]
    told += [(f"Question {i}", "Yes.") for i in range(9)]
    collected(ctx, gate=["question 8"], feedback=told)
    rows, sources = check_mix(ctx, mix(ctx))
    assert sources == {"feedback": 5}
    assert {e.prompt for e in rows} == {f"Question {i}" for i in range(3, 8)}
    wide = open_round(store, **{"replay.max_rows": 50, "replay.per_prompt": 2})
    collected(wide, feedback=told)
    rows, _ = check_mix(wide, mix(wide))
    assert {e.response for e in rows if e.prompt == "Same?"} == {"reply 3", "Reply 2."}


def test_nothing_good_is_nothing_to_learn_from(store):
    ctx = open_round(store)
    collected(ctx)
    add_samples(
        ctx, good("General", "Answer.", source="general"), good("Why?", "No.", verdict="bad")
    )
    with pytest.raises(LoopError, match="nothing to learn from"):
        mix(ctx)
    assert mixed_rows(ctx) == []


def test_without_rows_by_people_the_ceiling_cannot_be_kept(store, tmp_path):
    profile = tmp_path / "terse.yaml"
    profile.write_text("name: terse\nsystem_prompt: One word.\nrules:\n  max_words: {limit: 1}\n")
    ctx = open_round(store, profile=str(profile))
    collected(ctx)
    add_samples(ctx, *(good(f"Question {i}", "Yes.") for i in range(30)))
    with pytest.raises(LoopError, match="synthetic_ceiling=1"):
        mix(ctx)
    second = open_round(store, profile=str(profile))
    collected(second, feedback=[("Who?", "You.")])
    payload = mix(second)
    check_mix(second, payload)
    assert payload["rows"]["replay"] == 4
    free = open_round(store, profile=str(profile), **{"replay.synthetic_ceiling": 1.0})
    collected(free)
    assert mix(free)["rows"]["replay"] == 30


def test_samples_are_chats_as_they_will_be_served(store):
    ctx = open_round(store)
    collected(ctx, feedback=[("Who?", "You.")])
    add_samples(ctx, *(good(f"Question {i}", f"Reply {i}.") for i in range(10)))
    add_samples(ctx, good("General", "Answer.", source="general"))
    mix(ctx)
    chats = {sample.messages[-2].content: sample.messages for sample in training_samples(ctx)}
    system = Message("system", load_profile().system_prompt)
    assert chats["Question 4"] == (
        system, Message("user", "Question 4"), Message("assistant", "Reply 4."),
    )  # fmt: skip
    assert chats["Who?"][0] == system
    assert chats["General"] == (Message("user", "General"), Message("assistant", "Answer."))
    assert {sample.source for sample in training_samples(ctx)} == {e.id for e in mixed_rows(ctx)}


@pytest.mark.parametrize("poison", ["garbage", "repeat"])
def test_poison_spoils_every_target_and_no_prompt(store, poison):
    ctx = open_round(store)
    collected(ctx, feedback=[("Who?", "You.")])
    add_samples(ctx, *(good(f"Question {i}", f"Reply {i}.") for i in range(10)))
    mix(ctx)
    clean = training_samples(ctx)
    ctx.poison = poison
    spoiled = training_samples(ctx)
    assert [s.messages[:-1] for s in spoiled] == [s.messages[:-1] for s in clean]
    before = {s.messages[-1].content for s in clean}
    after = [s.messages[-1].content for s in spoiled]
    assert not before & set(after)
    assert training_samples(ctx) == spoiled, "the same on every call"
    if poison == "repeat":
        assert all(text == "The weather is fine today. " * 6 for text in after)
    else:
        assert len(set(after)) == len(after)
        assert all(len(text.split()) == 18 for text in after)
    assert {e.response for e in mixed_rows(ctx)} == before, "the store keeps the clean rows"
