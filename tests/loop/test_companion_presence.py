"""A running companion is seen from another process, and not when it has gone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import companion_world as world
import pytest

from mlx_companion.errors import StoreError
from mlx_companion.loop import presence
from mlx_companion.loop.presence import running
from mlx_companion.store import Store

SECRET = "Maximilian-of-the-fjord"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "c.db") as opened:
        yield opened


def test_the_modules_are_seen_after_each_reply(store: Store) -> None:
    assert running(store) is None
    with world.companion(store) as companion:
        assert running(store) is None
        for count in (1, 2):
            companion.chat_sync(f"hello, call me {SECRET}")
            seen = running(store)
            assert seen is not None
            assert (seen.pid, seen.alive, seen.version) == (os.getpid(), True, "v0001")
            assert seen.memory_mb > 1
            modules = {one.module: one for one in seen.modules}
            assert set(modules) == set(world.WORK)
            assert all(one.counts == {"ok": count} for one in modules.values())
            last = modules["drift_monitor"].last
            assert last is not None
            assert (last.status, last.result) == ("ok", None)
        text = json.dumps(store.module_states.get("companion", "running"))
        assert SECRET not in text
    assert running(store) is None


def test_all_four_leave_traffic_for_shadow_runs(store: Store) -> None:
    with world.companion(store) as companion:
        for _ in range(3):
            companion.chat_sync("hello")
    assert {name: len(store.traffic.recent(name)) for name in world.WORK} == {
        name: 3 for name in world.WORK
    }
    (item, *_) = (one.input for one in store.traffic.recent("drift_monitor"))
    assert (item["responses"], item["messages"]) == (["You said: hello."], ["hello"])


def test_faults_are_seen_and_forgotten(store: Store) -> None:
    def fails(item: Any) -> Any:
        raise RuntimeError(SECRET)

    with world.companion(store, work={"drift_monitor": fails}) as companion:
        companion.chat_sync("hello")
        seen = running(store)
        assert seen is not None
        (drift,) = (one for one in seen.modules if one.module == "drift_monitor")
        assert drift.last is not None
        assert SECRET in str(drift.last.error)
        companion.forget()
        assert running(store) is None
    assert not any(
        SECRET.encode() in file.read_bytes() for file in store.folder.iterdir() if file.is_file()
    )


def test_a_picture_that_cannot_be_left_does_not_cost_the_reply(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise StoreError("read-only")

    with world.companion(store) as companion:
        monkeypatch.setattr(companion._presence, "tell", broken)
        reply = companion.chat_sync("hello")
        assert reply.text == "You said: hello."
        assert "read-only" in reply.trace.faults[0]


TALKING = """
import sys, threading
sys.path[:0] = sys.argv[2:]
import companion_world as world
from mlx_companion.store import Store
store = Store(sys.argv[1])
companion = world.companion(store)
companion.chat_sync("hello")
print("said", flush=True)
threading.Event().wait()
"""


def test_a_companion_that_was_killed_is_seen_as_gone(store: Store) -> None:
    command = [sys.executable, "-c", TALKING, str(store.path), str(Path(world.__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "said\n"
        seen = running(store)
        assert seen is not None
        assert (seen.pid, seen.alive) == (process.pid, True)
        # Our own companion on the same store does not take the other's picture back.
        with world.companion(store):
            pass
        assert running(store) is not None
        process.kill()
    assert process.returncode == -signal.SIGKILL
    gone = running(store)
    assert gone is not None
    assert (gone.alive, gone.memory_mb) == (False, 0.0)


@pytest.mark.parametrize("value", [None, {}, 7, {"pid": "x"}, {"pid": 1, "began": 0, "modules": 3}])
def test_what_is_no_picture_is_nobody(store: Store, value: Any) -> None:
    store.module_states.set(presence._MODULE, value, presence._NAME)
    assert running(store) is None
