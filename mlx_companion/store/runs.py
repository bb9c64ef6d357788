"""Runs and their metrics: what was done, with which settings, and what was measured.

Why: a figure can be trusted when the run that gave it can be repeated; so each run records its
configuration, seed, versions, machine and the hash of its data before it starts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mlx_companion.errors import StoreError
from mlx_companion.store.database import Database
from mlx_companion.store.records import Metric, Run, RunStatus, load
from mlx_companion.store.values import dump_json, new_id, now


class Runs:
    """Training and measuring runs."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def start(
        self,
        kind: str,
        *,
        config: Any = None,
        seed: int | None = None,
        versions: Mapping[str, str] | None = None,
        machine: Any = None,
        data_hash: str | None = None,
        parent: str | None = None,
        id: str | None = None,
    ) -> Run:
        """Record that a run begins.

        Args:
            kind: 'finetune', 'gate', 'benchmark', ...
            config: a dataclass or a mapping.
            versions: of the libraries, by name.
            machine: facts of the machine (dataclass or mapping).
            data_hash: SHA-256 of the training data.
            parent: the id of the run that this one continues or belongs to.
            id: a run with this id already goes on: it is marked running and keeps the rest.
        """
        run_id = id or new_id()
        self._db.execute(
            """
            INSERT INTO runs (id, kind, started_at, status, config, seed, versions, machine,
                data_hash, parent)
            VALUES (?, ?, ?, 'running', ?, ?, ?, ?, ?, ?)
            ON CONFLICT (id) DO UPDATE SET status = 'running', finished_at = NULL
            """,
            (
                run_id,
                kind,
                now(),
                dump_json(config or {}, "config"),
                seed,
                dump_json(versions or {}, "versions"),
                dump_json(machine or {}, "machine"),
                data_hash,
                parent,
            ),
        )
        return self.get(run_id)

    def log(self, run_id: str, step: int, metrics: Mapping[str, float]) -> None:
        """Record numbers measured at `step`; the same step and name again replaces the number.

        NaN and infinities are kept as "no number" and come back as NaN.

        Raises:
            StoreError: there is no such run.
        """
        values = [(run_id, int(step), name, _finite(value)) for name, value in metrics.items()]
        with self._db.transaction():
            for item in values:
                self._db.execute(
                    """
                    INSERT INTO run_metrics VALUES (?, ?, ?, ?)
                    ON CONFLICT (run_id, name, step) DO UPDATE SET value = excluded.value
                    """,
                    item,
                )

    def finish(self, run_id: str, status: RunStatus = "done", summary: Any = None) -> Run:
        """Record how a run ended. Raises StoreError when there is no such run."""
        self._db.execute(
            "UPDATE runs SET status = ?, finished_at = ?, summary = ? WHERE id = ?",
            (status, now(), dump_json(summary or {}, "summary"), run_id),
        )
        return self.get(run_id)

    def get(self, run_id: str) -> Run:
        """One run. Raises StoreError when there is none with this id."""
        row = self._db.row("SELECT * FROM runs WHERE id = ?", (run_id,))
        if row is None:
            raise StoreError(f"there is no run '{run_id}' in the store")
        return load(Run, row)

    def all(self, kind: str | None = None, limit: int = 100) -> list[Run]:
        """The last `limit` runs (of one kind), newest first."""
        rows = self._db.rows(
            """
            SELECT * FROM runs WHERE ?1 IS NULL OR kind = ?1
            ORDER BY started_at DESC, id DESC LIMIT ?2
            """,
            (kind, limit),
        )
        return [load(Run, row) for row in rows]

    def metrics(self, run_id: str, name: str | None = None) -> list[Metric]:
        """The numbers of a run (of one name), by step and name; NaN where it was none."""
        rows = self._db.rows(
            """
            SELECT step, name, value FROM run_metrics
            WHERE run_id = ?1 AND (?2 IS NULL OR name = ?2) ORDER BY step, name
            """,
            (run_id, name),
        )
        return [Metric(row[0], row[1], math.nan if row[2] is None else row[2]) for row in rows]


def _finite(value: float) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None
