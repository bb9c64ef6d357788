"""What was said and what the person thought of it.

Why: interactions are the one thing in the store that nothing can make again; generated
examples, runs and versions can be. `add` returns only after the row is on the disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mlx_companion.errors import DataError, StoreError
from mlx_companion.store.database import Database
from mlx_companion.store.records import Feedback, FeedbackKind, FeedbackState, Interaction, load
from mlx_companion.store.values import canonical_time, check_prompt, dump_json, new_id, now

_PAGE = 500


class Interactions:
    """Prompts and replies, in the order of their time."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def add(
        self,
        prompt: str,
        response: str,
        *,
        conversation_id: str | None = None,
        model_version: str | None = None,
        system: str | None = None,
        source: str = "chat",
        meta: dict[str, Any] | None = None,
        id: str | None = None,
        created_at: str | None = None,
    ) -> Interaction:
        """Store one exchange; it survives a power cut once this returns.

        Args:
            prompt: what the person said; must hold a visible character.
            response: what the companion said; may be empty.
            conversation_id: exchanges of one conversation share it; a new one by default.
            model_version: the version that answered, such as 'v0002'.
            system: the system prompt in force.
            source: 'chat', 'import', ...
            meta: anything else that has a JSON form.
            id: a row that has this id already is left as it is and returned.
            created_at: ISO 8601; now by default.

        Raises:
            DataError: the prompt is empty or a text cannot be stored.
        """
        row_id = id or new_id()
        values = {
            "id": row_id,
            "created_at": canonical_time(created_at) if created_at else now(),
            "conversation_id": conversation_id or new_id(),
            "model_version": model_version,
            "system": system,
            "prompt": check_prompt(prompt),
            "response": response,
            "source": source,
            "meta": dump_json(meta or {}, "meta"),
        }
        self._db.execute(
            """
            INSERT INTO interactions VALUES (:id, :created_at, :conversation_id, :model_version,
                :system, :prompt, :response, :source, :meta) ON CONFLICT (id) DO NOTHING
            """,
            values,
        )
        return self.get(row_id)

    def get(self, interaction_id: str) -> Interaction:
        """One interaction. Raises StoreError when there is none with this id."""
        row = self._db.row("SELECT * FROM interactions WHERE id = ?", (interaction_id,))
        if row is None:
            raise StoreError(f"there is no interaction '{interaction_id}' in the store")
        return load(Interaction, row)

    def recent(self, limit: int = 20, conversation_id: str | None = None) -> list[Interaction]:
        """The last `limit` interactions (of one conversation), newest first."""
        rows = self._db.rows(
            """
            SELECT * FROM interactions WHERE ?1 IS NULL OR conversation_id = ?1
            ORDER BY created_at DESC, id DESC LIMIT ?2
            """,
            (conversation_id, limit),
        )
        return [load(Interaction, row) for row in rows]

    def iter(self, since: str = "", source: str | None = None) -> Iterator[Interaction]:
        """All interactions after the time `since`, oldest first, read in pages.

        Nothing is locked between pages; what is added meanwhile is seen too.
        """
        # Pages by key rather than a long read, which would keep the log from being shortened.
        values = {
            "time": canonical_time(since, "since") if since else "",
            "id": chr(0x10FFFF),
            "source": source,
            "page": _PAGE,
        }
        while rows := self._db.rows(
            """
            SELECT * FROM interactions
            WHERE (created_at, id) > (:time, :id) AND (:source IS NULL OR source = :source)
            ORDER BY created_at, id LIMIT :page
            """,
            values,
        ):
            for row in rows:
                yield load(Interaction, row)
            values |= {"time": rows[-1]["created_at"], "id": rows[-1]["id"]}

    def count(self, source: str | None = None) -> int:
        """How many interactions there are (from one source)."""
        return self._db.value(
            "SELECT count(*) FROM interactions WHERE ?1 IS NULL OR source = ?1", (source,)
        )

    def with_feedback(self) -> list[tuple[Interaction, FeedbackState]]:
        """Every interaction that has feedback, oldest first, with what it adds up to."""
        rows = self._db.rows(
            """
            SELECT * FROM interactions WHERE id IN (SELECT interaction_id FROM feedback)
            ORDER BY created_at, id
            """
        )
        states = FeedbackLog(self._db).states()
        return [(load(Interaction, row), states[row["id"]]) for row in rows]


class FeedbackLog:
    """Thumbs and rewritten replies; several per interaction, the latest of a kind counts."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def add(
        self,
        interaction_id: str,
        kind: FeedbackKind,
        edited: str | None = None,
        *,
        id: str | None = None,
        created_at: str | None = None,
    ) -> Feedback:
        """Store one piece of feedback.

        Args:
            interaction_id: what it is about.
            kind: 'up', 'down' or 'edit'.
            edited: the reply as the person would have it; for 'edit' only, and required there.
            id: a row that has this id already is left as it is and returned.
            created_at: ISO 8601; now by default.

        Raises:
            DataError: `kind` and `edited` do not fit together.
            StoreError: there is no such interaction.
        """
        _check_kind(kind, edited)
        feedback = Feedback(
            id=id or new_id(),
            interaction_id=interaction_id,
            kind=kind,
            edited=edited,
            created_at=canonical_time(created_at) if created_at else now(),
        )
        with self._db.transaction():
            Interactions(self._db).get(interaction_id)
            self._db.execute(
                "INSERT INTO feedback VALUES (?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING",
                (feedback.id, interaction_id, kind, edited, feedback.created_at),
            )
            row = self._db.row("SELECT * FROM feedback WHERE id = ?", (feedback.id,))
        return load(Feedback, row) if row else feedback

    def for_interaction(self, interaction_id: str) -> list[Feedback]:
        """All feedback on one interaction, oldest first."""
        rows = self._db.rows(
            "SELECT * FROM feedback WHERE interaction_id = ? ORDER BY created_at, id",
            (interaction_id,),
        )
        return [load(Feedback, row) for row in rows]

    def state(self, interaction_id: str) -> FeedbackState:
        """What the feedback on one interaction adds up to; all None when there is none."""
        return _fold(self.for_interaction(interaction_id))

    def states(self) -> dict[str, FeedbackState]:
        """`state` of every interaction that has feedback, by interaction id."""
        grouped: dict[str, list[Feedback]] = {}
        for row in self._db.rows("SELECT * FROM feedback ORDER BY created_at, id"):
            grouped.setdefault(row["interaction_id"], []).append(load(Feedback, row))
        return {key: _fold(items) for key, items in grouped.items()}

    def count(self, kind: FeedbackKind | None = None) -> int:
        """How many pieces of feedback there are (of one kind)."""
        return self._db.value(
            "SELECT count(*) FROM feedback WHERE ?1 IS NULL OR kind = ?1", (kind,)
        )


def _check_kind(kind: str, edited: str | None) -> None:
    if kind not in ("up", "down", "edit"):
        raise DataError(f"{kind!r} is no feedback; expected 'up', 'down' or 'edit'", field="kind")
    if kind == "edit":
        check_prompt(edited or "", "edited")
    elif edited is not None:
        raise DataError("only feedback of the kind 'edit' has edited text", field="edited")


def _fold(items: list[Feedback]) -> FeedbackState:
    rating, edited = None, None
    for item in items:
        if item.kind == "edit":
            edited = item.edited
        else:
            rating = item.kind
    return FeedbackState(rating=rating, edited=edited)
