"""What is learned: decided by the documented rules, taken back exactly, never lost or doubled."""

from __future__ import annotations

import datetime as dt
import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from patience import LONG

from mlx_companion.errors import CompanionError, ConfigError, DataError, SLMError, StoreError
from mlx_companion.slm import ContextUpdate
from mlx_companion.slm.sync import ContextSyncManager, SyncConfig
from mlx_companion.store import Store, delete_everything, export, import_

NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)


def update(key: str, value: Any, **changes: Any) -> ContextUpdate:
    given = {"evidence": "so they said", "span": (0, 12), "confidence": 0.9, "explicit": True}
    return ContextUpdate(key, value, **{**given, **changes})


def inferred(key: str, value: Any, confidence: float = 0.9, **changes: Any) -> ContextUpdate:
    return update(key, value, confidence=confidence, explicit=False, **changes)


def at(hours: float) -> str:
    return (NOON + dt.timedelta(hours=hours)).isoformat()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "companion.db") as opened:
        yield opened


@pytest.fixture
def sync(store: Store) -> ContextSyncManager:
    return ContextSyncManager(store)


def learn(sync: ContextSyncManager, *updates: ContextUpdate) -> list[str]:
    """Queue and decide updates; their statuses."""
    receipts = [sync.queue_update(one) for one in updates]
    sync.process_queue()
    return [sync.store.context.get(one.id).status for one in receipts]


def test_what_was_queued_counts_once_it_is_processed(sync: ContextSyncManager) -> None:
    receipt = sync.queue_update(update("preference.emoji", False), source="tracker")
    assert (receipt.position, receipt.new) == (1, True)
    assert sync.get_latest_context() == {}
    report = sync.process_queue()
    assert report.decided == {"applied": 1}
    assert [(c.key, c.before, c.after) for c in report.changes] == [
        ("preference.emoji", None, False)
    ]
    assert sync.get_latest_context() == {"preference.emoji": False}
    (entry,) = sync.entries("preference.")
    assert (entry.source, entry.evidence, entry.current) == ("tracker", "so they said", True)
    assert sync.process_queue().decided == {}


def test_the_same_id_twice_is_applied_once(sync: ContextSyncManager) -> None:
    first = sync.queue_update(update("k", 1), id="a")
    again = sync.queue_update(update("k", 2), id="a")
    assert (first.id, first.position) == (again.id, again.position)
    assert (first.new, again.new) == (True, False)
    assert sync.process_queue().decided.total() == 1
    assert sync.queue_update(update("k", 3), id="a").new is False
    assert sync.process_queue().decided.total() == 0
    assert sync.get_latest_context() == {"k": 1}
    twice = sync.queue_updates([update("m", 1), update("m", 2)], ids=["b", "b"])
    assert [one.new for one in twice] == [True, False]


def test_a_mapping_does_as_well_as_an_update(sync: ContextSyncManager) -> None:
    sync.queue_update({"key": "k", "value": [1, {"a": None}], "confidence": 1.0})
    sync.process_queue()
    assert sync.get_latest_context() == {"k": [1, {"a": None}]}


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"key": " "}, "key"),
        ({"confidence": 1.5}, "confidence"),
        ({"confidence": float("nan")}, "confidence"),
        ({"event_time": "yesterday"}, "event_time"),
        ({"value": {"s": object()}}, "value"),
        ({"evidence": "half \ud800"}, "evidence"),
        ({"colour": "red"}, "no update"),
    ],
)
def test_what_cannot_be_stored_is_refused_whole(
    sync: ContextSyncManager, wrong: dict[str, Any], told: str
) -> None:
    good: dict[str, Any] = {"key": "k", "value": 1, "confidence": 0.9}
    with pytest.raises(DataError, match=told):
        sync.queue_updates([good, {**good, **wrong}])
    with pytest.raises(DataError, match="2 updates came with 1 ids"):
        sync.queue_updates([good, good], ids=["a"])
    assert sync.store.context.count("queued") == 0


def test_a_statement_beats_every_inference(sync: ContextSyncManager) -> None:
    learn(sync, inferred("k", "guess", event_time=at(0)), update("k", "said", event_time=at(-90)))
    learn(sync, inferred("k", "later guess", 1.0, event_time=at(50)))
    assert sync.get_latest_context() == {"k": "said"}
    learn(sync, update("k", "said later", confidence=0.4, event_time=at(-80)))
    assert sync.get_latest_context() == {"k": "said later"}


