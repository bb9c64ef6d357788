"""The tables of the companion's database, as a list of migrations.

Why: a database outlives the program that wrote it. Each entry of `MIGRATIONS` takes the schema
from one version to the next and is never edited once released; a change is a new entry at the
end. `migrations.py` applies them, each in one transaction and after a backup.

All tables are STRICT (SQLite 3.37 or newer): a number in a text column is an error, not a
surprise. Times are ISO 8601 text of fixed width in UTC, so that they sort.
"""

from __future__ import annotations

from mlx_companion.store.migrations import Migration

_INTERACTIONS = (
    """
    CREATE TABLE interactions (
        id TEXT PRIMARY KEY NOT NULL,
        created_at TEXT NOT NULL,
        conversation_id TEXT NOT NULL,
        model_version TEXT,
        system TEXT,
        prompt TEXT NOT NULL,
        response TEXT NOT NULL,
        source TEXT NOT NULL,
        meta TEXT NOT NULL DEFAULT '{}'
    ) STRICT
    """,
    "CREATE INDEX interactions_by_time ON interactions (created_at, id)",
    "CREATE INDEX interactions_by_conversation ON interactions (conversation_id, created_at)",
    """
    CREATE TABLE feedback (
        id TEXT PRIMARY KEY NOT NULL,
        interaction_id TEXT NOT NULL REFERENCES interactions (id) ON DELETE CASCADE,
        kind TEXT NOT NULL CHECK (kind IN ('up', 'down', 'edit')),
        edited TEXT CHECK ((kind = 'edit') = (edited IS NOT NULL)),
        created_at TEXT NOT NULL
    ) STRICT
    """,
    "CREATE INDEX feedback_by_interaction ON feedback (interaction_id, created_at)",
)

_ROUNDS = (
    """
    CREATE TABLE rounds (
        id TEXT PRIMARY KEY NOT NULL,
        number INTEGER NOT NULL UNIQUE,
        base_version TEXT,
        seed INTEGER,
        config TEXT NOT NULL DEFAULT '{}',
        started_at TEXT NOT NULL,
        finished_at TEXT,
        outcome TEXT CHECK ((outcome IS NULL) = (finished_at IS NULL)),
        summary TEXT NOT NULL DEFAULT '{}'
    ) STRICT
    """,
    """
    CREATE TABLE round_steps (
        round_id TEXT NOT NULL REFERENCES rounds (id) ON DELETE CASCADE,
        step TEXT NOT NULL,
        status TEXT NOT NULL CHECK (status IN ('running', 'done', 'failed')),
        attempts INTEGER NOT NULL DEFAULT 1,
        started_at TEXT NOT NULL,
        finished_at TEXT,
        payload TEXT NOT NULL DEFAULT '{}',
        error TEXT,
        PRIMARY KEY (round_id, step)
    ) STRICT
    """,
)

_EXAMPLES = (
    """
    CREATE TABLE examples (
        id TEXT PRIMARY KEY NOT NULL,
        round_id TEXT NOT NULL REFERENCES rounds (id) ON DELETE CASCADE,
        purpose TEXT NOT NULL CHECK (purpose IN ('train', 'gate')),
        prompt_id TEXT,
        prompt TEXT NOT NULL,
        prompt_sha TEXT NOT NULL,
        sample_index INTEGER NOT NULL,
        response TEXT NOT NULL,
        topic TEXT NOT NULL,
        source TEXT NOT NULL,
        model_version TEXT,
        template TEXT,
        sampling TEXT NOT NULL DEFAULT '{}',
        scores TEXT NOT NULL DEFAULT '{}',
        verdict TEXT CHECK (verdict IN ('good', 'bad')),
        reason TEXT,
        created_at TEXT NOT NULL
    ) STRICT
    """,
    # The gate samples the old and the new version on the same prompts, hence the version here.
    """
    CREATE UNIQUE INDEX examples_key ON examples
        (round_id, purpose, ifnull(model_version, ''), prompt_sha, sample_index)
    """,
    "CREATE INDEX examples_by_verdict ON examples (purpose, verdict, created_at, id)",
    """
    CREATE TABLE replay (
        round_id TEXT NOT NULL REFERENCES rounds (id) ON DELETE CASCADE,
        example_id TEXT NOT NULL REFERENCES examples (id) ON DELETE CASCADE,
        role TEXT NOT NULL CHECK (role IN ('new', 'replay')),
        topic TEXT NOT NULL,
        count INTEGER NOT NULL CHECK (count > 0),
        PRIMARY KEY (round_id, example_id)
    ) STRICT
    """,
    "CREATE INDEX replay_by_example ON replay (example_id)",
)

