"""Opening, checking, migrating and sharing the database file."""

from __future__ import annotations

import sqlite3
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from patience import LONG

from mlx_companion.errors import DataError, DiskFullError, StoreError
from mlx_companion.store import Store, export, latest_backup, list_backups, restore_backup
from mlx_companion.store import database as database_module
from mlx_companion.store import migrations as migrations_module
from mlx_companion.store.database import Database
from mlx_companion.store.migrations import Migration, schema_version
from mlx_companion.store.schema import MIGRATIONS

ONE = Migration(1, "first", ("CREATE TABLE notes (id INTEGER PRIMARY KEY, body TEXT) STRICT",))
TWO = Migration(
    2,
    "rebuilt with a size",
    (
        "CREATE TABLE notes_new (id INTEGER PRIMARY KEY, body TEXT, size INTEGER) STRICT",
        "INSERT INTO notes_new SELECT id, body, length(body) FROM notes",
        "DROP TABLE notes",
        "ALTER TABLE notes_new RENAME TO notes",
    ),
)
BROKEN = Migration(3, "broken", ("DELETE FROM notes", "CREATE TABLE oops (", "SELECT 1"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "companion.db"


def old_database(file: Path) -> None:
    """A database of schema version 1 with two notes."""
    database = Database(file, [ONE])
    database.execute("INSERT INTO notes VALUES (1, 'one'), (2, 'three')")
    database.close()


def filled_store(file: Path, rows: int = 300) -> None:
    with Store(file) as store, store.transaction():
        for number in range(rows):
            store.interactions.add(f"prompt {number}", "reply " * 40)


def test_the_settings_of_the_house_are_in_force(store: Store) -> None:
    wanted = {
        "journal_mode": "wal",
        "foreign_keys": 1,
        "synchronous": 2,  # FULL
        "busy_timeout": 30_000,
        "secure_delete": 1,
        "temp_store": 2,  # memory
    }
    assert {name: store.database.value(f"PRAGMA {name}") for name in wanted} == wanted


def test_every_table_is_strict(store: Store) -> None:
    tables = store.database.rows("PRAGMA table_list")
    ours = {row["name"]: row["strict"] for row in tables if not row["name"].startswith("sqlite_")}
    assert len(ours) == 18
    assert set(ours.values()) == {1}


def test_the_default_place_is_the_data_folder_and_private() -> None:
    from mlx_companion.runtime.paths import data_dir

    with Store() as store:
        assert store.path == data_dir() / "companion.db"
        assert stat.S_IMODE(store.path.stat().st_mode) == 0o600


def test_migrations_keep_the_data_and_back_it_up_first(file: Path) -> None:
    old_database(file)
    database = Database(file, [ONE, TWO])
    assert database.schema_version == 2
    assert [tuple(row) for row in database.rows("SELECT * FROM notes")] == [
        (1, "one", 3),
        (2, "three", 5),
    ]
    names = [row["name"] for row in database.rows("SELECT name FROM schema_versions")]
    assert names == ["first", "rebuilt with a size"]
    assert database.value("PRAGMA foreign_keys") == 1
    database.close()
    (backup,) = list_backups(file)
    assert backup.name.endswith("-v1.db")
    with sqlite3.connect(backup) as old:
        assert old.execute("SELECT * FROM notes").fetchall() == [(1, "one"), (2, "three")]
    old.close()


def test_a_migration_that_another_process_did_meanwhile_is_not_done_again(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old_database(file)
    has_read = threading.Event()

    def read(*arguments: Any) -> int:
        version = schema_version(*arguments)
        has_read.set()
        return version

    monkeypatch.setattr(migrations_module, "schema_version", read)
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    reached: list[int] = []

    def open_it() -> None:
        database = Database(file, [ONE, TWO])
        reached.append(database.schema_version)
        database.close()

    thread = threading.Thread(target=open_it)
    thread.start()
    assert has_read.wait(LONG)  # version 1; then it waits for the write lock
    for statement in TWO.statements:
        other.execute(statement)
    other.execute("INSERT INTO schema_versions VALUES (2, 'by another', 'now')")
    other.execute("COMMIT")
    thread.join()
    assert other.execute("SELECT name FROM schema_versions").fetchall()[1:] == [("by another",)]
    other.close()
    assert reached == [2]
    assert list_backups(file) == []


def test_opening_waits_for_a_reader_of_a_database_without_a_log(file: Path) -> None:
    Database(file, [ONE]).close()
    reader = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    reader.execute("PRAGMA journal_mode = DELETE")
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM notes").fetchall()
    timer = threading.Timer(0.3, lambda: reader.execute("COMMIT"))
    timer.start()
    database = Database(file, [ONE])
    assert database.value("PRAGMA journal_mode") == "wal"
    timer.join()
    reader.close()
    database.close()
    impatient = sqlite3.connect(file, isolation_level=None)
    impatient.execute("PRAGMA journal_mode = DELETE")
    impatient.execute("BEGIN")
    impatient.execute("SELECT * FROM notes").fetchall()
    with pytest.raises(StoreError, match="stayed locked"):
        Database(file, [ONE], busy_seconds=0.05)
    impatient.close()


def test_a_failing_migration_changes_nothing(file: Path) -> None:
    old_database(file)
    with pytest.raises(StoreError, match=r"migration 3 \(broken\).*undone.*backup is at"):
        Database(file, [ONE, TWO, BROKEN])
    # The one before it is kept: each migration is a transaction of its own.
    database = Database(file, [ONE, TWO])
    assert database.value("SELECT count(*) FROM notes") == 2
    database.close()


def test_a_migration_that_orphans_rows_is_undone(file: Path) -> None:
    links = Migration(
        1,
        "links",
        (
            "CREATE TABLE a (id INTEGER PRIMARY KEY) STRICT",
            "CREATE TABLE b (a INTEGER REFERENCES a (id)) STRICT",
            "INSERT INTO a VALUES (1)",
            "INSERT INTO b VALUES (1)",
        ),
    )
    Database(file, [links]).close()
    with pytest.raises(StoreError, match="1 rows would refer to nothing"):
        Database(file, [links, Migration(2, "careless", ("DELETE FROM a",))])
    database = Database(file, [links])
    assert database.value("SELECT count(*) FROM a") == 1
    database.close()


def test_a_newer_database_is_left_alone(file: Path) -> None:
    old_database(file)
    database = Database(file, [ONE, TWO])
    database.execute("PRAGMA journal_mode = DELETE")
    database.close()
    before = file.read_bytes()
    with pytest.raises(StoreError, match=r"schema version 2.*knows only up to 1.*upgrade"):
        Database(file, [ONE])
    assert file.read_bytes() == before


def test_the_first_release_can_be_opened_by_the_present_one(file: Path) -> None:
    Database(file, MIGRATIONS[:1]).close()
    with Store(file) as store:
        assert store.database.schema_version == MIGRATIONS[-1].version
    assert [m.version for m in MIGRATIONS] == list(range(1, len(MIGRATIONS) + 1))


def test_a_database_of_another_program_is_refused(file: Path) -> None:
    connection = sqlite3.connect(file)
    connection.execute("CREATE TABLE bookmarks (url TEXT)")
    connection.close()
    with pytest.raises(StoreError, match=r"another program.*bookmarks"):
        Store(file)


@pytest.mark.parametrize("page", range(1, 12))
def test_flipped_bytes_are_found_on_opening(file: Path, page: int) -> None:
    filled_store(file)
    with Store(file) as store:
        backup = store.backup()
    content = bytearray(file.read_bytes())
    content[page * 4096 : page * 4096 + 64] = bytes(
        byte ^ 0xFF for byte in content[page * 4096 : page * 4096 + 64]
    )
    file.write_bytes(content)
    with pytest.raises(StoreError, match="is damaged") as caught:
        Store(file)
    assert str(file) in str(caught.value)
    assert str(backup) in str(caught.value)
    assert file.read_bytes() == content


def test_a_file_that_is_no_database_is_kept(file: Path) -> None:
    file.write_bytes(b"my diary, which is not a database " * 200)
    with pytest.raises(StoreError, match=r"is damaged.*there is no backup"):
        Store(file)
    assert file.read_bytes().startswith(b"my diary")


def test_a_truncated_file_is_found(file: Path) -> None:
    filled_store(file)
    file.write_bytes(file.read_bytes()[: 5 * 4096])
    with pytest.raises(StoreError, match="is damaged"):
        Store(file)


def test_an_emptied_file_is_a_loss_not_a_new_database(file: Path) -> None:
    filled_store(file)
    with Store(file) as store:
        store.backup()
    file.write_bytes(b"")
    with pytest.raises(StoreError, match=r"0 bytes.*newest backup"):
        Store(file)


def test_large_files_get_the_quick_check(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled_store(file)
    asked: list[str] = []
    from mlx_companion.store import backups

    connection = sqlite3.connect(file)
    connection.set_trace_callback(asked.append)
    backups.check(connection, file)
    monkeypatch.setattr(backups, "FULL_CHECK_BYTES", 4096)
    backups.check(connection, file)
    connection.close()
    assert [line for line in asked if "check" in line] == [
        "PRAGMA integrity_check(3)",
        "PRAGMA quick_check(3)",
    ]


def test_a_backup_can_be_put_in_place_and_the_damaged_file_stays(file: Path) -> None:
    filled_store(file, rows=20)
    with Store(file) as store:
        store.backup()
        store.interactions.add("after the backup", "reply")
    file.write_bytes(b"damage" * 1000)
    aside = restore_backup(file)
    assert aside.read_bytes() == b"damage" * 1000
    with Store(file) as store:
        assert store.interactions.count() == 20
    with pytest.raises(StoreError, match="no backup"):
        restore_backup(file.with_name("other.db"))


def test_only_the_newest_backups_are_kept(store: Store) -> None:
    made = [store.backup() for _ in range(7)]
    assert list_backups(store.path) == made[-5:]
    assert latest_backup(store.path) == made[-1]
    assert {stat.S_IMODE(path.stat().st_mode) for path in made[-5:]} == {0o600}


def test_a_backup_holds_what_is_committed_and_nothing_more(store: Store) -> None:
    store.interactions.add("kept", "reply")
    with store.transaction():
        store.interactions.add("not yet", "reply")
        backup = store.backup()
    # Marked as a plain file, which needs no log beside it (SQLite file format, section 1.3).
    assert backup.read_bytes()[18:20] == b"\x01\x01"
    copy = sqlite3.connect(backup)
    assert copy.execute("SELECT prompt FROM interactions").fetchall() == [("kept",)]
    copy.close()


def test_transactions_nest(store: Store) -> None:
    with store.transaction():
        store.settings.set("outer", 1)
        with pytest.raises(ValueError, match="undo"), store.transaction():
            store.settings.set("inner", 1)
            raise ValueError("undo")
        with store.transaction():
            store.settings.set("second", 1)
    assert store.settings.all() == {"outer": 1, "second": 1}
    with pytest.raises(KeyboardInterrupt), store.transaction():
        store.settings.set("outer", 2)
        with store.transaction():
            store.settings.set("inner", 2)
        raise KeyboardInterrupt
    assert store.settings.all() == {"outer": 1, "second": 1}


def test_a_transaction_of_one_thread_does_not_take_in_another(store: Store) -> None:
    started = threading.Event()

    def write_and_fail() -> None:
        with pytest.raises(ValueError, match="undo"), store.transaction():
            store.settings.set("undone", 1)
            started.set()
            raise ValueError("undo")

    thread = threading.Thread(target=write_and_fail)
    thread.start()
    started.wait()
    store.settings.set("kept", 1)
    thread.join()
    assert store.settings.all() == {"kept": 1}


def test_a_lock_that_is_not_let_go_is_explained(store: Store) -> None:
    with Store(store.path, busy_seconds=0.05) as other, store.transaction():
        store.settings.set("a", 1)
        assert other.settings.all() == {}  # reading goes on meanwhile
        with pytest.raises(StoreError, match="stayed locked by another process"):
            other.settings.set("b", 1)
    assert store.settings.all() == {"a": 1}


def test_a_read_only_database_is_explained(store: Store) -> None:
    store.database.execute("PRAGMA query_only = ON")
    with pytest.raises(StoreError, match="read-only; make the file and its folder writable"):
        store.settings.set("a", 1)


def test_places_that_cannot_hold_a_database(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is a folder"):
        Store(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="cannot create the database"):
        Store(tmp_path / "file" / "companion.db")


def test_values_that_cannot_be_stored_are_explained(store: Store) -> None:
    run = store.runs.start("x")
    with pytest.raises(DataError, match="64 bits"):
        store.runs.log(run.id, 2**63, {"loss": 1.0})
    with pytest.raises(DataError, match="surrogate"):
        store.interactions.add("fine", "\ud800")
    with pytest.raises(DataError, match="cannot be stored"):
        store.interactions.add("fine", object())  # type: ignore[arg-type]
    assert store.interactions.count() == 0


def test_a_closed_store_says_so(store: Store) -> None:
    store.close()
    store.close()
    with pytest.raises(StoreError, match="is closed; open it again"):
        store.interactions.count()


def test_an_old_sqlite_is_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module.sqlite3, "sqlite_version_info", (3, 31, 1))
    with pytest.raises(StoreError, match=r"3\.37 or newer"):
        Store(file)


def test_exclusive_work_is_exclusive(store: Store) -> None:
    script = (
        "import sys; from mlx_companion.store import Store\n"
        "with Store(sys.argv[1]) as store, store.exclusive(): pass"
    )
    command = [sys.executable, "-c", script, str(store.path)]
    with store.exclusive(), store.exclusive("other"):
        with pytest.raises(StoreError, match="'improve' is already running"), store.exclusive():
            pass
        blocked = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "already running" in blocked.stderr
    assert subprocess.run(command, check=False).returncode == 0


def test_a_folder_that_cannot_be_written_is_named(store: Store) -> None:
    backups = store.folder / "backups"
    backups.write_text("in the way")
    with pytest.raises(StoreError, match=f"cannot write {backups}"):
        store.backup()
    with pytest.raises(StoreError, match=r"cannot write.*give a place where it can"):
        export(store, backups / "data.jsonl")
    (store.folder / "companion.db.improve.lock").mkdir()
    with pytest.raises(StoreError, match="Is a directory"), store.exclusive():
        pass


FORK = """
import os, sys, threading
from mlx_companion.errors import StoreError
from mlx_companion.store import Store
store = Store(sys.argv[1])
store.interactions.add("before", "x")
child = os.fork()
if child == 0:
    if sys.platform == "linux":
        inherited = [os.readlink(f"/proc/self/fd/{n}") for n in range(3, 30)
                     if os.path.islink(f"/proc/self/fd/{n}")]
        assert not [name for name in inherited if "companion.db" in name], inherited
    store.interactions.add("in the child", "x")
    os._exit(0 if store.interactions.count() >= 2 else 1)
store.interactions.add("in the parent", "x")
assert os.waitpid(child, 0)[1] == 0
with store.transaction():
    store.settings.set("a", 1)
    child = os.fork()
    if child == 0:
        try:
            store.settings.set("b", 1)
        except StoreError as error:
            os._exit(0 if "forked" in str(error) else 2)
        os._exit(3)
    assert os.waitpid(child, 0)[1] == 0
assert store.settings.all() == {"a": 1}
print(sorted(one.prompt for one in store.interactions.iter()))
"""


def test_a_forked_process_can_go_on_with_the_store(file: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORK, str(file)], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "['before', 'in the child', 'in the parent']", done.stderr


def test_no_space_for_a_new_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(database_module.os, "open", full)
    with pytest.raises(DiskFullError, match="no space left to create"):
        Store(file)
