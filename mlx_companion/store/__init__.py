"""The local SQLite database: what was said, made, judged, trained, tested and deployed.

Read `store.py` first (the whole at a glance), then `schema.py` (the tables); each other module
is one part. The layer imports only `errors` and `runtime`.
"""

from __future__ import annotations

from mlx_companion.store.backups import latest_backup, list_backups, restore_backup
from mlx_companion.store.context import NewEntry
from mlx_companion.store.erase import Marks, delete_everything, forget, marks
from mlx_companion.store.records import (
    ContextEntry,
    Example,
    Feedback,
    FeedbackState,
    Interaction,
    Judgement,
    LedgerEntry,
    Metric,
    ModuleEvent,
    ModuleVersion,
    NewExample,
    ReplayMember,
    Round,
    Run,
    Step,
    Traffic,
    Version,
    VersionEvent,
)
from mlx_companion.store.store import Store
from mlx_companion.store.transfer import ImportReport, export, import_

__all__ = [
    "ContextEntry",
    "Example",
    "Feedback",
    "FeedbackState",
    "ImportReport",
    "Interaction",
    "Judgement",
    "LedgerEntry",
    "Marks",
    "Metric",
    "ModuleEvent",
    "ModuleVersion",
    "NewEntry",
    "NewExample",
    "ReplayMember",
    "Round",
    "Run",
    "Step",
    "Store",
    "Traffic",
    "Version",
    "VersionEvent",
    "delete_everything",
    "export",
    "forget",
    "import_",
    "latest_backup",
    "list_backups",
    "marks",
    "restore_backup",
]