_RUNS = (
    """
    CREATE TABLE runs (
        id TEXT PRIMARY KEY NOT NULL,
        kind TEXT NOT NULL,
        started_at TEXT NOT NULL,
        finished_at TEXT,
        status TEXT NOT NULL CHECK (status IN ('running', 'done', 'failed', 'stopped')),
        config TEXT NOT NULL DEFAULT '{}',
        seed INTEGER,
        versions TEXT NOT NULL DEFAULT '{}',
        machine TEXT NOT NULL DEFAULT '{}',
        data_hash TEXT,
        parent TEXT,
        summary TEXT NOT NULL DEFAULT '{}'
    ) STRICT
    """,
    # What was not a number (NaN, infinity) is NULL.
    """
    CREATE TABLE run_metrics (
        run_id TEXT NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
        step INTEGER NOT NULL,
        name TEXT NOT NULL,
        value REAL,
        PRIMARY KEY (run_id, name, step)
    ) STRICT, WITHOUT ROWID
    """,
)

_VERSIONS = (
    """
    CREATE TABLE versions (
        id TEXT PRIMARY KEY NOT NULL,
        number INTEGER NOT NULL UNIQUE,
        name TEXT NOT NULL,
        parent TEXT REFERENCES versions (id),
        adapter_path TEXT,
        adapter_sha256 TEXT,
        base_sha256 TEXT,
        model_source TEXT,
        metrics TEXT NOT NULL DEFAULT '{}',
        created_at TEXT NOT NULL,
        round_id TEXT,
        active INTEGER NOT NULL DEFAULT 0 CHECK (active IN (0, 1))
    ) STRICT
    """,
    "CREATE UNIQUE INDEX versions_active ON versions (active) WHERE active = 1",
    """
    CREATE UNIQUE INDEX versions_of_round ON versions (round_id, adapter_sha256)
        WHERE round_id IS NOT NULL AND adapter_sha256 IS NOT NULL
    """,
    "CREATE INDEX versions_by_parent ON versions (parent)",
    """
    CREATE TABLE version_history (
        id TEXT PRIMARY KEY NOT NULL,
        at TEXT NOT NULL,
        from_version TEXT REFERENCES versions (id),
        to_version TEXT NOT NULL REFERENCES versions (id),
        action TEXT NOT NULL CHECK (action IN ('promote', 'rollback')),
        reason TEXT NOT NULL
    ) STRICT
    """,
    "CREATE INDEX version_history_by_time ON version_history (at, id)",
)

_LEDGER_AND_SETTINGS = (
    """
    CREATE TABLE gate_ledger (
        id TEXT PRIMARY KEY NOT NULL,
        gate_sha256 TEXT NOT NULL,
        round_id TEXT NOT NULL,
        look INTEGER NOT NULL,
        alpha_spent REAL NOT NULL CHECK (alpha_spent >= 0),
        p REAL,
        outcome TEXT,
        at TEXT NOT NULL,
        UNIQUE (gate_sha256, round_id, look)
    ) STRICT
    """,
    """
    CREATE TABLE settings (
        key TEXT PRIMARY KEY NOT NULL,
        value TEXT NOT NULL
    ) STRICT
    """,
)

