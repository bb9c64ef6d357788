"""The ledger of looks at each gate set.

Why: every test on the same gate prompts uses up some of the error that they can bear.
The ledger says how much of it is spent, keyed to the hash of the set, so that a changed set
starts fresh and an unchanged one cannot be asked until it says yes.
"""

from __future__ import annotations

from mlx_companion.errors import DataError
from mlx_companion.store.database import Database
from mlx_companion.store.records import LedgerEntry, load
from mlx_companion.store.values import new_id, now


class Ledger:
    """Looks at gate sets and the alpha that each has cost."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def record(
        self,
        gate_sha256: str,
        round_id: str,
        alpha_spent: float,
        p: float | None = None,
        outcome: str | None = None,
        *,
        look: int = 0,
    ) -> LedgerEntry:
        """Record a look; the same set, round and look again replaces it and spends nothing twice.

        Args:
            gate_sha256: hash of the gate set.
            alpha_spent: the level at which this look tests, from 0 to 1.
            p: its p-value; None while it is running.
            outcome: 'deploy', 'reject', 'inconclusive'; None while it is running.
            look: tells apart several looks within one round (such as scaled adapters).

        Raises:
            DataError: `alpha_spent` or `p` is not a number from 0 to 1.
        """
        _check_share(alpha_spent, "alpha_spent")
        if p is not None:
            _check_share(p, "p")
        rows = self._db.rows(
            """
            INSERT INTO gate_ledger VALUES (?, ?, ?, ?, ?, ?, ?, ?)
            ON CONFLICT (gate_sha256, round_id, look) DO UPDATE SET
                alpha_spent = excluded.alpha_spent, p = excluded.p, outcome = excluded.outcome
            RETURNING *
            """,
            (
                new_id(),
                gate_sha256,
                round_id,
                look,
                float(alpha_spent),
                None if p is None else float(p),
                outcome,
                now(),
            ),
        )
        return load(LedgerEntry, rows[0])

    def spent(self, gate_sha256: str, exclude_round: str | None = None) -> float:
        """The alpha spent on a gate set so far (by all other rounds than `exclude_round`)."""
        return self._db.value(
            """
            SELECT total(alpha_spent) FROM gate_ledger
            WHERE gate_sha256 = ?1 AND (?2 IS NULL OR round_id != ?2)
            """,
            (gate_sha256, exclude_round),
        )

    def entries(self, gate_sha256: str | None = None) -> list[LedgerEntry]:
        """All looks (at one gate set), oldest first."""
        rows = self._db.rows(
            """
            SELECT * FROM gate_ledger WHERE ?1 IS NULL OR gate_sha256 = ?1 ORDER BY at, id
            """,
            (gate_sha256,),
        )
        return [load(LedgerEntry, row) for row in rows]


def _check_share(number: float, field: str) -> None:
    if not 0 <= number <= 1:
        raise DataError(f"expected a number from 0 to 1, got {number!r}", field=field)