@pytest.mark.parametrize(
    ("old", "new", "hours", "holds"),
    [
        (0.9, 0.9, 0.1, "new"),
        (0.99, 0.92, 0.1, "new"),  # the same to one decimal
        (0.9, 0.8, 0.1, "old"),
        (0.9, 0.8, 24, "new"),  # 0.9 has become 0.45
        (0.6, 0.9, -1, "new"),  # heard later of something a little older, but surer
        (0.9, 0.9, -1, "old"),
    ],
)
def test_inferences_fade_by_half_a_day_after_day(
    sync: ContextSyncManager, old: float, new: float, hours: float, holds: str
) -> None:
    learn(sync, inferred("k", "old", old, event_time=at(0)))
    learn(sync, inferred("k", "new", new, event_time=at(hours)))
    assert sync.get_latest_context() == {"k": holds}


def test_a_clock_that_is_ahead_does_not_win_for_ever(sync: ContextSyncManager) -> None:
    learn(sync, update("k", "from 2099", event_time="2099-01-01T00:00:00Z"))
    learn(sync, update("k", "now"))
    assert sync.get_latest_context() == {"k": "now"}


def test_none_removes_a_key_and_can_itself_be_undone(sync: ContextSyncManager) -> None:
    learn(sync, update("k", 1))
    removal = sync.queue_update(update("k", None))
    sync.process_queue()
    assert sync.get_latest_context() == {}
    assert sync.undo(removal.id).after == 1
    assert sync.get_latest_context() == {"k": 1}


changes = st.lists(
    st.tuples(
        st.sampled_from(["a", "b"]),
        st.booleans(),
        st.sampled_from([0.5, 0.7, 0.9]),
        st.integers(-72, 72),
    ),
    min_size=1,
    max_size=7,
    unique=True,
)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(changes, st.randoms(use_true_random=False))
def test_the_order_of_arrival_does_not_matter(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any], chance: Any
) -> None:
    # Two that tie in everything are told apart by arrival; values made of all fields avoid that.
    updates = [
        update(key, f"{key}{said}{sure}{hour}", explicit=said, confidence=sure, event_time=at(hour))
        for key, said, sure, hour in rows
        if sure == 0.9 or not said
    ]
    found = []
    for _ in range(2):
        chance.shuffle(updates)
        with Store(tmp_path_factory.mktemp("order") / "c.db") as store:
            sync = ContextSyncManager(store)
            learn(sync, *updates)
            found.append(sync.get_latest_context())
    assert found[0] == found[1]


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=8), st.data())
def test_undoing_is_as_if_it_had_never_been_said(
    tmp_path_factory: pytest.TempPathFactory, keys: list[str], data: Any
) -> None:
    undone = data.draw(st.permutations(range(len(keys))))
    undone = undone[: data.draw(st.integers(0, len(keys)))]
    with Store(tmp_path_factory.mktemp("undo") / "c.db") as store:
        sync = ContextSyncManager(store)
        ids = [sync.queue_update(update(key, n)).id for n, key in enumerate(keys)]
        sync.process_queue()
        for n in undone:
            change = sync.undo(ids[n])
            assert change.key == keys[n]
            assert sync.undo(ids[n]).before == change.after
        expected = {key: n for n, key in enumerate(keys) if n not in undone}
        assert sync.get_latest_context() == expected


def test_undo_of_one_that_later_ones_cover(sync: ContextSyncManager) -> None:
    first, second, third = (sync.queue_update(update("k", n)).id for n in (1, 2, 3))
    sync.process_queue()
    assert (sync.undo(second).before, sync.undo(second).after) == (3, 3)
    assert sync.undo(third).after == 1
    assert sync.undo(first).after is None
    with pytest.raises(StoreError, match="no update 'missing'"):
        sync.undo("missing")


def test_what_is_undone_before_it_is_decided_never_counts(sync: ContextSyncManager) -> None:
    receipt = sync.queue_update(update("k", 1))
    sync.undo(receipt.id)
    assert sync.process_queue().decided == {}
    assert sync.get_latest_context() == {}


def test_an_inference_that_was_taken_back_is_not_made_again(sync: ContextSyncManager) -> None:
    (first,) = [sync.queue_update(inferred("slang.lit", "great")).id]
    sync.process_queue()
    sync.undo(first)
    assert learn(sync, inferred("slang.lit", "great")) == ["barred"]
    assert learn(sync, inferred("slang.lit", "burning")) == ["applied"]
    assert learn(sync, update("slang.lit", "great")) == ["applied"]
    assert sync.get_latest_context() == {"slang.lit": "great"}


def test_weak_inferences_are_kept_and_not_applied(sync: ContextSyncManager) -> None:
    assert learn(sync, inferred("k", 1, 0.49), update("m", 1, confidence=0.1)) == [
        "weak", "applied",
    ]  # fmt: skip
    assert sync.get_latest_context() == {"m": 1}


