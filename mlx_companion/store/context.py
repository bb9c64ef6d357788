"""What was learned about the person: a journal of updates, and which of them holds for each key.

Why a journal and not a table of values: a value that is overwritten cannot be taken back. Every
update stays a row; the one that holds for its key carries the flag `current`, and taking an
update back is to leave it out and to choose again among the rest. Who may be queued, applied or
held back is decided in `slm/sync.py`; this part only keeps and chooses.

The choice among the applied updates of a key is a total order, so it depends on what they say
and not on the order in which they came:

1. an explicit statement beats an inference;
2. of two statements the later event holds;
3. of two inferences the stronger one holds: its confidence (to one decimal) halved for every day
   of its age, so that a little more confidence does not hold up newer evidence for long;
4. ties go to the later event, then to the higher confidence, then to the later queued.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mlx_companion.errors import DataError, StoreError
from mlx_companion.store.database import Database
from mlx_companion.store.records import ContextEntry, ContextStatus, load
from mlx_companion.store.values import EPOCH, canonical_time, check_prompt, check_text, dump_json
from mlx_companion.store.values import now as present

_ORDER = "explicit DESC, strength DESC, event_at DESC, confidence DESC, position DESC"
_DAY = dt.timedelta(days=1)
_COLUMNS = (
    "id", "position", "source", "key", "value", "explicit", "confidence", "event_at", "evidence",
    "strength", "status", "reason", "created_at", "decided_at", "current",
)  # fmt: skip
_INSERT = (
    f"INSERT INTO context_updates VALUES ({', '.join(f':{name}' for name in _COLUMNS)}) "
    "ON CONFLICT (id) DO NOTHING"
)


# Rows that nothing needs any more. Each condition stands for itself, so any part of them may go.
_SPENT = f"""
    SELECT id FROM (
        SELECT id, position, current, status, key, value,
            row_number() OVER (PARTITION BY key, status = 'applied' ORDER BY {_ORDER}) AS place
        FROM context_updates
        WHERE coalesce(decided_at, created_at) < :before AND status NOT IN ('queued', 'pending')
    ) AS old
    WHERE current = 0 AND position < (SELECT max(position) FROM context_updates) AND CASE
        WHEN status = 'applied' THEN place > :per_key
        WHEN status IN ('undone', 'rejected') THEN EXISTS (
            SELECT 1 FROM context_updates AS same
            WHERE same.key = old.key AND same.value = old.value AND same.position > old.position
            AND same.status IN ('undone', 'rejected'))
        ELSE 1
    END LIMIT :most
