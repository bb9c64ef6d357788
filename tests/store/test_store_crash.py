"""What survives a `kill -9`, and several processes that write at once."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from test_store_database import ONE, old_database

from mlx_companion.store import NewExample, Store
from mlx_companion.store.database import Database

# Says on standard output what is committed, and only after it is.
WRITER = """
import itertools, sys
from mlx_companion.store import Store
store = Store(sys.argv[1])
print("open", flush=True)
for number in itertools.count():
    said = store.interactions.add(f"prompt {number}", "reply " * (number % 300))
    print("said", said.id, flush=True)
    with store.transaction():
        made = store.versions.create(name=str(number))
        store.versions.activate(made.id, "next")
        store.settings.set("active", made.id)
    print("active", made.id, flush=True)
"""

STATEMENTS = 20_000
# Comes to a stop before one of its statements, when told to.
MIGRATOR = """
import sys, threading
from pathlib import Path
from mlx_companion.store.database import Database
from mlx_companion.store.migrations import Migration
one = Migration(1, "first", ("CREATE TABLE notes (id INTEGER PRIMARY KEY, body TEXT) STRICT",))
class Held(tuple):
    def __iter__(self):
        for number, statement in enumerate(super().__iter__()):
            if [str(number)] == sys.argv[2:]:
                print("held", flush=True)
                threading.Event().wait()
            yield statement
fill = [f"INSERT INTO more VALUES ({n}, '{'x' * 500}')" for n in range(STATEMENTS)]
two = Migration(2, "slow", Held(["CREATE TABLE more (id INTEGER PRIMARY KEY, body TEXT)", *fill]))
if not sys.argv[2:]:
    print("start", flush=True)
Database(Path(sys.argv[1]), [one, two])
print("done", flush=True)
""".replace("STATEMENTS", str(STATEMENTS))

CROWD = """
import sys, threading
from mlx_companion.store import NewExample, Store
store = Store(sys.argv[1])
name, turns = sys.argv[2], int(sys.argv[3])
def work(thread):
    for n in range(turns):
        said = store.interactions.add(f"{name} {thread} {n}", "reply")
        store.feedback.add(said.id, "up")
        with store.transaction():
            store.settings.set("counter", store.settings.get("counter", 0) + 1)
        store.examples.add_many(sys.argv[4], [NewExample(f"shared {n}", "same", thread)])
        store.versions.create(name=name)
        made = store.rounds.begin()
threads = [threading.Thread(target=work, args=(t,)) for t in range(3)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)], stdout=subprocess.PIPE, text=True
    )


def kill_after(
    process: subprocess.Popen[str], lines: int = 1, seconds: float = 0.0
) -> list[list[str]]:
    """Kill -9 after so many lines and `seconds`; what it had said until then."""
    assert process.stdout is not None
    first = [process.stdout.readline() for _ in range(lines)]
    time.sleep(seconds)
    process.kill()
    rest = process.stdout.read()
    process.communicate()
    said = ("".join(first) + rest).splitlines(keepends=True)
    return [line.split() for line in said if line.endswith("\n")]


def test_nothing_acknowledged_is_lost_in_twenty_kills(tmp_path: Path) -> None:
    file = tmp_path / "companion.db"
    chance = random.Random(5)
    said: list[str] = []
    for _ in range(20):
        words = kill_after(start(WRITER, file), chance.randint(1, 40), chance.uniform(0, 0.01))
        said += [word[1] for word in words if word[0] == "said"]
        with Store(file) as store:  # opening checks the file
            store.check()
            kept = {one.id for one in store.interactions.iter()}
            assert kept >= set(said)
            active = store.versions.active()
            history = store.versions.history()
            if active is None:
                assert not history
                continue
            # One transaction: pointer, history, setting and version are of one moment.
            assert history[-1].to_version == active.id == store.settings.get("active")
            assert active.number == len(history) == len(store.versions.all())
            last = [word[1] for word in words if word[0] == "active"][-1:]
            assert active.id >= "".join(last)
    assert len(said) > 20


def test_a_kill_during_a_migration_leaves_the_old_or_the_new_schema(tmp_path: Path) -> None:
    reached = Counter[int]()
    held = [0, 1, STATEMENTS // 3, STATEMENTS]
    for number, stop in enumerate([*held, None, None, None]):
        file = tmp_path / f"{number}.db"
        old_database(file)
        # Those that are not held are killed wherever they are, the last one when it is done.
        stops = [] if stop is None else [stop]
        kill_after(start(MIGRATOR, file, *stops), 2 if number == 6 else 1, 0.01 * (number == 5))
        connection = sqlite3.connect(file)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("SELECT count(*) FROM notes").fetchone() == (2,)
        (version,) = connection.execute("SELECT max(version) FROM schema_versions").fetchone()
        tables = connection.execute("SELECT name FROM sqlite_master WHERE name = 'more'").fetchall()
        assert bool(tables) == (version == 2)
        connection.close()
        if version == 1:
            Database(file, [ONE]).close()
        reached[version] += 1
    assert reached[1] >= len(held)
    assert reached[2] > 0


@pytest.mark.parametrize("processes", [4])
def test_processes_and_threads_write_at_once_without_loss(tmp_path: Path, processes: int) -> None:
    file, turns = tmp_path / "companion.db", 8
    with Store(file) as store:
        shared = store.rounds.begin()
    crowd = [start(CROWD, file, f"p{n}", turns, shared.id) for n in range(processes)]
    for process in crowd:
        process.communicate()
        assert process.returncode == 0
    total = processes * 3 * turns
    with Store(file) as store:
        prompts = {one.prompt for one in store.interactions.iter()}
        assert prompts == {
            f"p{p} {t} {n}" for p in range(processes) for t in range(3) for n in range(turns)
        }
        assert store.feedback.count("up") == total
        assert store.settings.get("counter") == total
        assert [one.number for one in store.versions.all()] == list(range(1, total + 1))
        assert [one.number for one in store.rounds.all()] == list(range(1, total + 2))
        # Every process stored the same samples under the same keys.
        assert store.examples.count(shared.id) == 3 * turns
        assert store.examples.add_many(shared.id, [NewExample("shared 0", "same", 0)])


def test_processes_that_open_a_new_store_at_once_share_it(tmp_path: Path) -> None:
    file = tmp_path / "companion.db"
    script = (
        "import sys; from mlx_companion.store import Store\n"
        "with Store(sys.argv[1]) as store: store.settings.set(sys.argv[2], 1)"
    )
    opening = [start(script, file, n) for n in range(6)]
    for process in opening:
        process.communicate()
        assert process.returncode == 0
    with Store(file) as store:
        assert sorted(store.settings.all()) == [str(n) for n in range(6)]