def test_a_major_change_of_personality_waits_for_the_person(sync: ContextSyncManager) -> None:
    key = "personality.warmth"
    assert learn(sync, inferred(key, 0.5), inferred(key, 0.7)) == ["applied", "applied"]
    assert learn(sync, inferred(key, 1.0)) == ["pending"]
    assert sync.get_latest_context() == {key: 0.7}
    (waiting,) = sync.pending()
    assert waiting.reason == "a major change from 0.7; approve or reject it"
    assert sync.approve(waiting.id).after == 1.0
    # The person has agreed, so no inference puts it aside.
    learn(sync, inferred(key, 0.8, 1.0))
    assert sync.get_latest_context() == {key: 1.0}
    with pytest.raises(SLMError, match="is applied and waits for nobody"):
        sync.approve(waiting.id)
    assert sync.undo(waiting.id).before == 1.0


def test_a_number_beyond_all_floats_does_not_stop_the_queue(sync: ContextSyncManager) -> None:
    assert learn(sync, inferred("personality.warmth", 0.5)) == ["applied"]
    huge = inferred("personality.warmth", 10**400)
    assert learn(sync, huge, inferred("person.pet", "cat")) == ["pending", "applied"]


def test_a_rejected_change_stays_out(sync: ContextSyncManager) -> None:
    learn(sync, inferred("preference.tone", "dry"))
    assert learn(sync, inferred("preference.tone", "gushing")) == ["pending"]
    sync.reject(sync.pending()[0].id)
    assert sync.pending() == []
    assert learn(sync, inferred("preference.tone", "gushing")) == ["barred"]
    assert sync.get_latest_context() == {"preference.tone": "dry"}
    # Said outright it needs no approval: saying so is one.
    assert learn(sync, update("preference.tone", "gushing")) == ["applied"]


def test_inferences_change_the_personality_only_so_often(store: Store) -> None:
    clock = [dt.datetime.now(dt.UTC)]
    sync = ContextSyncManager(store, SyncConfig(changes_per_day=2), clock=lambda: clock[0])
    statuses = learn(sync, *(inferred(f"personality.p{n}", 0.5) for n in range(3)))
    assert statuses == ["applied", "applied", "limited"]
    # Everything else is not limited, nor is what changes nothing, nor what was said outright.
    assert (
        learn(
            sync,
            inferred("slang.lit", "great"),
            inferred("personality.p0", 0.5),
            update("personality.p4", 0.1),
        )
        == ["applied"] * 3
    )
    (limited,) = store.context.with_status("limited")
    assert sync.approve(limited.id).after == 0.5
    clock[0] += dt.timedelta(hours=25)
    assert learn(sync, inferred("personality.p5", 0.5)) == ["applied"]


def test_a_full_queue_refuses_and_loses_nothing(store: Store) -> None:
    sync = ContextSyncManager(store, SyncConfig(capacity=5))
    sync.queue_updates([update("k", n) for n in range(4)])
    began = time.monotonic()
    with pytest.raises(SLMError, match=r"full \(5 undecided\); call process_queue"):
        sync.queue_updates([update("k", n) for n in (4, 5)], timeout=0.1)
    assert time.monotonic() - began >= 0.1
    with pytest.raises(SLMError, match="6 updates at once do not fit"):
        sync.queue_updates([update("k", n) for n in range(6)])
    assert sync.queue_updates([]) == []
    sync.queue_update(update("k", 4), timeout=0)
    assert sync.process_queue().decided == {"applied": 5}
    assert sync.queue_update(update("k", 6), timeout=0).position == 6


def test_a_waiting_writer_goes_on_when_there_is_room(store: Store) -> None:
    sync = ContextSyncManager(store, SyncConfig(capacity=3))
    sync.queue_updates([update("k", n) for n in range(3)])
    done = []
    writer = threading.Thread(
        target=lambda: done.append(sync.queue_update(update("k", 3), timeout=LONG))
    )
    writer.start()
    time.sleep(0.05)
    assert not done
    # Another process's manager makes the room.
    ContextSyncManager(store).process_queue(limit=1)
    writer.join()
    assert [one.position for one in done] == [4]


def test_what_others_queue_does_not_hang_on_a_transaction_of_ones_own(store: Store) -> None:
    sync = ContextSyncManager(store)
    receipts: list[str] = []
    other = threading.Thread(target=lambda: receipts.append(sync.queue_update(update("o", 1)).id))
    with pytest.raises(ZeroDivisionError), store.transaction():
        other.start()
        # Until the other holds the lock of whoever commits, and waits for the store.
        while not sync._leader.locked():
            time.sleep(0.001)
        sync.queue_update(update("mine", 1))
        assert not receipts
        raise ZeroDivisionError
    other.join(LONG)
    assert [entry.id for entry in store.context.history()] == receipts
    assert [entry.key for entry in store.context.history()] == ["o"]