"""


@dataclass(frozen=True, slots=True)
class NewEntry:
    """One update to be kept; checked on the way in.

    Attributes:
        id: the same id again is the same update.
        source: who noticed it; updates of one source keep their order.
        key: what it is about, such as "preference.reply_length".
        value: what was learned, JSON; None removes the key.
        confidence: 0 to 1.
        event_at: when it was said, ISO 8601; the present when None or in the future.
        evidence: the words that say so.
        explicit: said outright, and not inferred.
    """

    id: str
    source: str
    key: str
    value: Any
    confidence: float = 1.0
    event_at: str | None = None
    evidence: str = ""
    explicit: bool = False

    def row(self) -> dict[str, Any]:
        """The columns of this update, but for its position.

        Raises:
            DataError: a field cannot be stored; names it.
        """
        moment = present()
        # A clock ahead of ours must not make an update unbeatable.
        event_at = (
            min(canonical_time(self.event_at, "event_time"), moment) if self.event_at else (moment)
        )
        confidence = _share(self.confidence)
        return {
            "id": check_prompt(self.id, "id"),
            "source": check_prompt(self.source, "source"),
            "key": check_prompt(self.key, "key"),
            "value": dump_json(self.value, "value"),
            "explicit": int(bool(self.explicit)),
            "confidence": confidence,
            "event_at": event_at,
            "evidence": check_text(self.evidence, "evidence"),
            "strength": strength(bool(self.explicit), confidence, event_at),
            "status": "queued",
            "reason": None,
            "created_at": moment,
            "decided_at": None,
            "current": 0,
        }


def strength(explicit: bool, confidence: float, event_at: str) -> float:
    """How strongly an update holds its key; comparable only among updates of one kind.

    Args:
        explicit: a statement counts by its time alone.
        confidence: 0 to 1.
        event_at: ISO 8601 in UTC.

    Returns:
        Days since 1970 for a statement; for an inference log2(confidence) more than those,
        which orders as confidence * 2 ** -(age in days) does at any later moment.
    """
    days = (dt.datetime.fromisoformat(event_at) - EPOCH) / _DAY
    if explicit:
        return days
    return days + math.log2(max(math.floor(confidence * 10 + 1e-9), 1) / 10)


def beats(one: ContextEntry, other: ContextEntry) -> bool:
    """Whether `one` would hold the key rather than `other`; the order of `choose`."""
    return _rank(one) > _rank(other)


def _rank(entry: ContextEntry) -> tuple[Any, ...]:
    return entry.explicit, entry.strength, entry.event_at, entry.confidence, entry.position


class ContextLog:
    """The journal of updates and the value that holds for each key."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def add_many(self, rows: Sequence[dict[str, Any]]) -> list[tuple[str, int, bool]]:
        """Queue updates in one transaction; durable once this returns.

        Args:
            rows: as `NewEntry.row` makes them.

        Returns:
            Of each: its id, its position in the queue's order, and whether it is new.
        """
        told = []
        with self._db.transaction():
            position = self._db.value("SELECT ifnull(max(position), 0) FROM context_updates")
            for row in rows:
                new = self._db.execute(_INSERT, {**row, "position": position + 1}) > 0
                position += new
                told.append((row["id"], position if new else self.get(row["id"]).position, new))
        return told

    def count(self, status: ContextStatus) -> int:
        """How many updates have this status."""
        return self._db.value("SELECT count(*) FROM context_updates WHERE status = ?", (status,))

    def with_status(self, status: ContextStatus, limit: int = -1) -> list[ContextEntry]:
        """The updates with this status, in the order in which they were queued."""
        return self._load(
            "SELECT * FROM context_updates WHERE status = ? ORDER BY position LIMIT ?",
            (status, limit),
        )

    def get(self, update_id: str) -> ContextEntry:
        """One update. Raises StoreError when there is none with this id."""
        row = self._db.row("SELECT * FROM context_updates WHERE id = ?", (update_id,))
        if row is None:
            raise StoreError(f"there is no update '{update_id}' in the store")
        return load(ContextEntry, row)

    def history(self, key: str | None = None) -> list[ContextEntry]:
        """All updates (of one key), in the order in which they were queued."""
        return self._load(
            "SELECT * FROM context_updates WHERE ?1 IS NULL OR key = ?1 ORDER BY position", (key,)
        )

    def current(self, prefix: str = "") -> list[ContextEntry]:
        """What holds, by key; removed keys are left out."""
        return self._load(
            "SELECT * FROM context_updates WHERE current = 1 AND value <> 'null' "
            "AND substr(key, 1, ?1) = ?2 ORDER BY key",
            (len(prefix), prefix),
        )

    def holder(self, key: str) -> ContextEntry | None:
        """The update that holds for `key`, also when it removes it."""
        row = self._db.row("SELECT * FROM context_updates WHERE key = ? AND current = 1", (key,))
        return None if row is None else load(ContextEntry, row)

    def refused(self, key: str, value: Any) -> bool:
        """Whether the person took back or rejected this very value of `key`."""
        return bool(
            self._db.value(
                "SELECT EXISTS (SELECT 1 FROM context_updates WHERE key = ? AND value = ? "
                "AND status IN ('undone', 'rejected'))",
                (key, dump_json(value)),
            )
        )

    def inferred_changes(self, prefixes: Iterable[str], since: str) -> int:
        """How many keys with one of these prefixes inferences have changed since a moment."""
        rows = self._db.rows(
            "SELECT key FROM context_updates WHERE decided_at >= ? AND status = 'applied' "
            "AND explicit = 0 AND reason = 'changed'",
            (since,),
        )
        return sum(1 for row in rows if row["key"].startswith(tuple(prefixes)))

    def decide(self, entry: ContextEntry, status: ContextStatus, reason: str = "") -> None:
        """Give an update a status; when that can change what holds for its key, choose again."""
        self._db.execute(
            "UPDATE context_updates SET status = ?, reason = ?, decided_at = ? WHERE id = ?",
            (status, reason or None, present(), entry.id),
        )
        if "applied" in (status, entry.status):
            self.choose(entry.key)

    def confirm(self, entry: ContextEntry) -> None:
        """Make an update a statement of this moment: the person has agreed to it."""
        self._db.execute(
            "UPDATE context_updates SET explicit = 1, strength = ? WHERE id = ?",
            (strength(True, entry.confidence, present()), entry.id),
        )
        self.decide(entry, "applied", "approved")

    def choose(self, key: str) -> None:
        """Let the best applied update of `key` hold for it."""
        best = self._db.value(
            f"SELECT id FROM context_updates WHERE key = ? AND status = 'applied' "
            f"ORDER BY {_ORDER} LIMIT 1",
            (key,),
        )
        self._db.execute(
            "UPDATE context_updates SET current = 0 WHERE key = ? AND current = 1 AND id IS NOT ?",
            (key, best),
        )
        self._db.execute(
            "UPDATE context_updates SET current = 1 WHERE id = ? AND current = 0", (best,)
        )

    def size(self) -> int:
        """How many updates there are, of every status."""
        return self._db.value("SELECT count(*) FROM context_updates")

    def compact(self, before: str, per_key: int, most: int) -> int:
        """Delete updates that nothing needs any more, in one transaction.

        Decided before a moment they have to be, and none of: the one that holds its key; the best
        `per_key` of the old applied ones of a key, which hold it when those above are taken back;
        the last one that was taken back or rejected with a value, which bars it; the last queued.

        Args:
            before: ISO 8601 in UTC.
            per_key: 1 or more.
            most: rows to delete at most.

        Returns:
            How many were deleted.
        """
        return self._db.execute(
            f"DELETE FROM context_updates WHERE id IN ({_SPENT})",
            {"before": before, "per_key": per_key, "most": most},
        )

    def choose_all(self) -> None:
        """Choose again for every key, for instance after updates were imported."""
        with self._db.transaction():
            for row in self._db.rows("SELECT DISTINCT key FROM context_updates"):
                self.choose(row["key"])

    def _load(self, sql: str, values: Sequence[Any]) -> list[ContextEntry]:
        return [load(ContextEntry, row) for row in self._db.rows(sql, values)]


def _share(number: float) -> float:
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number <= 1:
        raise DataError(f"expected a number from 0 to 1, got {number!r}", field="confidence")
    return float(number)
