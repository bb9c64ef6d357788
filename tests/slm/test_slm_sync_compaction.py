"""The journal of updates is compacted, and nobody notices: oracle is the journal left alone."""

from __future__ import annotations

import datetime as dt
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlx_companion.errors import ConfigError, DiskFullError, SLMError, StoreError
from mlx_companion.slm import ContextUpdate
from mlx_companion.slm import sync as sync_module
from mlx_companion.slm.sync import ContextSyncManager, SyncConfig
from mlx_companion.store import ContextEntry, Store
from mlx_companion.store.context import ContextLog
from mlx_companion.store.values import format_time

NOW = dt.datetime.now(dt.UTC)
KEYS = [f"preference.k{n}" for n in range(6)] + ["personality.warmth", "personality.wit"]
DEPTH = 3


def update(key: str, value: Any, confidence: float, explicit: bool, day: float) -> ContextUpdate:
    moment = format_time(NOW - dt.timedelta(days=day))
    return ContextUpdate(key, value, "so they said", (0, 12), confidence, moment, explicit=explicit)


def fill(store: Store, seed: int = 0, days: int = 90, per_day: int = 6) -> None:
    """A journal of so many days, as they would have left it: decided, undone, rejected."""
    chance = random.Random(seed)
    with store.transaction():
        for day in range(days, 0, -1):
            _fill_day(store, chance, day, per_day)


def _fill_day(store: Store, chance: random.Random, day: int, per_day: int) -> None:
    sync = ContextSyncManager(store, SyncConfig(compact_above=None, keep_per_key=DEPTH))
    ids = [f"d{day}-{n}" for n in range(per_day)]
    updates = [
        update(
            chance.choice(KEYS), round(chance.random(), 1), chance.choice((0.3, 0.6, 0.9)),
            chance.random() < 0.2, day,
        )
        for _ in ids
    ]  # fmt: skip
    sync.queue_updates(updates, ids=ids)
    sync.process_queue()
    for name in ids:
        status = store.context.get(name).status
        if chance.random() < 0.1:
            sync.undo(name)
        elif status in ("pending", "limited") and chance.random() < 0.7:
            sync.reject(name) if chance.random() < 0.5 else sync.approve(name)
    moment = format_time(NOW - dt.timedelta(days=day))
    store.context._db.execute(
        "UPDATE context_updates SET created_at = ?1, decided_at = ?1 WHERE id LIKE ?2",
        (moment, f"d{day}-%"),
    )


def manager(store: Store, **changes: Any) -> ContextSyncManager:
    config = SyncConfig(**({"compact_above": None, "keep_per_key": DEPTH} | changes))
    return ContextSyncManager(store, config, clock=lambda: NOW)


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("journal") / "c.db"
    with Store(file) as store:
        fill(store)
    return file


@pytest.fixture
def pair(journal: Path, tmp_path: Path) -> Iterator[tuple[Store, Store]]:
    """The same journal twice; the second one is to be compacted."""
    files = [tmp_path / name for name in ("alone.db", "compacted.db")]
    for file in files:
        shutil.copyfile(journal, file)
    with Store(files[0]) as alone, Store(files[1]) as other:
        yield alone, other


def told(store: Store) -> list[tuple[Any, ...]]:
    """What is known, but for what differs between two stores of the same story."""
    return [(e.id, e.key, e.value, e.explicit, e.evidence) for e in store.context.current()]


def is_old(entry: ContextEntry) -> bool:
    decided = dt.datetime.fromisoformat(entry.decided_at or entry.created_at)
    return decided < NOW - dt.timedelta(days=30)


def test_what_is_known_and_what_waits_stay(pair: tuple[Store, Store]) -> None:
    alone, other = pair
    before = other.context.size()
    deleted = manager(other).compact()
    assert deleted == before - other.context.size() > before / 2
    assert told(other) == told(alone) != []
    assert manager(other).get_latest_context() == manager(alone).get_latest_context()
    for status in ("pending", "queued"):
        assert [e.id for e in other.context.with_status(status)] == [
            e.id for e in alone.context.with_status(status)
        ]
    assert manager(other).compact() == 0


def test_a_month_of_it_is_kept_as_it_was(pair: tuple[Store, Store]) -> None:
    alone, other = pair
    manager(other).compact()
    recent = [e.id for e in alone.context.history() if not is_old(e)]
    left = {e.id: e for e in other.context.history()}
    assert len(recent) == 30 * 6
    assert all(name in left for name in recent)
    sync = manager(other)
    receipts = sync.queue_updates([update(KEYS[0], 9, 1.0, True, 0)] * len(recent), ids=recent)
    assert not any(receipt.new for receipt in receipts)
    # The order goes on where it was.
    last = max(e.position for e in alone.context.history())
    assert sync.queue_update(update(KEYS[0], 9, 1.0, True, 0)).position == last + 1


@pytest.mark.parametrize("seed", range(4))
def test_undoing_goes_on_as_before(pair: tuple[Store, Store], seed: int) -> None:
    alone, other = pair
    manager(other).compact()
    chance, old = random.Random(seed), Counter[str]()
    both = [manager(store) for store in pair]
    for _ in range(400):
        holders = [e for e in both[0].entries() if not is_old(e) or old[e.key] < DEPTH - 1]
        if not holders:
            break
        entry = chance.choice(holders)
        old[entry.key] += is_old(entry)
        changes = [sync.undo(entry.id) for sync in both]
        assert changes[0] == changes[1]
        assert told(alone) == told(other)
    assert sum(old.values()) >= DEPTH


