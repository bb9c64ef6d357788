"""What is learned about the person, on its way into the store: queued, decided, taken back.

Why a queue: modules notice things on several threads and in several processes, and none of them
may lose an update, apply one twice, or change how the companion speaks without a limit. So:

* **Durable before acknowledged.** `queue_update` returns when the row is on the disk. Threads that
  queue at the same moment share one commit. Inside a `store.transaction()` of the caller's own the
  row is part of that: it is on the disk when the block has ended well, and never otherwise.
* **Idempotent.** An update has an id; the same id again is acknowledged and changes nothing.
* **Ordered.** Updates of one source are decided in the order in which they were acknowledged.
* **One writer.** `process_queue` decides inside the database's write lock, so two processes
  cannot decide the same update.
* **Bounded.** At `capacity` undecided updates `queue_update` waits, then refuses; what it refused
  was not queued.

How an update is decided, first match:

    weak      an inference less confident than `least_confidence`
    barred    an inference of a value that the person took back or rejected
    applied   a statement; an inference that does not beat what holds; anything but personality
    limited   inferences have changed the personality often enough for a day
    pending   an inference that would replace much of the personality: waits for the person
    applied   the rest

Which applied update holds for a key is defined in `store/context.py`. To undo one is to leave it
out: the key then has the value that it would have, had the update never been made. A later
update that holds the key goes on holding it, and when that is undone too, the value is the one
from before both::

    sync = ContextSyncManager(store)
    receipt = sync.queue_update(ContextUpdate("preference.emoji", False, "no emoji", (0, 8), 0.97))
    sync.process_queue()
    sync.get_latest_context()          # {"preference.emoji": False}
    sync.undo(receipt.id)

A journal that only grows would one day be slow, so it is compacted (`compact`, and by itself from
`compact_above` updates on). For `keep_days` every update is kept: its id is recognized, it is in
the history, and it can be undone. Of older ones there stay, for good, those that hold their key or
wait for the person, the best `keep_per_key` of each key, so that undoing goes on as before, and one
for each value that was taken back or rejected, which stays barred.
"""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlx_companion.errors import CompanionError, ConfigError, DataError, SLMError
from mlx_companion.runtime.logs import get_logger
from mlx_companion.slm.results import ContextUpdate
from mlx_companion.store import ContextEntry, NewEntry, Store
from mlx_companion.store.context import beats
from mlx_companion.store.records import ContextStatus
from mlx_companion.store.values import format_time, new_id

__all__ = ["Change", "ContextSyncManager", "QueueReport", "Receipt", "SyncConfig"]

_POLL_SECONDS = 0.01
_BATCH = 256
# Deleted in one transaction; others write in between.
_COMPACTED = 2000

_logger = get_logger(__name__)


@dataclass(frozen=True)
class SyncConfig:
    """Limits of what may be learned without asking.

    Args:
        capacity: undecided updates at which `queue_update` waits or refuses.
        least_confidence: inferences below it are kept, but not applied.
        personality: prefixes of the keys that change how the companion speaks.
        changes_per_day: how many of those inferences may change in 24 hours.
        major_step: an inference that moves a number of the personality by this much (or puts
            any other value in place of one that is there) waits for approval.
        keep_days: for so long every decided update is kept.
        keep_per_key: of the older ones that were applied, so many of each key.
        compact_above: updates in the journal from which it is compacted by itself; None for never.
    """

    capacity: int = 1000
    least_confidence: float = 0.5
    personality: tuple[str, ...] = ("personality.", "preference.tone", "preference.formality")
    changes_per_day: int = 5
    major_step: float = 0.3
    keep_days: float = 30.0
    keep_per_key: int = 3
    compact_above: int | None = 5000

    def __post_init__(self) -> None:
        if not 1 <= self.keep_days < 36500 or self.keep_per_key < 1:
            # The limit of changes per day looks a day back.
            raise ConfigError("'keep_days' must be at least 1, and 'keep_per_key' too")
        if self.compact_above is not None and self.compact_above < 1:
            raise ConfigError(f"'compact_above' is {self.compact_above}; expected 1 or more")
        # A number that is none compares as false, and must not lift a limit.
        if not (self.capacity >= 1 and self.changes_per_day >= 0 and self.major_step > 0):
            raise ConfigError(
                "'capacity' must be at least 1, 'changes_per_day' 0 or more, 'major_step' above 0"
            )
        if isinstance(self.personality, str):
            raise ConfigError(f"'personality' is {self.personality!r}; expected several prefixes")
        if not 0 <= self.least_confidence <= 1:
            raise ConfigError(f"'least_confidence' is {self.least_confidence}; expected 0 to 1")


