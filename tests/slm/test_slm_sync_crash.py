"""10,000 updates, 8 writers, two processes, random kills: none lost, none twice, order kept.

The oracle is what the writers printed after each acknowledgement, read from their pipes: not a
word of it comes from the database that is judged.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from mlx_companion.slm.sync import ContextSyncManager
from mlx_companion.store import Store

TOTAL, WRITERS, GROUP, PROCESSES = 10_000, 8, 25, 2
PER_WRITER = TOTAL // WRITERS
# Rounds that end with a kill, and how far each writer may go in one of them: all of them together
# leave something to write, so no process can have ended before it is killed.
KILLED, STRETCH = 3, PER_WRITER // 4

# Four writers and one that decides, in each of two processes. A writer goes on where its own
# acknowledgements ended, so the group that was cut off by a kill is queued again, same ids. With a
# stretch to write, the process stays when its writers are at the end of it.
WORKER = """
import sys, threading, time
import mlx_companion
from mlx_companion.slm.sync import ContextSyncManager, SyncConfig
from mlx_companion.store import Store
file, stretch = sys.argv[1], int(sys.argv[2])
per_writer, group = int(sys.argv[3]), int(sys.argv[4])
begun = {name: int(start) for name, start in (one.split("=") for one in sys.argv[5:])}
store = Store(file)
sync = ContextSyncManager(store, SyncConfig(capacity=400))
say, left = threading.Lock(), threading.Semaphore(0)

def write(name, start):
    end = min(start + stretch, per_writer)
    for first in range(start, end, group):
        numbers = range(first, min(first + group, end))
        sync.queue_updates(
            [{"key": f"k.{n % 40}", "value": f"{name} {n}", "confidence": 0.9} for n in numbers],
            source=name, ids=[f"{name}-{n}" for n in numbers], timeout=600)
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
if stretch < per_writer:
    threading.Event().wait()
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

    def killed_after(self, lines: int) -> None:
        """Let them write, and kill them when they have acknowledged `lines` groups."""
        with self._running(STRETCH) as process:
            assert process.stdout is not None
            # Read first, so that the kill falls into the writing and not into the imports.
            told = [process.stdout.readline() for _ in range(lines)]
            process.kill()
            assert all(told)
            self._note("".join(told) + process.stdout.read())
        assert process.returncode == -signal.SIGKILL

    def to_the_end(self) -> None:
        with self._running(PER_WRITER) as process:
            assert process.stdout is not None
            self._note(process.stdout.read())
        assert process.returncode == 0

    @contextmanager
    def _running(self, stretch: int) -> Iterator[subprocess.Popen[str]]:
        begun = [f"{name}={last + 1}" for name, last in self.acknowledged.items()]
        sizes = [str(number) for number in (stretch, PER_WRITER, GROUP)]
        command = [sys.executable, "-c", WORKER, str(self.file), *sizes, *begun]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            hung = threading.Timer(600, process.kill)
            hung.start()
            yield process
            process.wait()
            hung.cancel()

    def _note(self, told: str) -> None:
        for line in told.splitlines(keepends=True):
            name, _, last = line.rstrip("\n").partition(" ")
            # A line that a kill cut short acknowledges nothing.
            if line.endswith("\n") and name in self.acknowledged:
                self.acknowledged[name] = max(self.acknowledged[name], int(last))


def at_once(acts: list[Callable[[], None]]) -> None:
    with ThreadPoolExecutor(len(acts)) as pool:
        for one in [pool.submit(act) for act in acts]:
            one.result()


def test_ten_thousand_updates_survive_random_kills(tmp_path: Path) -> None:
    file, chance = tmp_path / "companion.db", random.Random(20)
    Store(file).close()
    names = [f"w{n}" for n in range(WRITERS)]
    crowds = [Crowd(file, names[n::PROCESSES]) for n in range(PROCESSES)]
    most = len(crowds[0].names) * (STRETCH // GROUP)
    for attempt in range(KILLED + 1):
        if attempt < KILLED:
            lines = [chance.randint(1, most // 2) for _ in crowds]
            at_once(
                [partial(crowd.killed_after, n) for crowd, n in zip(crowds, lines, strict=True)]
            )
            assert not any(crowd.finished for crowd in crowds)
        else:
            at_once([crowd.to_the_end for crowd in crowds])
            assert all(crowd.finished for crowd in crowds)
        with Store(file) as store:  # opening checks the file
            kept = {entry.id for entry in store.context.history()}
            for crowd in crowds:
                for name, last in crowd.acknowledged.items():
                    assert kept >= {f"{name}-{n}" for n in range(last + 1)}
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
