"""Every op of `mlx_companion.kernels` beside the same work composed of MLX's own operations.

    python benchmarks/kernels.py                    # all ops, a few minutes
    python benchmarks/kernels.py hash_embed         # some
    python benchmarks/kernels.py --quick            # the smallest sizes, one round

Both ways compute the value and, where the op has them, gradients, on the default device. First
their results are compared; of an op with a red check nothing else is printed, and the exit code is
1. Then each way runs in processes of its own, in turns: the time is the median over rounds of the
median run, the memory is the peak above the inputs, as MLX counts it. Kept results of ops that are
not run stay.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import common

OPS = (
    "patch_pool",
    "hash_embed",
    "patch_cross_attention",
    "byte_entropy",
    "lora_bgmv",
    "linear_cross_entropy",
)
WAYS = ("naive", "ours")
# A process measures for about so long, and at least so many times.
SECONDS, TIMES = 1.5, 3
# Short runs are timed so many seconds' worth of them at once: a timer and a thread's waking cost
# microseconds.
TOGETHER = 2e-3


def main() -> None:
    """Run the benchmark, or one part of it (`--worker`, used by the benchmark itself)."""
    options = _arguments().parse_args()
    if options.worker:
        print(json.dumps(_work(options.worker, options.ops[0], options.case, options.quick)))
        return
    red, rows = [], []
    for op in options.ops:
        checks = _in_process("check", op, 0, options.quick)
        bad = [found for found in checks["cases"] if not found["ok"]]
        if bad:
            red.append(op)
            print(f"{op}: the check is red ({bad[0]['problem']}); nothing is measured")
            continue
        rows += _measured(op, checks["cases"], 1 if options.quick else options.repeats, options)
    facts = common.machine()
    rows = _with_kept([row | {"commit": facts["commit"]} for row in rows], options)
    result = {"machine": facts, "rows": rows, "red": red}
    common.publish("kernels", result, _text(facts, rows), options.save and not options.quick)
    sys.exit(1 if red else 0)


# --- one process ---------------------------------------------------------------------------------


def _work(way: str, op: str, index: int, quick: bool) -> dict[str, Any]:
    cases = _cases(op, quick)
    if way == "check":
        return {"cases": [_checked(case()) for case in cases]}
    return _timed(getattr(cases[index](), way))


def _cases(op: str, quick: bool) -> list[Callable[[], Any]]:
    """Makers of cases, so that the inputs of one at a time are in memory."""
    import mlx_companion  # noqa: F401  (loads a fast BLAS before MLX)

    module = import_module(f"benchmarks.kernel_cases.{op}")
    count = len(module.cases(quick))
    return [lambda i=i: module.cases(quick)[i] for i in range(count)]


def _checked(case: Any) -> dict[str, Any]:
    """Whether the two ways agree."""
    problem = ""
    for number, (a, b) in enumerate(zip(case.naive(), case.ours(), strict=True)):
        a, b = (np.array(x).astype(np.float64) for x in (a, b))
        if a.shape != b.shape:
            problem = f"{case.label}: result {number} is {b.shape}, expected {a.shape}"
            break
        difference = float(np.abs(a - b).max()) if a.size else 0.0
        scale = max(1e-6, float(np.abs(a).max())) if a.size else 1.0
        # Written so that NaN counts as a difference.
        if not difference <= case.tolerance * scale:
            problem = f"{case.label}: result {number} differs by {difference / scale:.1e}"
            break
    return {
        "label": case.label,
        "ok": not problem,
        "problem": problem,
        "memory_aim": case.memory_aim,
    }


def _timed(work: Callable[[], Sequence[Any]]) -> dict[str, Any]:
    """Median time of a run (ms) and its peak memory (MB)."""
    import mlx.core as mx

    mx.eval(*work())
    mx.clear_cache()
    held = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(*work())
    peak = mx.get_peak_memory() - held
    start = time.perf_counter()
    mx.eval(*work())
    runs = max(1, int(TOGETHER / (time.perf_counter() - start)))
    times: list[float] = []
    begun = time.perf_counter()
    while len(times) < TIMES or time.perf_counter() - begun < SECONDS:
        start = time.perf_counter()
        for _ in range(runs):
            mx.eval(*work())
        times.append((time.perf_counter() - start) / runs)
    return {"ms": 1e3 * statistics.median(times), "mb": peak / 1e6}


# --- all of them ---------------------------------------------------------------------------------


def _in_process(way: str, op: str, index: int, quick: bool) -> dict[str, Any]:
    arguments = ["--worker", way, op, "--case", str(index), *(["--quick"] if quick else [])]
    return common.in_fresh_process(__file__, arguments)


def _measured(
    op: str, cases: list[dict[str, Any]], repeats: int, options: argparse.Namespace
) -> list[dict[str, Any]]:
    rows = []
    for index, case in enumerate(cases):
        runs = {
            way: lambda way=way, index=index: _in_process(way, op, index, options.quick)
            for way in WAYS
        }
        print(f"{op}  {case['label']}", file=sys.stderr)
        rounds = common.alternate(runs, repeats)
        row: dict[str, Any] = {"op": op, "label": case["label"], "memory_aim": case["memory_aim"]}
        for way in WAYS:
            row[f"{way}_ms"] = common.median(rounds[way], "ms")
            row[f"{way}_mb"] = common.median(rounds[way], "mb")
        row["times_faster"] = statistics.median(
            common.ratios(rounds["naive"], rounds["ours"], "ms")
        )
        row["times_less_memory"] = row["naive_mb"] / max(row["ours_mb"], 1e-3)
        rows.append(row)
    return rows


def _with_kept(rows: list[dict[str, Any]], options: argparse.Namespace) -> list[dict[str, Any]]:
    """With the kept rows of ops that were not run now; each row names its commit."""
    path = common.RESULTS / f"kernels-{common.host_kind()}.json"
    if not options.save or options.quick or not path.is_file():
        return rows
    kept = [row for row in json.loads(path.read_text())["rows"] if row["op"] not in options.ops]
    return sorted([*rows, *kept], key=lambda row: OPS.index(row["op"]))


def _text(facts: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    lines = [
        [
            row["op"],
            row["label"],
            _figure(row["naive_ms"]),
            _figure(row["ours_ms"]),
            f"{row['times_faster']:.2f}",
            _figure(row["naive_mb"]),
            _figure(row["ours_mb"]),
            f"{row['times_less_memory']:.1f}" + _aim(row),
        ]
        for row in rows
    ]
    header = ["op", "size", "naive ms", "ours ms", "times faster"]
    header += ["naive MB", "ours MB", "times less memory"]
    slower = [row for row in rows if row["times_faster"] < 1]
    verdict = (
        "No op is slower than the naive composition."
        if not slower
        else "Slower than the naive composition: "
        + "; ".join(f"{row['op']} {row['label']} ({row['times_faster']:.2f})" for row in slower)
    )
    return f"{common.machine_text(facts)}\n\n{common.table(header, lines)}\n\n{verdict}"


def _figure(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _aim(row: dict[str, Any]) -> str:
    if row["memory_aim"] is None:
        return ""
    return f" (aim {row['memory_aim']:g}: {'met' if _met(row) else 'missed'})"


def _met(row: dict[str, Any]) -> bool:
    return row["times_less_memory"] >= row["memory_aim"]


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="The ops beside compositions of MLX's own.")
    parser.add_argument("ops", nargs="*", default=list(OPS), help=f"some of {', '.join(OPS)}")
    parser.add_argument("--repeats", type=int, default=3, help="rounds")
    parser.add_argument("--quick", action="store_true", help="smallest sizes, one round, not kept")
    parser.add_argument("--no-save", dest="save", action="store_false", help="keep no results")
    parser.add_argument("--worker", choices=("check", *WAYS), help=argparse.SUPPRESS)
    parser.add_argument("--case", type=int, default=0, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
