"""What the event loop's own thread executes in a fresh process: no module is imported on it.

An import takes up to seconds of CPU, wherever it is asked for; a first message has most of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent

WATCH = """
import asyncio, json, sys, threading

class Watch:
    seen = []
    def find_spec(self, name, path=None, target=None):
        if threading.current_thread() is threading.main_thread():
            self.seen.append(name)
        return None

def watched(work):
    async def run():
        sys.meta_path.insert(0, Watch())
        try:
            return await work()
        finally:
            del sys.meta_path[0]
    asyncio.run(run())
    print(json.dumps(Watch.seen))
"""
CHAT = """
import companion_world as world
from mlx_companion.store import Store

with Store(sys.argv[1]) as store, world.companion(store) as companion:
    watched(lambda: companion.chat("hello, call me Max, no emoji today"))
"""
MENTION = """
async def work():
    import mlx_companion as mc
    before = set(sys.modules)
    mc.Companion
    added = {name.partition(".")[0] for name in set(sys.modules) - before}
    assert added <= {"mlx_companion", *sys.stdlib_module_names}, added
    assert await asyncio.to_thread(lambda: mc.Companion.open.__name__) == "open"

watched(work)
"""
OPEN = """
from tiny import tiny_llama
from pathlib import Path
import mlx_companion as mc
mc.Companion
folder = str(tiny_llama(Path(sys.argv[1]).parent / "model"))

async def work():
    companion = await asyncio.to_thread(
        lambda: mc.Companion.open(store=sys.argv[1], model=folder)
    )
    companion.learned()
    await asyncio.to_thread(companion.close)

watched(work)
"""
MODULES = """
from slm_stand_ins import PATIENT
from mlx_companion.runtime.config import load_config
from mlx_companion.slm import SLMConfig, SLMOrchestrator

orchestrator = SLMOrchestrator(load_config(SLMConfig, overrides=PATIENT))

async def work():
    await orchestrator.start(["context_tracker", "personality_guard"])
    report = await orchestrator.run_parallel("ngl it is fire", ["context_tracker"])
    assert report.result("context_tracker") is not None, report
    await orchestrator.run_sequential({"personality_guard": {"text": "Great!!!"}})
    orchestrator.status()

watched(work)
"""
LATE = """
async def work():
    import wave

watched(work)
"""


def imported(script: str, database: Path) -> list[str]:
    paths = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    done = subprocess.run(
        [sys.executable, "-c", WATCH + script, str(database)],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_naming_the_companion_imports_no_other_package(tmp_path: Path) -> None:
    seen = imported(MENTION, tmp_path / "companion.db")
    assert "mlx_companion.loop.companion" in seen
    assert "mlx_companion.loop.modules" not in seen


@pytest.mark.parametrize(
    "script", [CHAT, OPEN, MODULES], ids=["companion", "opened", "orchestrator"]
)
def test_the_loops_thread_imports_nothing(script: str, tmp_path: Path) -> None:
    assert imported(script, tmp_path / "companion.db") == []


def test_an_import_on_it_would_be_seen(tmp_path: Path) -> None:
    assert "wave" in imported(LATE, tmp_path / "companion.db")
