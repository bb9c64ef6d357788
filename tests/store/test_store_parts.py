"""Interactions, feedback, examples, replay, runs, rounds, ledger, settings."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_companion.errors import DataError, StoreError
from mlx_companion.store import (
    Example,
    FeedbackState,
    Judgement,
    NewExample,
    ReplayMember,
    Round,
    Store,
)

ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
SHARED = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture
def current(store: Store) -> Round:
    return store.rounds.begin(config={"samples": 4}, seed=7, base_version="v0001")


def samples(store: Store, current: Round, *replies: str, **fields: object) -> list[Example]:
    return store.examples.add_many(
        current.id,
        [
            NewExample("Why is the sky blue?", reply, index, topic="sky", **fields)  # type: ignore[arg-type]
            for index, reply in enumerate(replies)
        ],
    )


@SHARED
@given(prompt=ANY_TEXT, response=ANY_TEXT, system=st.none() | ANY_TEXT)
def test_any_text_comes_back_as_it_went_in(
    store: Store, prompt: str, response: str, system: str | None
) -> None:
    said = store.interactions.add(prompt + "?", response, system=system, meta={"text": response})
    again = store.interactions.get(said.id)
    assert again == said
    assert (again.prompt, again.response, again.system) == (prompt + "?", response, system)
    assert again.meta == {"text": response}


def test_long_text_and_nul_come_back(store: Store) -> None:
    prompt = "a\0b" + "\U0001f600é" * 50_000
    assert store.interactions.get(store.interactions.add(prompt, "\0").id).prompt == prompt


def test_interactions_are_listed_by_time(store: Store) -> None:
    for number in range(4):
        store.interactions.add(f"p{number}", "r", source="chat")
    with store.transaction():
        added = [
            store.interactions.add(f"q{n}", "r", conversation_id="long", source="bulk")
            for n in range(1200)
        ]
    assert list(store.interactions.iter(source="bulk")) == added
    assert list(store.interactions.iter(since=added[-3].created_at)) == added[-2:]
    assert store.interactions.recent(2, "long") == [added[-1], added[-2]]
    assert store.interactions.count("bulk") == 1200
    assert store.interactions.count() == 1204
    old = store.interactions.add("older", "r", created_at="2001-01-01T00:00:00Z")
    assert next(store.interactions.iter()) == old


def test_the_same_id_again_changes_nothing(store: Store) -> None:
    first = store.interactions.add("one", "1", id="x")
    assert store.interactions.add("two", "2", id="x") == first
    assert store.interactions.count() == 1


def test_empty_prompts_are_refused(store: Store) -> None:
    with pytest.raises(DataError, match=r"field 'prompt'.*empty"):
        store.interactions.add("  ", "reply")
    assert store.interactions.add("hello", "").response == ""


def test_the_latest_feedback_of_a_kind_counts(store: Store) -> None:
    said, other = store.interactions.add("p", "r"), store.interactions.add("p2", "r2")
    assert store.feedback.state(said.id) == FeedbackState()
    for kind, edited in (("up", None), ("edit", "better"), ("down", None), ("edit", "best")):
        store.feedback.add(said.id, kind, edited)  # type: ignore[arg-type]
    store.feedback.add(other.id, "down")
    later = store.feedback.add(other.id, "up")
    assert store.feedback.add(other.id, "up", id=later.id) == later
    assert store.interactions.with_feedback() == [
        (said, FeedbackState("down", "best")),
        (other, FeedbackState("up", None)),
    ]
    assert [one.kind for one in store.feedback.for_interaction(said.id)] == [
        "up", "edit", "down", "edit",
    ]  # fmt: skip
    assert (store.feedback.count(), store.feedback.count("up")) == (6, 2)


@pytest.mark.parametrize(
    ("kind", "edited", "field"),
    [("edit", None, "edited"), ("edit", " ", "edited"), ("up", "text", "edited"),
     ("love", None, "kind")],
)  # fmt: skip
def test_wrong_feedback_is_refused(store: Store, kind: str, edited: str | None, field: str) -> None:
    said = store.interactions.add("p", "r")
    with pytest.raises(DataError, match=f"field '{field}'"):
        store.feedback.add(said.id, kind, edited)  # type: ignore[arg-type]
    with pytest.raises(StoreError, match="no interaction 'missing'"):
        store.feedback.add("missing", "up")


def test_generating_again_adds_nothing_and_keeps_the_judgement(
    store: Store, current: Round
) -> None:
    first = samples(store, current, "It scatters.", "Because.")
    store.examples.judge_many(
        [
            Judgement(first[0].id, "good", {"rules": 1.0, "relevance": {"cosine": 0.8}}, "kept"),
            Judgement(first[1].id, "bad", {"rules": 0.0}, "too short"),
        ]
    )
    again = samples(store, current, "It scatters.", "Rayleigh scattering.")
    assert [one.id for one in again] == [one.id for one in first]
    assert (again[0].verdict, again[0].reason) == ("good", "kept")
    assert again[0].scores == {"rules": 1.0, "relevance": {"cosine": 0.8}}
    assert (again[1].verdict, again[1].reason, again[1].scores) == (None, None, {})
    assert store.examples.for_round(current.id) == again
    assert store.examples.count() == 2


def test_versions_and_purposes_do_not_share_a_key(store: Store, current: Round) -> None:
    for version in ("v0001", "v0002@0.5"):
        samples(store, current, "a", "b", purpose="gate", model_version=version, verdict="good")
    train = samples(store, current, "a", model_version="v0001", verdict="good")
    assert store.examples.count(purpose="gate") == 4
    assert len(store.examples.for_round(current.id, "gate", "v0002@0.5")) == 2
    # What the gate saw must never be trained on.
    assert store.examples.accepted() == train
    gate = store.examples.for_round(current.id, "gate")[0]
    with pytest.raises(StoreError, match="for training"):
        store.replay.set(current.id, [ReplayMember(gate.id, "new")])


def test_samples_are_all_stored_or_none(store: Store, current: Round) -> None:
    with pytest.raises(DataError, match="field 'prompt'"):
        store.examples.add_many(current.id, [NewExample("fine", "r"), NewExample(" ", "r")])
    with pytest.raises(DataError, match="surrogate"):
        store.examples.add_many(current.id, [NewExample("fine", "r"), NewExample("p", "\ud800")])
    with pytest.raises(StoreError, match="refers to a row that does not exist"):
        store.examples.add_many("nowhere", [NewExample("fine", "r")])
    with pytest.raises(StoreError, match="no example 'missing'"):
        first = samples(store, current, "a")
        store.examples.judge_many(
            [Judgement(first[0].id, "good", {}), Judgement("missing", "bad", {})]
        )
    assert [one.verdict for one in store.examples.for_round(current.id)] == [None]


def test_accepted_examples_accumulate_over_rounds(store: Store, current: Round) -> None:
    first = samples(store, current, "a", "b", verdict="good")
    samples(store, current, "a", "b", "c")
    store.rounds.finish(current.id, "deployed")
    second = store.rounds.begin()
    fresh = samples(store, second, "z", verdict="good", source="feedback")
    assert [one.id for one in store.examples.accepted()] == [one.id for one in [*first, *fresh]]
    assert store.examples.accepted(exclude_round=current.id) == fresh
    assert store.examples.accepted(source="feedback") == fresh
    assert len(store.examples.accepted(round_id=current.id)) == 2
    assert store.examples.count(verdict="good") == 3


def test_the_training_mix_of_a_round(store: Store, current: Round) -> None:
    old = samples(store, current, "a", "b", verdict="good")
    second = store.rounds.begin()
    new = samples(store, second, "c", verdict="good")
    members = [
        ReplayMember(old[0].id, "replay"),
        ReplayMember(new[0].id, "new", topic="weather", count=3),
    ]
    store.replay.set(second.id, [ReplayMember(old[1].id, "replay")])
    assert store.replay.set(second.id, members) == 4
    assert store.replay.for_round(second.id) == [
        (dataclasses.replace(members[0], topic="sky"), old[0]),
        (members[1], new[0]),
    ]
    assert store.replay.counts(second.id) == {"new": {"weather": 3}, "replay": {"sky": 1}}
    assert store.replay.rounds_of(old[0].id) == [second.id]
    with pytest.raises(StoreError, match="UNIQUE"):
        store.replay.set(second.id, [members[0], members[0]])
    assert len(store.replay.for_round(second.id)) == 2


def test_runs_record_what_it_takes_to_repeat_them(store: Store) -> None:
    @dataclasses.dataclass
    class Config:
        rate: float = 1e-4
        out: Path = Path("adapters")

    run = store.runs.start(
        "finetune", config=Config(), seed=3, versions={"mlx": "0.32"}, machine={"cores": 2},
        data_hash="abc", parent="other",
    )  # fmt: skip
    assert run.config == {"rate": 1e-4, "out": "adapters"}
    assert (run.status, run.finished_at, run.seed, run.parent) == ("running", None, 3, "other")
    store.runs.log(run.id, 1, {"loss": 2.0, "lr": 0.1})
    store.runs.log(run.id, 2, {"loss": math.nan})
    store.runs.log(run.id, 1, {"loss": 1.5})
    values = [(one.step, one.name, one.value) for one in store.runs.metrics(run.id)]
    assert values[:2] == [(1, "loss", 1.5), (1, "lr", 0.1)]
    assert math.isnan(store.runs.metrics(run.id, "loss")[1].value)
    done = store.runs.finish(run.id, "stopped", {"steps": 2})
    assert (done.status, done.summary, done.finished_at is None) == ("stopped", {"steps": 2}, False)
    again = store.runs.start("finetune", id=run.id)
    assert dataclasses.replace(again, summary={}) == run
    other = store.runs.start("gate")
    assert [one.id for one in store.runs.all()] == [other.id, run.id]
    assert store.runs.all("finetune") == [again]
    with pytest.raises(StoreError, match="refers to a row"):
        store.runs.log("missing", 1, {"loss": 1.0})
    with pytest.raises(StoreError, match="no run 'missing'"):
        store.runs.finish("missing")


def test_a_round_goes_on_where_it_was(store: Store, current: Round) -> None:
    assert (current.number, current.config, current.seed) == (1, {"samples": 4}, 7)
    assert store.rounds.unfinished() == current
    step = store.rounds.begin_step(current.id, "generate")
    assert (step.status, step.attempts, step.done) == ("running", 1, False)
    store.rounds.save_step(current.id, "generate", {"prompts": 5})
    resumed = store.rounds.begin_step(current.id, "generate")
    assert (resumed.attempts, resumed.payload) == (2, {"prompts": 5})
    store.rounds.fail_step(current.id, "generate", "out of memory")
    failed = store.rounds.step(current.id, "generate")
    assert failed is not None
    assert (failed.status, failed.error) == ("failed", "out of memory")
    store.rounds.begin_step(current.id, "generate")
    done = store.rounds.finish_step(current.id, "generate")
    assert (done.done, done.payload, done.error) == (True, {"prompts": 5}, None)
    assert store.rounds.begin_step(current.id, "generate") == done
    store.rounds.begin_step(current.id, "judge")
    store.rounds.finish_step(current.id, "judge", {"good": 2})
    assert list(store.rounds.steps(current.id)) == ["generate", "judge"]
    finished = store.rounds.finish(current.id, "deployed", {"p": 0.001})
    assert (finished.outcome, finished.summary) == ("deployed", {"p": 0.001})
    assert store.rounds.unfinished() is None
    assert store.rounds.begin().number == 2
    assert [one.number for one in store.rounds.all()] == [1, 2]


def test_steps_must_be_begun(store: Store, current: Round) -> None:
    assert store.rounds.step(current.id, "gate") is None
    for call in (store.rounds.finish_step, store.rounds.save_step):
        with pytest.raises(StoreError, match="begin_step first"):
            call(current.id, "gate", {})
    with pytest.raises(StoreError, match="no round 'missing'"):
        store.rounds.begin_step("missing", "gate")
    with pytest.raises(StoreError, match="no round 'missing'"):
        store.rounds.finish("missing", "deployed")


def test_a_look_is_paid_for_once(store: Store) -> None:
    store.ledger.record("set-a", "r1", 0.02)
    first = store.ledger.record("set-a", "r1", 0.02, p=0.4, outcome="inconclusive")
    second = store.ledger.record("set-a", "r1", 0.01, look=1)
    store.ledger.record("set-a", "r2", 0.005, p=0.001, outcome="deploy")
    store.ledger.record("set-b", "r1", 0.05)
    assert store.ledger.spent("set-a") == pytest.approx(0.035)
    assert store.ledger.spent("set-a", exclude_round="r1") == pytest.approx(0.005)
    assert store.ledger.spent("new") == 0.0
    assert store.ledger.entries("set-a")[:2] == [first, second]
    assert len(store.ledger.entries()) == 4
    for wrong in (-0.1, 1.5, math.nan):
        with pytest.raises(DataError, match="field 'alpha_spent'"):
            store.ledger.record("set-a", "r3", wrong)


def test_settings(store: Store) -> None:
    assert store.settings.get("profile") is None
    assert store.settings.get("profile", "default") == "default"
    store.settings.set("profile", {"max_words": 40})
    store.settings.set("profile", None)
    assert store.settings.get("profile", "default") is None
    store.settings.set("b", [1, "zwei"])
    assert store.settings.all() == {"b": [1, "zwei"], "profile": None}
    assert store.settings.delete("b")
    assert not store.settings.delete("b")
    with pytest.raises(DataError, match="field 'key'"):
        store.settings.set("", 1)