def test_what_was_taken_back_stays_barred(pair: tuple[Store, Store]) -> None:
    alone, other = pair
    manager(other).compact()
    refused = {
        (e.key, e.value) for e in alone.context.history() if e.status in ("undone", "rejected")
    }
    assert len(refused) > 10
    assert all(other.context.refused(key, value) for key, value in refused)
    rows = [
        (e.key, e.value)
        for e in other.context.history()
        if e.status in ("undone", "rejected") and is_old(e)
    ]
    assert len(rows) == len(set(rows))


def test_updates_that_were_dropped_are_gone_and_say_so(pair: tuple[Store, Store]) -> None:
    alone, other = pair
    sync = manager(other)
    sync.compact()
    left = {e.id for e in other.context.history()}
    gone = next(e.id for e in alone.context.history() if e.id not in left)
    for act in (sync.undo, sync.approve):
        with pytest.raises(StoreError, match=f"no update '{gone}'"):
            act(gone)


def test_a_fault_at_any_step_leaves_a_journal_that_works(
    pair: tuple[Store, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, other = pair
    monkeypatch.setattr(sync_module, "_COMPACTED", 10)
    plain = ContextLog.compact
    steps: Iterator[str] = iter(())

    def failing(self: ContextLog, *given: Any) -> int:
        step = next(steps)
        if step == "fault":
            raise DiskFullError("no space")
        done = plain(self, *given)
        if step == "fault afterwards":
            raise DiskFullError("no space")
        return done

    monkeypatch.setattr(ContextLog, "compact", failing)
    for good in range(4):
        for fault in ("fault", "fault afterwards"):
            steps = iter([""] * good + [fault])
            with pytest.raises(DiskFullError):
                manager(other).compact()
            assert told(other) == told(alone)
    monkeypatch.undo()
    manager(other).compact()
    whole = {e.id for e in other.context.history()}
    with_one_go = Store(alone.path)
    manager(with_one_go).compact()
    # In parts and with faults in between, it comes to the same.
    assert whole == {e.id for e in with_one_go.context.history()}
    with_one_go.close()


COMPACTING = """
import sys
import mlx_companion
from mlx_companion.slm import sync as module
from mlx_companion.store import Store
from mlx_companion.store.context import ContextLog
module._COMPACTED = 1
plain = ContextLog.compact
def told(self, *given):
    done = plain(self, *given)
    print(done, flush=True)
    return done
ContextLog.compact = told
with Store(sys.argv[1]) as store:
    module.ContextSyncManager(store, module.SyncConfig(compact_above=None)).compact()
    import threading
    threading.Event().wait()
"""


def test_a_kill_in_between_leaves_what_is_known(pair: tuple[Store, Store]) -> None:
    alone, other = pair
    before = other.context.size()
    command = [sys.executable, "-c", COMPACTING, str(other.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(20)]
        process.kill()
        lines += process.stdout.readlines()
    assert process.returncode == -signal.SIGKILL
    with Store(other.path) as opened:  # opening checks the file
        # One more may have been deleted than was told of.
        assert before - opened.context.size() - lines.count("1\n") in (0, 1)
        assert told(opened) == told(alone)
        for _ in range(20):
            holder = manager(opened).last_applied()
            assert holder is not None
            if is_old(holder):
                break
            assert manager(opened).undo(holder.id) == manager(alone).undo(holder.id)
        manager(opened).compact()


def test_it_happens_by_itself_when_the_journal_is_long(tmp_path: Path) -> None:
    with Store(tmp_path / "c.db") as store:
        fill(store, days=60)
        sizes = [store.context.size()]
        for most in (10_000, 100):
            sync = manager(store, compact_above=most)
            sync.queue_update(update(KEYS[0], 1, 1.0, True, 0))
            sync.process_queue()
            sizes.append(store.context.size())
        assert sizes[1] == sizes[0] + 1
        assert sizes[2] < sizes[0] * 2 / 3


def test_a_journal_that_cannot_be_compacted_is_still_decided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(self: ContextLog, *given: Any) -> int:
        raise DiskFullError("no space")

    with Store(tmp_path / "c.db") as store:
        fill(store, days=10)
        sync = manager(store, compact_above=1)
        monkeypatch.setattr(ContextLog, "compact", full)
        sync.queue_update(update("k", 1, 1.0, True, 0))
        assert sync.process_queue().decided == {"applied": 1}
        assert "not compacted" in caplog.text


@pytest.mark.parametrize(
    "wrong", [{"keep_days": 0.5}, {"keep_per_key": 0}, {"compact_above": 0}, {"keep_days": 1e9}]
)
def test_limits_that_would_lose_something_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        SyncConfig(**wrong)


def test_two_at_once_and_a_writer(pair: tuple[Store, Store]) -> None:
    alone, other = pair
    errors: list[BaseException] = []

    def act(work: Any) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    def write() -> None:
        sync = manager(other)
        for n in range(40):
            sync.queue_update(update("new.key", n, 1.0, True, -n / 1e6), id=f"new-{n}")
            sync.process_queue()

    with Store(other.path) as second:
        works = [manager(other).compact, manager(second).compact, write]
        threads = [threading.Thread(target=act, args=(work,)) for work in works]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert errors == []
    assert all(other.context.get(f"new-{n}").status == "applied" for n in range(40))
    known = [one for one in told(other) if one[1] != "new.key"]
    assert known == told(alone)
    with pytest.raises(SLMError):
        manager(other).approve("new-1")
