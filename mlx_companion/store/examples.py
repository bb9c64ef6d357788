"""Generated samples with their judgements, and which of them a round trains on.

Why: training data that a model made for itself must be traceable: from which round, prompt,
version and sampling settings each sample comes, what every judge said, and in which rounds it
was used. A sample's key is (round, purpose, version, prompt, sample index), so a generating
step that is run again after a kill writes over its own rows and adds none.
"""

from __future__ import annotations

from collections.abc import Iterable

from mlx_companion.errors import DataError, StoreError
from mlx_companion.store.database import Database
from mlx_companion.store.records import (
    Example,
    Judgement,
    NewExample,
    Purpose,
    ReplayMember,
    Verdict,
    load,
)
from mlx_companion.store.values import check_prompt, dump_json, new_id, now, sha256_text

# A sample that came out as before keeps its judgement; another one must be judged anew.
_UPSERT = """
    INSERT INTO examples (id, round_id, purpose, prompt_id, prompt, prompt_sha, sample_index,
        response, topic, source, model_version, template, sampling, scores, verdict, reason,
        created_at)
    VALUES (:id, :round_id, :purpose, :prompt_id, :prompt, :prompt_sha, :sample_index,
        :response, :topic, :source, :model_version, :template, :sampling, :scores, :verdict,
        :reason, :created_at)
    ON CONFLICT (round_id, purpose, ifnull(model_version, ''), prompt_sha, sample_index)
    DO UPDATE SET
        scores = iif(response = excluded.response AND excluded.scores = '{}',
                     scores, excluded.scores),
        reason = iif(response = excluded.response AND excluded.verdict IS NULL,
                     reason, excluded.reason),
        verdict = iif(response = excluded.response AND excluded.verdict IS NULL,
                      verdict, excluded.verdict),
        created_at = iif(response = excluded.response, created_at, excluded.created_at),
        response = excluded.response,
        prompt_id = excluded.prompt_id,
        topic = excluded.topic,
        source = excluded.source,
        template = excluded.template,
        sampling = excluded.sampling
    RETURNING *
"""