@dataclass(frozen=True)
class Receipt:
    """An update that is on the disk: its id, its place in the order, and whether it is new."""

    id: str
    position: int
    new: bool


@dataclass(frozen=True)
class Change:
    """A key before and after something was decided; None is no value."""

    key: str
    before: Any
    after: Any


@dataclass(frozen=True)
class QueueReport:
    """What `process_queue` did: how many updates got which status, and the keys it changed."""

    decided: Counter[str] = field(default_factory=Counter)
    changes: list[Change] = field(default_factory=list)


class _Ticket:
    """Rows that one caller waits for; exactly one of `receipts` and `error` is set at the end."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows
        self.receipts: list[Receipt] | None = None
        self.error: BaseException | None = None

    @property
    def done(self) -> bool:
        return self.receipts is not None or self.error is not None


class ContextSyncManager:
    """The way of updates into the store. Threads may share one; processes each have their own.

    Args:
        store: where the journal lies.
        config: limits.
        clock: the present; for the limit of changes per day.
    """

    def __init__(
        self,
        store: Store,
        config: SyncConfig | None = None,
        *,
        clock: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
    ) -> None:
        self.store = store
        self.config = config or SyncConfig()
        self._log = store.context
        self._clock = clock
        self._guard = threading.Lock()
        self._leader = threading.Lock()
        self._waiting: list[_Ticket] = []
        # Looked at by the first `process_queue`, then now and then.
        self._since_look = _BATCH

    def queue_update(
        self,
        update: ContextUpdate | Mapping[str, Any],
        *,
        source: str = "context_tracker",
        id: str | None = None,
        timeout: float = 5.0,
    ) -> Receipt:
        """Queue one update; it survives a power cut once this returns.

        Args:
            update: what was learned; a mapping with the fields of `ContextUpdate` does too.
            source: who noticed it.
            id: of the update; the same id again is the same update. A fresh one by default.
            timeout: seconds to wait for room in a full queue; 0 refuses at once, as is always
                done inside a transaction, where nobody else could make room.

        Raises:
            DataError: a field cannot be stored.
            SLMError: the queue stayed full; the update was not queued.
            StoreError: the store cannot be written; the update was not queued.
        """
        return self.queue_updates([update], source=source, ids=[id], timeout=timeout)[0]

    def queue_updates(
        self,
        updates: Sequence[ContextUpdate | Mapping[str, Any]],
        *,
        source: str = "context_tracker",
        ids: Sequence[str | None] | None = None,
        timeout: float = 5.0,
    ) -> list[Receipt]:
        """Queue several updates in one commit: all of them or none. Errors as `queue_update`."""
        given = ids if ids is not None else [None] * len(updates)
        if len(given) != len(updates):
            raise DataError(f"{len(updates)} updates came with {len(given)} ids")
        entries = [_entry(one, source, each) for one, each in zip(updates, given, strict=True)]
        if len(entries) > self.config.capacity:
            raise SLMError(
                f"{len(entries):,} updates at once do not fit into a queue of "
                f"{self.config.capacity:,}; queue fewer, or raise 'capacity'"
            )
        return self._commit(_Ticket([one.row() for one in entries]), timeout) if entries else []

    def _commit(self, ticket: _Ticket, timeout: float) -> list[Receipt]:
        if self.store.in_transaction:
            # Others' updates must not depend on how this transaction ends; and they hold the lock
            # of the leader while they wait for the store, which is this thread's.
            self._write([ticket])
            if not ticket.done:
                ticket.error = self._full()
        else:
            self._commit_with_others(ticket, time.monotonic() + timeout)
        if ticket.error is not None:
            raise ticket.error
        return ticket.receipts or []

    def _commit_with_others(self, ticket: _Ticket, deadline: float) -> None:
        with self._guard:
            self._waiting.append(ticket)
        while not ticket.done:
            # Whoever gets the lock commits for all that wait; the others find themselves done.
            with self._leader:
                if not ticket.done:
                    self._write_all()
                if not ticket.done and time.monotonic() >= deadline:
                    self._waiting.remove(ticket)
                    ticket.error = self._full()
            if not ticket.done:
                time.sleep(_POLL_SECONDS)

    def _write_all(self) -> None:
        with self._guard:
            waiting = list(self._waiting)
        try:
            self._write(waiting)
        finally:
            with self._guard:
                self._waiting = [one for one in self._waiting if not one.done]

    def _full(self) -> SLMError:
        return SLMError(
            f"the queue of updates is full ({self.config.capacity:,} undecided); call "
            "process_queue, wait longer (timeout), or raise 'capacity'"
        )

    def _write(self, waiting: Sequence[_Ticket]) -> None:
        """Commit the tickets that fit, oldest first; none overtakes another."""
        taken: list[_Ticket] = []
        try:
            with self.store.transaction():
                room = self.config.capacity - self._log.count("queued")
                for ticket in waiting:
                    room -= len(ticket.rows)
                    if room < 0:
                        break
                    taken.append(ticket)
                told = self._log.add_many([row for ticket in taken for row in ticket.rows])
        except BaseException as error:
            for ticket in taken or waiting:
                ticket.error = error
            if not isinstance(error, Exception):
                raise
        else:
            answers = iter(Receipt(*one) for one in told)
            for ticket in taken:
                ticket.receipts = [next(answers) for _ in ticket.rows]

    def process_queue(self, limit: int | None = None) -> QueueReport:
        """Decide the queued updates (at most `limit`), in order, in transactions of a few hundred.

        Several threads and processes may call it; each update is decided once.

        Raises:
            StoreError: the store cannot be written; undecided updates stay queued.
        """
        report = QueueReport()
        left = -1 if limit is None else limit
        while left:
            with self.store.transaction():
                entries = self._log.with_status("queued", _BATCH if left < 0 else min(left, _BATCH))
                for entry in entries:
                    self._decide(entry, report)
            if len(entries) < _BATCH:
                break
            left -= len(entries) if left > 0 else 0
        self._tidy(report.decided.total())
        return report

    def compact(self) -> int:
        """Delete what nothing needs any more (see the module), a part at a time.

        What is known, what waits, and undoing stay as they are. It may be ended at any moment, and
        others may write meanwhile.

        Returns:
            How many updates were deleted.

        Raises:
            StoreError: the store cannot be written; what was deleted so far is.
        """
        before = format_time(self._clock() - dt.timedelta(days=self.config.keep_days))
        deleted, part = 0, _COMPACTED
        while part == _COMPACTED:
            part = self._log.compact(before, self.config.keep_per_key, _COMPACTED)
            deleted += part
        return deleted

    def _tidy(self, decided: int) -> None:
        """Compact a journal that has grown too long; looks only once in a while."""
        self._since_look += decided
        if self.config.compact_above is None or self._since_look < _BATCH:
            return
        self._since_look = 0
        try:
            if self._log.size() > self.config.compact_above:
                self.compact()
        except CompanionError as error:
            # Nothing is lost, and the updates are decided: the next look tries again.
            _logger.warning("the journal was not compacted", extra={"error": str(error)})

    def get_latest_context(self, prefix: str = "") -> dict[str, Any]:
        """What is known now, by key (that starts with `prefix`); queued updates are not yet in."""
        return {entry.key: entry.value for entry in self._log.current(prefix)}

    def entries(self, prefix: str = "") -> list[ContextEntry]:
        """What is known now, with its source, confidence and evidence."""
        return self._log.current(prefix)

    def pending(self) -> list[ContextEntry]:
        """Updates that wait for the person's approval, oldest first."""
        return self._log.with_status("pending")

    def approve(self, update_id: str) -> Change:
        """Apply an update that was held back, as a statement of this moment.

        Raises:
            StoreError: there is no such update.
            SLMError: it was applied, undone or rejected already.
        """
        with self.store.transaction():
            entry = self._held(update_id)
            return self._changing(entry.key, lambda: self._log.confirm(entry))

    def reject(self, update_id: str) -> None:
        """Drop an update that was held back; inferences of the same value are barred from now on.

        Raises: as `approve`.
        """
        with self.store.transaction():
            self._log.decide(self._held(update_id), "rejected", "rejected by the person")

    def undo(self, update_id: str) -> Change:
        """Take an update back, applied or not (see the module); again changes nothing.

        Raises:
            StoreError: there is no such update.
        """
        with self.store.transaction():
            entry = self._log.get(update_id)
            return self._changing(
                entry.key, lambda: self._log.decide(entry, "undone", "taken back")
            )

    def last_applied(self) -> ContextEntry | None:
        """The newest update that holds; what a plain "undo" means."""
        return max(self._log.current(), key=lambda one: one.position, default=None)

    def _held(self, update_id: str) -> ContextEntry:
        entry = self._log.get(update_id)
        if entry.status not in ("pending", "limited", "weak", "barred"):
            raise SLMError(
                f"the update '{update_id}' is {entry.status} and waits for nobody; undo it instead"
            )
        return entry

    def _decide(self, entry: ContextEntry, report: QueueReport) -> None:
        holder = self._log.holder(entry.key)
        wins = holder is None or beats(entry, holder)
        changes = wins and (holder.value if holder else None) != entry.value
        status, reason = self._verdict(entry, holder, changes)
        report.decided[status] += 1
        if status == "applied" and changes:
            report.changes.append(Change(entry.key, holder.value if holder else None, entry.value))
        self._log.decide(entry, status, reason)

    def _verdict(
        self, entry: ContextEntry, holder: ContextEntry | None, changes: bool
    ) -> tuple[ContextStatus, str]:
        told = "changed" if changes else "confirmed or outweighed"
        if entry.explicit:
            return "applied", told
        if entry.confidence < self.config.least_confidence:
            return "weak", f"confidence below {self.config.least_confidence:g}"
        if self._log.refused(entry.key, entry.value):
            return "barred", "the person took this value back"
        if not changes or not entry.key.startswith(self.config.personality):
            return "applied", told
        since = format_time(self._clock() - dt.timedelta(days=1))
        if (
            self._log.inferred_changes(self.config.personality, since)
            >= self.config.changes_per_day
        ):
            return "limited", f"more than {self.config.changes_per_day} changes in a day"
        if holder is not None and self._major(holder.value, entry.value):
            return "pending", f"a major change from {holder.value!r}; approve or reject it"
        return "applied", told

    def _major(self, before: Any, after: Any) -> bool:
        if before is None:
            return False
        numbers = [one for one in (before, after) if type(one) in (int, float)]
        if len(numbers) < 2:
            return True
        try:
            return abs(numbers[1] - numbers[0]) >= self.config.major_step - 1e-9
        except OverflowError:
            # An integer beyond all floats; were this raised, nothing behind it would be decided.
            return True

    def _changing(self, key: str, act: Callable[[], None]) -> Change:
        before = self._log.holder(key)
        act()
        after = self._log.holder(key)
        return Change(key, before.value if before else None, after.value if after else None)


def _entry(update: ContextUpdate | Mapping[str, Any], source: str, id: str | None) -> NewEntry:
    if not isinstance(update, ContextUpdate):
        try:
            update = ContextUpdate(**{"evidence": "", "span": (0, 0), **update})
        except TypeError as error:
            raise DataError(f"this is no update: {error}; give a ContextUpdate") from error
    return NewEntry(
        id=id or new_id(),
        source=source,
        key=update.key,
        value=update.value,
        confidence=update.confidence,
        event_at=update.event_time,
        evidence=update.evidence,
        explicit=update.explicit,
    )
