"""10,000 updates, 8 writers, two processes, random kills: none lost, none twice, order kept.

The oracle is what the writers printed after each acknowledgement, read from their pipes: not a
word of it comes from the database that is judged.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

from mlx_companion.slm.sync import ContextSyncManager
from mlx_companion.store import Store

TOTAL, WRITERS, GROUP, PROCESSES = 10_000, 8, 25, 2
PER_WRITER = TOTAL // WRITERS

# Four writers and one that decides, in each of two processes. A writer goes on where its own
# acknowledgements ended, so the group that was cut off by a kill is queued again, same ids.
WORKER = """
import sys, threading, time
import mlx_companion
from mlx_companion.slm.sync import ContextSyncManager, SyncConfig
from mlx_companion.store import Store
file, per_writer, group = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
begun = {name: int(start) for name, start in (one.split("=") for one in sys.argv[4:])}
store = Store(file)
sync = ContextSyncManager(store, SyncConfig(capacity=400))
say, left = threading.Lock(), threading.Semaphore(0)

def write(name, start):
    for first in range(start, per_writer, group):
        numbers = range(first, min(first + group, per_writer))
        sync.queue_updates(
            [{"key": f"k.{n % 40}", "value": f"{name} {n}", "confidence": 0.9} for n in numbers],
            source=name, ids=[f"{name}-{n}" for n in numbers], timeout=60)
        with say:
            sys.stdout.write(f"{name} {numbers[-1]}\\n")
            sys.stdout.flush()
    left.release()

def decide():
    while True:
        sync.process_queue()
        time.sleep(0.001)

threading.Thread(target=decide, daemon=True).start()
for name, start in begun.items():
    threading.Thread(target=write, args=(name, start)).start()
for _ in begun:
    left.acquire()
sync.process_queue()
print("end", flush=True)
import os
os._exit(0)
"""


class Crowd:
    """One process of writers; knows what they acknowledged, also after it was killed."""

    def __init__(self, file: Path, names: list[str]) -> None:
        self.file, self.names = file, names
        self.acknowledged = dict.fromkeys(names, -1)

    @property
    def finished(self) -> bool:
        return all(last == PER_WRITER - 1 for last in self.acknowledged.values())

    def start(self) -> subprocess.Popen[str]:
        begun = [f"{name}={last + 1}" for name, last in self.acknowledged.items()]
        command = [sys.executable, "-c", WORKER, str(self.file), str(PER_WRITER), str(GROUP)]
        return subprocess.Popen([*command, *begun], stdout=subprocess.PIPE, text=True)

    def collect(self, process: subprocess.Popen[str], first: str) -> None:
        told, _ = process.communicate(timeout=100)
        for line in (first + told).splitlines(keepends=True):
            name, _, last = line.rstrip("\n").partition(" ")
            # A line that a kill cut short acknowledges nothing.
            if line.endswith("\n") and name in self.acknowledged:
                self.acknowledged[name] = max(self.acknowledged[name], int(last))


def test_ten_thousand_updates_survive_random_kills(tmp_path: Path) -> None:
    file, chance = tmp_path / "companion.db", random.Random(20)
    Store(file).close()
    names = [f"w{n}" for n in range(WRITERS)]
    crowds = [Crowd(file, names[n::PROCESSES]) for n in range(PROCESSES)]
    kills = 0
    for attempt in range(20):
        running = [(crowd, crowd.start()) for crowd in crowds if not crowd.finished]
        for crowd, process in running:
            first = ""
            if attempt < 3:
                # Waited for, so that a kill falls into the writing and not into the imports.
                assert process.stdout is not None
                first = process.stdout.readline()
                time.sleep(chance.uniform(0.0, 0.25))
                kills += process.poll() is None
                process.kill()
            crowd.collect(process, first)
        with Store(file) as store:  # opening checks the file
            kept = {entry.id for entry in store.context.history()}
            for crowd in crowds:
                for name, last in crowd.acknowledged.items():
                    assert kept >= {f"{name}-{n}" for n in range(last + 1)}
        if all(crowd.finished for crowd in crowds):
            break
    assert kills >= 3
    with Store(file) as store:
        sync = ContextSyncManager(store)
        sync.process_queue()
        store.check()
        entries = store.context.history()
        assert len(entries) == TOTAL == len({entry.id for entry in entries})
        assert {entry.status for entry in entries} == {"applied"}
        by_source = defaultdict(list)
        for entry in sorted(entries, key=lambda one: one.position):
            by_source[entry.source].append(int(entry.id.partition("-")[2]))
        assert by_source == {name: list(range(PER_WRITER)) for name in names}
        # What holds for each key is the strongest of the journal, found without the database.
        best = {}
        for entry in entries:
            rank = (entry.event_at, entry.position)
            if rank > best.get(entry.key, (("", 0), None))[0]:
                best[entry.key] = (rank, entry.value)
        assert sync.get_latest_context() == {key: value for key, (_, value) in best.items()}