class Examples:
    """Samples of all rounds."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def add_many(self, round_id: str, examples: Iterable[NewExample]) -> list[Example]:
        """Store samples of one round, all or none; the same key again replaces its row.

        Args:
            round_id: an existing round.
            examples: a replaced row keeps its id, and its judgement when the reply is the same
                and the new one carries none.

        Returns:
            The stored rows, in the order given.

        Raises:
            DataError: a prompt is empty or a value cannot be stored.
            StoreError: there is no such round.
        """
        values = [_values(round_id, example) for example in examples]
        with self._db.transaction():
            rows = [self._db.rows(_UPSERT, item)[0] for item in values]
        return [load(Example, row) for row in rows]

    def judge_many(self, judgements: Iterable[Judgement]) -> int:
        """Write scores, verdict and reason of stored samples, all or none.

        Returns:
            How many samples were written.

        Raises:
            StoreError: one of the samples does not exist; none was written.
        """
        values = [
            (dump_json(item.scores, "scores"), _verdict(item.verdict), item.reason, item.example_id)
            for item in judgements
        ]
        with self._db.transaction():
            for item in values:
                changed = self._db.execute(
                    "UPDATE examples SET scores = ?, verdict = ?, reason = ? WHERE id = ?", item
                )
                if not changed:
                    raise StoreError(f"there is no example '{item[-1]}' in the store")
        return len(values)

    def get(self, example_id: str) -> Example:
        """One sample. Raises StoreError when there is none with this id."""
        row = self._db.row("SELECT * FROM examples WHERE id = ?", (example_id,))
        if row is None:
            raise StoreError(f"there is no example '{example_id}' in the store")
        return load(Example, row)

    def for_round(
        self, round_id: str, purpose: Purpose = "train", model_version: str | None = None
    ) -> list[Example]:
        """The samples of one round (of one version), by prompt in the order of first storing."""
        # Ids sort by time and outlive an export, which row numbers do not.
        rows = self._db.rows(
            """
            SELECT * FROM examples
            WHERE round_id = ?1 AND purpose = ?2 AND (?3 IS NULL OR model_version = ?3)
            ORDER BY min(id) OVER (PARTITION BY prompt_sha), sample_index, id
            """,
            (round_id, purpose, model_version),
        )
        return [load(Example, row) for row in rows]

    def accepted(
        self,
        *,
        round_id: str | None = None,
        exclude_round: str | None = None,
        source: str | None = None,
    ) -> list[Example]:
        """Samples for training that were judged good, oldest first; never those of a gate.

        Args:
            round_id: only those of this round.
            exclude_round: only those of all other rounds (the pool to replay from).
            source: only those of this provenance.
        """
        rows = self._db.rows(
            """
            SELECT * FROM examples
            WHERE purpose = 'train' AND verdict = 'good' AND (?1 IS NULL OR round_id = ?1)
                AND (?2 IS NULL OR round_id != ?2) AND (?3 IS NULL OR source = ?3)
            ORDER BY created_at, id
            """,
            (round_id, exclude_round, source),
        )
        return [load(Example, row) for row in rows]

    def count(
        self,
        round_id: str | None = None,
        purpose: Purpose | None = None,
        verdict: Verdict | None = None,
    ) -> int:
        """How many samples there are (of a round, a purpose, a verdict)."""
        return self._db.value(
            """
            SELECT count(*) FROM examples WHERE (?1 IS NULL OR round_id = ?1)
                AND (?2 IS NULL OR purpose = ?2) AND (?3 IS NULL OR verdict = ?3)
            """,
            (round_id, purpose, verdict),
        )


class Replay:
    """Which samples each round trains on, old and new."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def set(self, round_id: str, members: Iterable[ReplayMember]) -> int:
        """Make `members` the training mix of a round, in place of what it was.

        A member without a topic takes its sample's.

        Returns:
            The realised number of rows, repetitions counted.

        Raises:
            StoreError: an example, or the round, does not exist, or is listed twice.
        """
        members = list(members)
        with self._db.transaction():
            self._db.execute("DELETE FROM replay WHERE round_id = ?", (round_id,))
            for member in members:
                changed = self._db.execute(
                    """
                    INSERT INTO replay
                    SELECT ?, id, ?, iif(? = '', topic, ?), ? FROM examples
                    WHERE id = ? AND purpose = 'train'
                    """,
                    (round_id, member.role, member.topic, member.topic, member.count,
                     member.example_id),
                )  # fmt: skip
                if not changed:
                    raise StoreError(
                        f"there is no example '{member.example_id}' for training in the store"
                    )
        return sum(member.count for member in members)

    def for_round(self, round_id: str) -> list[tuple[ReplayMember, Example]]:
        """The training mix of a round with its samples, oldest sample first."""
        rows = self._db.rows(
            """
            SELECT examples.*, replay.role AS member_role, replay.topic AS member_topic,
                replay.count AS member_count
            FROM replay JOIN examples ON examples.id = replay.example_id
            WHERE replay.round_id = ? ORDER BY examples.created_at, examples.id
            """,
            (round_id,),
        )
        return [
            (
                ReplayMember(
                    row["id"], row["member_role"], row["member_topic"], row["member_count"]
                ),
                load(Example, row),
            )
            for row in rows
        ]

    def counts(self, round_id: str) -> dict[str, dict[str, int]]:
        """Realised rows of a round by role and topic: {'new': {'travel': 12}, 'replay': ...}."""
        result: dict[str, dict[str, int]] = {"new": {}, "replay": {}}
        for row in self._db.rows(
            "SELECT role, topic, sum(count) FROM replay WHERE round_id = ? GROUP BY 1, 2 "
            "ORDER BY 1, 2",
            (round_id,),
        ):
            result[row[0]][row[1]] = row[2]
        return result

    def rounds_of(self, example_id: str) -> list[str]:
        """The ids of the rounds that trained on a sample."""
        rows = self._db.rows("SELECT round_id FROM replay WHERE example_id = ?", (example_id,))
        return [row[0] for row in rows]


def _values(round_id: str, example: NewExample) -> dict[str, object]:
    if example.purpose not in ("train", "gate"):
        raise DataError(f"{example.purpose!r} is not 'train' or 'gate'", field="purpose")
    return {
        "id": new_id(),
        "round_id": round_id,
        "purpose": example.purpose,
        "prompt_id": example.prompt_id,
        "prompt": check_prompt(example.prompt),
        "prompt_sha": sha256_text(example.prompt),
        "sample_index": example.sample_index,
        "response": example.response,
        "topic": example.topic,
        "source": example.source,
        "model_version": example.model_version,
        "template": example.template,
        "sampling": dump_json(example.sampling, "sampling"),
        "scores": dump_json(example.scores, "scores"),
        "verdict": _verdict(example.verdict),
        "reason": example.reason,
        "created_at": now(),
    }


def _verdict(verdict: str | None) -> str | None:
    if verdict not in ("good", "bad", None):
        raise DataError(f"{verdict!r} is no verdict; expected 'good', 'bad' or None",
                        field="verdict")  # fmt: skip
    return verdict
