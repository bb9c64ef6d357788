"""Bits per byte of four models at the same training FLOPs on the same books.

    python benchmarks/blt_bpb.py --data prose --out runs/bpb --flops 2e14 --jobs 2

A flat byte model, a byte latent transformer with patches at spaces, one with patches by entropy,
and a token model over a BPE vocabulary learnt from the same text. `--data` holds `train/` and
`valid/`, text files (`.txt` or `.txt.gz`) in each. Every model trains in a process of its own and
goes on where it was when the script is started again; `--jobs` of them train side by side, each on
a core of its own. Then all are measured on the held-out book: bits per byte against inference FLOPs
per byte, patches, and bits per byte of the book with typing errors.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import mlx_companion  # noqa: F401  (loads a fast BLAS before MLX)
from benchmarks import bpb_models, bpb_report
from benchmarks.common import ROOT
from mlx_companion.training.callbacks import Callback
from mlx_companion.training.state import StepInfo


class Lines(Callback):
    """One line every `every` steps."""

    def __init__(self, name: str, every: int = 50) -> None:
        self.name, self.every = name, every
        self.began = time.perf_counter()

    def on_step(self, step: StepInfo) -> None:
        """Print it."""
        if step.step % self.every == 0:
            print(
                f"{self.name}: step {step.step}/{step.total_steps}, loss {step.loss:.4f}, "
                f"{step.flops:.3g} FLOPs, {step.seconds:.2f} s a step",
                flush=True,
            )


def main() -> None:
    """Train what is missing, then measure and report."""
    options = _options()
    place = bpb_models.Workplace(options.data, options.out)
    if options.train is not None:
        _train(options.train, place, options)
        return
    if not options.report_only:
        _train_all(place, options)
    bpb_report.report(place, options.flops, save=options.save)


def _train(name: str, place: bpb_models.Workplace, options: argparse.Namespace) -> None:
    if name == "entropy":
        bpb_models.train_entropy_model(place, Lines(name))
    else:
        bpb_models.train(name, place, options.flops, Lines(name), options.batch_bytes)


def _train_all(place: bpb_models.Workplace, options: argparse.Namespace) -> None:
    """The entropy model first, then the others, `--jobs` at a time."""
    # Token and flat models need nothing of the entropy model, so they may run beside it.
    waiting = ["entropy", "token", "blt-entropy", "blt-space", "flat"]
    running: dict[str, tuple[int, subprocess.Popen]] = {}
    cores = list(range(options.jobs))
    while waiting or running:
        for name in [n for n, (_, process) in running.items() if process.poll() is not None]:
            core, process = running.pop(name)
            cores.append(core)
            if process.returncode:
                for _, other in running.values():
                    other.terminate()
                raise SystemExit(f"{name} failed; see {place.out / name}.log")
        while cores and waiting:
            name = next((n for n in waiting if n != "blt-entropy" or "entropy" not in running), "")
            if not name:
                break
            waiting.remove(name)
            core = cores.pop(0)
            running[name] = (core, _start(name, core, place, options))
        time.sleep(1)


def _start(
    name: str, core: int, place: bpb_models.Workplace, options: argparse.Namespace
) -> subprocess.Popen:
    arguments = [f"--data={place.data}", f"--out={place.out}", f"--train={name}"]
    arguments += [f"--flops={options.flops}", f"--batch-bytes={options.batch_bytes}"]
    place.out.mkdir(parents=True, exist_ok=True)
    log = open(place.out / f"{name}.log", "a", encoding="utf-8")  # noqa: SIM115  (the child's)
    process = subprocess.Popen(
        [sys.executable, __file__, *arguments],
        stdout=log,
        stderr=log,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    if options.jobs > 1 and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(process.pid, {core})
    return process


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and valid/")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--flops", type=float, default=2e14, help="training FLOPs of each model")
    parser.add_argument("--batch-bytes", type=int, default=bpb_models.BATCH_BYTES)
    parser.add_argument("--jobs", type=int, default=1, help="trainings side by side")
    parser.add_argument("--report-only", action="store_true", help="measure what is there")
    parser.add_argument("--save", action="store_true", help="keep the result in the repository")
    parser.add_argument("--train", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
