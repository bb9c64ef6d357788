"""What the benchmarks share: facts about the machine, alternating runs in fresh processes, output.

Every benchmark prints the machine and the versions, then a table for people, then one JSON object
on the last line of standard output.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlx_companion.runtime.device import environment
from mlx_companion.runtime.hardware import detect

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"


def machine() -> dict[str, Any]:
    """Machine, versions, commit and load, JSON-ready."""
    hardware = detect()
    return {
        **environment(),
        "chip": hardware.chip,
        "cores": hardware.cores,
        "memory_mb": round(hardware.memory_mb),
        "load": [round(value, 1) for value in os.getloadavg()],
        "commit": _commit(),
    }


def host_kind() -> str:
    """A short name for a kind of machine, for file names: "linux-x86_64-cpu-2-cores"."""
    hardware = detect()
    system, chip = platform.system().lower(), platform.machine()
    return f"{system}-{chip}-{hardware.gpu_kind or 'cpu'}-{hardware.cores}-cores"


def in_fresh_process(
    script: str | Path,
    arguments: Sequence[str],
    env: Mapping[str, str] | None = None,
    python: str = sys.executable,
) -> dict[str, Any]:
    """Run a Python script and parse the JSON on its last line; its peak memory is its own.

    Args:
        script: what to run.
        arguments: its command line.
        env: variables on top of this process's.
        python: the interpreter, where a peer lives in an environment of its own.

    Raises:
        RuntimeError: the script failed; the message holds the end of its errors.
    """
    done = subprocess.run(
        [python, str(script), *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{script} {' '.join(arguments)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def alternate(
    runs: Mapping[str, Callable[[], dict[str, Any]]], repeats: int
) -> dict[str, list[dict[str, Any]]]:
    """Run each contestant in turn, `repeats` times, so that a busy minute hits all of them."""
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in runs}
    for number in range(repeats):
        # Every other round in reverse order: nobody is always the one after a pause.
        names = list(runs) if number % 2 == 0 else list(runs)[::-1]
        for name in names:
            results[name].append(runs[name]())
            print(f"  round {number + 1}/{repeats}  {name}: done", file=sys.stderr, flush=True)
    return results


def median(rows: Sequence[Mapping[str, Any]], key: str) -> float:
    """Median of one figure over the repeats."""
    return statistics.median(row[key] for row in rows)


def ratios(
    ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]], key: str
) -> list[float]:
    """Ours over theirs, round by round."""
    return [a[key] / b[key] for a, b in zip(ours, theirs, strict=True)]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def publish(name: str, result: Mapping[str, Any], text: str, save: bool) -> None:
    """Print the text and, on the last line, the JSON; keep both in `benchmarks/results`."""
    print(text)
    if save:
        RESULTS.mkdir(exist_ok=True)
        stem = RESULTS / f"{name}-{host_kind()}"
        stem.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
        stem.with_suffix(".md").write_text(text + "\n")
        print(f"kept in {stem.relative_to(ROOT)}.json and .md")
    print(json.dumps(result))


def machine_text(facts: Mapping[str, Any]) -> str:
    """The machine in two lines."""
    versions = ", ".join(f"{k} {v}" for k, v in facts["versions"].items() if v)
    return (
        f"{facts['chip']}, {facts['cores']} cores, {facts['memory_mb'] / 1000:.0f} GB, "
        f"{facts['system']}, load {facts['load'][0]}\n"
        f"Python {facts['python']}, {versions}, commit {facts['commit']}"
    )


def _commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    return done.stdout.strip() or "unknown"
