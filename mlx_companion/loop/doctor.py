"""What `mlx-companion doctor` finds out: the machine, its speed, and the state of the data.

Why: "it is slow" and "it does not start" have a dozen causes (no fast BLAS, a full disk, a
damaged database, an adapter that was deleted, a kill switch that is still thrown), and a person
should not have to know them. It looks at the machine and at the store together. `examine` gives
everything as plain values, ready for JSON; its `problems` are empty when all is well.
"""

from __future__ import annotations

import platform
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

import mlx_companion
from mlx_companion.errors import AdapterError, CompanionError
from mlx_companion.loop import formats
from mlx_companion.loop.console import pairs
from mlx_companion.loop.switch import stop_file
from mlx_companion.runtime import device, hardware
from mlx_companion.runtime.blas import load_blas, measure_gflops
from mlx_companion.runtime.paths import cache_dir, data_dir
from mlx_companion.store import Store
from mlx_companion.store.store import FILE_NAME

__all__ = ["contents", "examine", "print_examination"]

_PACKAGES = (
    "mlx", "mlx-lm", "transformers", "tokenizers", "huggingface-hub", "safetensors", "numpy",
    "scipy", "psutil", "rich", "typer",
)  # fmt: skip
# A round writes checkpoints and adapters of this order.
_LEAST_FREE_MB = 1000.0
_SLOW_GFLOPS = 20.0


def examine() -> dict[str, Any]:
    """Look at the machine, the package and the data; takes about a second.

    Returns:
        Plain values. "problems" holds one sentence for each thing that is wrong.
    """
    machine = hardware.detect()
    database, problems = _database(data_dir() / FILE_NAME)
    found = {
        "version": mlx_companion.__version__,
        "python": platform.python_version(),
        "hardware": asdict(machine),
        "settings": asdict(hardware.recommend(machine)),
        "device": asdict(device.device_facts()),
        "blas": asdict(load_blas()) | {"matmul_gflops": round(measure_gflops(), 1)},
        "folders": {"data": _folder(data_dir()), "cache": _folder(cache_dir())},
        "stop_file": stop_file().exists(),
        "database": database,
        "packages": {name: device.version(name) for name in _PACKAGES},
    }
    return found | {"problems": [*_machine_problems(found), *problems]}


def contents(store: Store) -> dict[str, Any]:
    """What a store holds, in numbers."""
    active, unfinished = store.versions.active(), store.rounds.unfinished()
    return {
        "interactions": store.interactions.count(),
        "good": store.feedback.count("up"),
        "bad": store.feedback.count("down"),
        "edited": store.feedback.count("edit"),
        "samples": store.examples.count(),
        "rounds": len(store.rounds.all()),
        "unfinished_round": unfinished.number if unfinished else None,
        "versions": len(store.versions.all()),
        "active_version": active.id if active else None,
        "disk_mb": round(_size_mb(store.folder), 1),
    }


def print_examination(console: Console, found: dict[str, Any]) -> None:
    """Print what `examine` found; what is unknown is left out."""
    for title, rows in _sections(found).items():
        console.print(Text(title, style="bold"))
        console.print(pairs({name: value for name, value in rows.items() if value is not None}))
    for problem in found["problems"]:
        console.print(Text(problem, style="red"))
    if not found["problems"]:
        console.print(Text("No problem was found.", style="green"))


def _sections(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    machine, settings, blas = found["hardware"], found["settings"], found["blas"]
    battery = machine["battery"]
    return {
        "Machine": {
            "system": machine["os"],
            "processor": machine["chip"],
            "cores": machine["cores"],
            "memory": formats.megabytes(machine["memory_mb"]),
            "GPU": machine["gpu"] or "none that MLX can use",
            "battery": battery and f"{battery['percent']:.0f} %",
        },
        "Speed": {
            "MLX runs on": "the GPU" if found["device"]["kind"] == "gpu" else "the CPU",
            "matrix product": f"{blas['matmul_gflops']:,.0f} GFLOP/s (float32)",
            "BLAS": blas["message"],
        },
        "Settings that this implies": {
            "numbers": settings["dtype"],
            "expand 4-bit weights": settings["dequantize"],
            "tokens per batch": settings["batch_tokens"],
            "replies at once": settings["generation_rows"],
            "memory ceiling": formats.megabytes(settings["memory_limit_mb"]),
            "why": settings["why"],
        },
        "Folders": {
            name: f"{folder['path']} ({formats.megabytes(folder['free_mb'])} free)"
            for name, folder in found["folders"].items()
        },
        "Database": found["database"],
        "Packages": {
            "mlx-companion": found["version"],
            "Python": found["python"],
            **found["packages"],
        },
    }


def _machine_problems(found: dict[str, Any]) -> list[str]:
    problems, blas = [], found["blas"]
    if blas["status"] in ("missing", "late"):
        problems.append(blas["message"])
    elif found["device"]["kind"] == "cpu" and blas["matmul_gflops"] < _SLOW_GFLOPS:
        problems.append(
            f"matrix products run at {blas['matmul_gflops']} GFLOP/s, which is slow even for a "
            "CPU; is the machine busy, or the fast BLAS switched off?"
        )
    problems += [
        f"the {name} folder {folder['path']} has only {folder['free_mb']:.0f} MB free; "
        f"a round needs about {_LEAST_FREE_MB:.0f}"
        for name, folder in found["folders"].items()
        if folder["free_mb"] < _LEAST_FREE_MB
    ]
    if found["stop_file"]:
        problems.append("the kill switch is thrown; `mlx-companion resume` takes it back")
    return problems


def _folder(path: Path) -> dict[str, Any]:
    return {"path": str(path), "free_mb": round(shutil.disk_usage(path).free / 1e6)}


def _database(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The state of the database, without making one where there is none; and what is wrong."""
    state: dict[str, Any] = {"path": str(path), "exists": path.exists(), "intact": None}
    if not path.exists():
        return state, []
    try:
        with Store(path) as store:
            store.check()
            state |= {"intact": True} | contents(store)
            if state["active_version"] is not None:
                store.versions.verify(state["active_version"])
    except AdapterError as error:
        return state, [str(error)]
    except CompanionError as error:
        return state | {"intact": False}, [str(error)]
    return state, []


def _size_mb(folder: Path) -> float:
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return sum(path.stat().st_size for path in files) / 1e6
