"""Settings that belong to this person's companion rather than to a run: a key and a JSON value."""

from __future__ import annotations

import json
from typing import Any

from mlx_companion.store.database import Database
from mlx_companion.store.values import check_prompt, dump_json


class Settings:
    """Named values that have a JSON form."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def get(self, key: str, default: Any = None) -> Any:
        """The value of `key`, or `default` when it was never set."""
        text = self._db.value("SELECT value FROM settings WHERE key = ?", (key,))
        return default if text is None else json.loads(text)

    def set(self, key: str, value: Any) -> None:
        """Keep `value` under `key`, in place of what was there.

        Raises:
            DataError: the key is empty or the value has no JSON form.
        """
        self._db.execute(
            "INSERT INTO settings VALUES (?, ?) ON CONFLICT (key) DO UPDATE "
            "SET value = excluded.value",
            (check_prompt(key, "key"), dump_json(value, key)),
        )

    def delete(self, key: str) -> bool:
        """Forget `key`; whether it was set."""
        return self._db.execute("DELETE FROM settings WHERE key = ?", (key,)) > 0

    def all(self) -> dict[str, Any]:
        """Every setting, by key."""
        rows = self._db.rows("SELECT key, value FROM settings ORDER BY key")
        return {row["key"]: json.loads(row["value"]) for row in rows}