_LEARNED = (
    """
    CREATE TABLE context_updates (
        id TEXT PRIMARY KEY NOT NULL,
        position INTEGER NOT NULL UNIQUE,
        source TEXT NOT NULL,
        key TEXT NOT NULL,
        value TEXT NOT NULL,
        explicit INTEGER NOT NULL CHECK (explicit IN (0, 1)),
        confidence REAL NOT NULL CHECK (confidence BETWEEN 0 AND 1),
        event_at TEXT NOT NULL,
        evidence TEXT NOT NULL,
        strength REAL NOT NULL,
        status TEXT NOT NULL CHECK (status IN ('queued', 'applied', 'pending', 'limited',
            'barred', 'weak', 'rejected', 'undone')),
        reason TEXT,
        created_at TEXT NOT NULL,
        decided_at TEXT,
        current INTEGER NOT NULL DEFAULT 0 CHECK (current IN (0, 1))
    ) STRICT
    """,
    "CREATE INDEX context_by_status ON context_updates (status, position)",
    "CREATE INDEX context_by_key ON context_updates (key, position)",
    "CREATE INDEX context_decided ON context_updates (decided_at) WHERE reason = 'changed'",
    "CREATE UNIQUE INDEX context_current ON context_updates (key) WHERE current = 1",
    # In the order in which `context.py` chooses, so that a choice reads one entry.
    """
    CREATE INDEX context_choice ON context_updates (key, explicit DESC, strength DESC,
        event_at DESC, confidence DESC, position DESC) WHERE status = 'applied'
    """,
)

_MODULES = (
    """
    CREATE TABLE module_states (
        module TEXT NOT NULL,
        name TEXT NOT NULL,
        value TEXT NOT NULL,
        updated_at TEXT NOT NULL,
        PRIMARY KEY (module, name)
    ) STRICT
    """,
    """
    CREATE TABLE module_versions (
        id TEXT PRIMARY KEY NOT NULL,
        module TEXT NOT NULL,
        number INTEGER NOT NULL,
        label TEXT NOT NULL,
        folder TEXT NOT NULL,
        sha256 TEXT NOT NULL,
        metrics TEXT NOT NULL DEFAULT '{}',
        personal INTEGER NOT NULL DEFAULT 0 CHECK (personal IN (0, 1)),
        active INTEGER NOT NULL DEFAULT 0 CHECK (active IN (0, 1)),
        created_at TEXT NOT NULL,
        UNIQUE (module, number)
    ) STRICT
    """,
    "CREATE UNIQUE INDEX module_versions_active ON module_versions (module) WHERE active = 1",
    # Versions here are text and no references: the shipped pack is no row.
    """
    CREATE TABLE module_events (
        id TEXT PRIMARY KEY NOT NULL,
        at TEXT NOT NULL,
        module TEXT NOT NULL,
        action TEXT NOT NULL CHECK (action IN ('register', 'activate', 'rollback', 'fault',
            'shadow', 'metrics')),
        from_version TEXT,
        to_version TEXT,
        reason TEXT NOT NULL,
        meta TEXT NOT NULL DEFAULT '{}'
    ) STRICT
    """,
    "CREATE INDEX module_events_by_time ON module_events (module, at, id)",
    """
    CREATE TABLE module_traffic (
        id TEXT PRIMARY KEY NOT NULL,
        module TEXT NOT NULL,
        version TEXT NOT NULL,
        at TEXT NOT NULL,
        input TEXT NOT NULL,
        result TEXT NOT NULL,
        label TEXT NOT NULL DEFAULT 'null',
        seconds REAL NOT NULL
    ) STRICT
    """,
    "CREATE INDEX module_traffic_by_time ON module_traffic (module, at, id)",
)

MIGRATIONS: tuple[Migration, ...] = (
    Migration(
        version=1,
        name="first schema",
        statements=(
            *_INTERACTIONS,
            *_ROUNDS,
            *_EXAMPLES,
            *_RUNS,
            *_VERSIONS,
            *_LEDGER_AND_SETTINGS,
        ),
    ),
    Migration(
        version=2,
        name="what is learned about the person, and the versions of the small modules",
        statements=(*_LEARNED, *_MODULES),
    ),
)
