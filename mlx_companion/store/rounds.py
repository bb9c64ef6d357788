"""How far each round of the loop has come, step by step.

Why: a round takes many minutes and may be killed at any moment. Each step is marked running
when it begins and done, with what it found, when it ends; `improve` asks for the unfinished
round and goes on at its first step that is not done.
"""

from __future__ import annotations

from typing import Any

from mlx_companion.errors import StoreError
from mlx_companion.store.database import Database
from mlx_companion.store.records import Round, Step, load
from mlx_companion.store.values import dump_json, new_id, now


class Rounds:
    """Rounds and their steps."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def begin(
        self, *, config: Any = None, seed: int | None = None, base_version: str | None = None
    ) -> Round:
        """Start a new round under the next number.

        Args:
            config: a dataclass or a mapping.
            base_version: the version that is active as the round starts.
        """
        round_id = new_id()
        with self._db.transaction():
            self._db.execute(
                """
                INSERT INTO rounds (id, number, base_version, seed, config, started_at)
                SELECT ?, ifnull(max(number), 0) + 1, ?, ?, ?, ? FROM rounds
                """,
                (round_id, base_version, seed, dump_json(config or {}, "config"), now()),
            )
            return self.get(round_id)

    def get(self, round_id: str) -> Round:
        """One round. Raises StoreError when there is none with this id."""
        row = self._db.row("SELECT * FROM rounds WHERE id = ?", (round_id,))
        if row is None:
            raise StoreError(f"there is no round '{round_id}' in the store")
        return load(Round, row)

    def all(self) -> list[Round]:
        """All rounds, oldest first."""
        return [load(Round, row) for row in self._db.rows("SELECT * FROM rounds ORDER BY number")]

    def unfinished(self) -> Round | None:
        """The latest round without an outcome, to be resumed; None when there is none."""
        row = self._db.row(
            "SELECT * FROM rounds WHERE outcome IS NULL ORDER BY number DESC LIMIT 1"
        )
        return None if row is None else load(Round, row)

    def begin_step(self, round_id: str, step: str) -> Step:
        """Mark a step as running and return it.

        A step that is done is returned as it is: look at `.done` and skip it. One that was
        running or had failed keeps its payload (see `save_step`) and counts one more attempt.

        Raises:
            StoreError: there is no such round.
        """
        with self._db.transaction():
            self.get(round_id)
            self._db.execute(
                """
                INSERT INTO round_steps (round_id, step, status, started_at)
                VALUES (?, ?, 'running', ?)
                ON CONFLICT (round_id, step) DO UPDATE
                SET status = 'running', attempts = attempts + 1, error = NULL, finished_at = NULL
                WHERE status != 'done'
                """,
                (round_id, step, now()),
            )
            return self._step(round_id, step)

    def save_step(self, round_id: str, step: str, payload: Any) -> Step:
        """Keep what a running step has so far, for the case that it is killed.

        Raises:
            StoreError: the step was not begun.
        """
        return self._update(round_id, step, "payload = :payload", payload=dump_json(payload or {}))

    def finish_step(self, round_id: str, step: str, payload: Any = None) -> Step:
        """Mark a step as done with what it found (None keeps what `save_step` kept).

        Raises:
            StoreError: the step was not begun.
        """
        return self._update(
            round_id,
            step,
            "status = 'done', finished_at = :at, error = NULL, payload = ifnull(:payload, payload)",
            payload=None if payload is None else dump_json(payload, "payload"),
            at=now(),
        )

    def fail_step(self, round_id: str, step: str, error: str) -> Step:
        """Mark a step as failed; `begin_step` tries it again.

        Raises:
            StoreError: the step was not begun.
        """
        return self._update(
            round_id,
            step,
            "status = 'failed', finished_at = :at, error = :error",
            at=now(),
            error=error,
        )

    def step(self, round_id: str, step: str) -> Step | None:
        """How far one step has come; None when it was not begun."""
        return self.steps(round_id).get(step)

    def steps(self, round_id: str) -> dict[str, Step]:
        """Every step that was begun, by name, in the order of beginning."""
        rows = self._db.rows(
            "SELECT * FROM round_steps WHERE round_id = ? ORDER BY started_at, rowid", (round_id,)
        )
        return {row["step"]: load(Step, row) for row in rows}

    def finish(self, round_id: str, outcome: str, summary: Any = None) -> Round:
        """Give a round its outcome: 'deployed', 'rejected', 'inconclusive', 'abandoned', ...

        Raises:
            StoreError: there is no such round.
        """
        self._db.execute(
            "UPDATE rounds SET outcome = ?, finished_at = ?, summary = ? WHERE id = ?",
            (outcome, now(), dump_json(summary or {}, "summary"), round_id),
        )
        return self.get(round_id)

    def _update(self, round_id: str, step: str, assignments: str, **values: Any) -> Step:
        with self._db.transaction():
            self._step(round_id, step)
            self._db.execute(
                f"UPDATE round_steps SET {assignments} WHERE round_id = :round AND step = :step",
                {**values, "round": round_id, "step": step},
            )
            return self._step(round_id, step)

    def _step(self, round_id: str, step: str) -> Step:
        found = self.step(round_id, step)
        if found is None:
            raise StoreError(
                f"step '{step}' of round '{round_id}' was not begun; call begin_step first"
            )
        return found