def test_a_leader_inside_a_transaction_commits_its_own_alone(store: Store) -> None:
    sync = ContextSyncManager(store)
    receipts: list[str] = []
    other = threading.Thread(target=lambda: receipts.append(sync.queue_update(update("o", 1)).id))
    with sync._leader:
        other.start()
        while not sync._waiting:
            time.sleep(0.001)
        with pytest.raises(ZeroDivisionError), store.transaction():
            sync.queue_update(update("mine", 1))
            raise ZeroDivisionError
        assert not receipts
    other.join(LONG)
    assert [entry.id for entry in store.context.history()] == receipts


def test_inside_a_transaction_a_full_queue_refuses_at_once(store: Store) -> None:
    sync = ContextSyncManager(store, SyncConfig(capacity=1))
    with store.transaction():
        sync.queue_update(update("k", 1))
        with pytest.raises(SLMError, match="full"):
            sync.queue_update(update("k", 2), timeout=LONG)
    assert [entry.value for entry in store.context.history()] == [1]


def test_only_so_many_are_decided_when_asked(sync: ContextSyncManager) -> None:
    sync.queue_updates([update(f"k{n}", n) for n in range(700)])
    assert sync.process_queue(limit=3).decided.total() == 3
    assert sync.process_queue(limit=300).decided.total() == 300
    assert sync.process_queue().decided.total() == 397
    assert len(sync.get_latest_context()) == 700


def test_threads_share_commits_and_keep_their_order(sync: ContextSyncManager) -> None:
    def write(name: str) -> None:
        for n in range(40):
            sync.queue_update(update(f"k{n % 3}", n), source=name, id=f"{name}-{n}")

    threads = [threading.Thread(target=write, args=(f"t{n}",)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    entries = sync.store.context.history()
    assert len(entries) == 240
    for _, group in itertools.groupby(sorted(entries, key=lambda e: e.source), lambda e: e.source):
        ordered = sorted(group, key=lambda entry: entry.position)
        assert [int(entry.id.partition("-")[2]) for entry in ordered] == list(range(40))


def test_a_write_that_fails_fails_for_all_who_waited(
    sync: ContextSyncManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(rows: object) -> None:
        raise StoreError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(sync.store.context, "add_many", broken)
        with pytest.raises(StoreError, match="the disk is gone"):
            sync.queue_update(update("k", 1))
    assert sync.queue_update(update("k", 1)).new


def test_what_a_killed_decision_left_is_decided_later(
    sync: ContextSyncManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync.queue_updates([update("k", n) for n in range(3)])
    decide, told = sync.store.context.decide, []

    def half(entry: Any, *rest: Any) -> None:
        told.append(entry)
        if len(told) == 2:
            raise KeyboardInterrupt
        decide(entry, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(sync.store.context, "decide", half)
        with pytest.raises(KeyboardInterrupt):
            sync.process_queue()
    assert sync.store.context.count("queued") == 3
    assert sync.process_queue().decided == {"applied": 3}
    assert sync.get_latest_context() == {"k": 2}


@pytest.mark.parametrize(
    "wrong",
    [
        {"capacity": 0},
        {"changes_per_day": -1},
        {"major_step": 0.0},
        {"least_confidence": 2.0},
        {"capacity": float("nan")},
        {"changes_per_day": float("nan")},
        {"major_step": float("nan")},
        {"personality": "personality."},
    ],
)
def test_limits_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        SyncConfig(**wrong)


def test_two_people_s_files_are_merged_by_the_same_rules(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    with Store(tmp_path / "one" / "c.db") as one, Store(tmp_path / "two" / "c.db") as two:
        learn(ContextSyncManager(one), update("k", "later", event_time=at(1)), update("a", 1))
        learn(ContextSyncManager(two), update("k", "earlier", event_time=at(0)), update("b", 2))
        export(one, file)
        report = import_(two, file)
        assert report.added["context_update"] == 2
        assert import_(two, file).existing["context_update"] == 2
        merged = ContextSyncManager(two)
        assert merged.get_latest_context() == {"k": "later", "a": 1, "b": 2}
        assert [entry.position for entry in two.context.history()] == [1, 2, 3, 4]
        delete_everything(two, confirm=True)
        assert merged.get_latest_context() == {}
        two.check()


def test_errors_are_of_the_house(sync: ContextSyncManager) -> None:
    sync.store.close()
    with pytest.raises(CompanionError, match="is closed"):
        sync.queue_update(update("k", 1))
