"""Quantization against mlx-lm's own, on the default model, at equal bits per weight.

    python benchmarks/quant.py --data data                       # 4.5 and 3.5 bits per weight
    python benchmarks/quant.py --data data --table               # levels and methods, for the docs
    python benchmarks/quant.py --data data --only rtn,ours --no-save

Each contestant runs in a process of its own, with the same calibration text (mlx-lm's AWQ with the
first 2,048 tokens of it: its search takes most of an hour for all of it on two cores, and its
clipping looks at 512 tokens anyway), and leaves a model
folder, which is read back and compared with the original on text that no contestant has seen. Bits
per weight are counted alike: every tensor of the file, embedding, scales and biases included. A row
that is there already (`--out`) is not run again.

The aim: a KL divergence of at most 0.7 times that of the best of mlx-lm's rtn, awq and gptq.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import common

AIM = 0.7
WINDOW = 256
AWQ_TOKENS = 2048
# Bits and group size of linear layers and of the embedding, by budget.
SETTINGS: dict[str, dict[str, tuple[int, int, int, int]]] = {
    "4.5": {name: (4, 64, 4, 64) for name in ("rtn", "awq", "gptq")},
    "3.5": {
        "rtn": (3, 64, 3, 64),
        "awq": (3, 64, 3, 64),
        "gptq": (2, 64, 6, 64),
        "gptq-mended": (3, 64, 3, 64),
    },
}
LEVELS = [("q8", "rtn"), ("q6", "rtn"), ("q4", "rtn"), ("mxfp4", "rtn"), ("nvfp4", "rtn"),
          ("q3", "rtn"), ("q4", "auto"), ("q3", "auto")]  # fmt: skip
# Of the table of levels; the contest takes all.
TABLE_TOKENS = 4096


def main() -> None:
    """Run and report."""
    options = _arguments().parse_args()
    if options.worker:
        print(json.dumps(_work(options)))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    jobs = _jobs(options)
    rows = [_row(options, *job) for job in jobs]
    name = "quant_levels" if options.table else "quant"
    result = {"machine": common.machine(), "model": options.model, "rows": rows}
    if not options.table:
        result |= {"aim": AIM, "ratios": _ratios(rows)}
    common.publish(name, result, _text(result), not options.no_save)


def _jobs(options: argparse.Namespace) -> list[tuple[str, str]]:
    if options.table:
        return list(LEVELS)
    only = options.only.split(",") if options.only else None
    jobs = [
        (bpw, name)
        for bpw in options.bpw.split(",")
        for name in (*SETTINGS[bpw], "ours")
        if only is None or name in only
    ]
    return jobs


def _row(options: argparse.Namespace, level: str, method: str) -> dict[str, Any]:
    kept = options.out / f"{level}-{method}.json"
    if not kept.exists():
        arguments = [f"--data={options.data}", f"--out={options.out}", f"--model={options.model}"]
        found = common.in_fresh_process(__file__, [*arguments, f"--worker={level},{method}"])
        kept.write_text(json.dumps(found) + "\n")
        print(f"  {level} {method}: {found['kl']:.4f}", file=sys.stderr, flush=True)
    found = json.loads(kept.read_text())
    return found


def _work(options: argparse.Namespace) -> dict[str, Any]:
    """One contestant, in a process of its own."""
    from benchmarks import quant_text
    from mlx_companion.models import load
    from mlx_companion.quant import bits_per_weight, compare

    level, method = options.worker.split(",")
    lm = load(options.model)
    given = quant_text.calibration(options.data, lm.tokenizer)
    folder = options.out / f"{level}-{method}"
    start, cpu = time.monotonic(), time.process_time()
    extra = _ours(lm, level, method, given, folder) if _is_ours(level, method) else {}
    if not extra:
        # mlx-lm changes the model that it is given.
        _peer(load(options.model), level, method, given, folder)
    spent = {"seconds": time.monotonic() - start, "cpu_seconds": time.process_time() - cpu}
    unseen = quant_text.evaluation(options.data, lm.tokenizer)
    tokens = 1 << 20 if level in SETTINGS else TABLE_TOKENS
    found = compare(lm, load(folder), unseen, window=WINDOW, tokens=tokens)
    packed = load(folder, dequantize=False)
    size = sum(file.stat().st_size for file in folder.glob("model*.safetensors"))
    return {
        "level": level,
        "method": method,
        "bits_per_weight": bits_per_weight(packed.model),
        "bytes": size,
        "kl": found.divergence,
        "agreement": found.agreement,
        "perplexity": found.perplexity,
        "predictions": found.count,
        **spent,
        **extra,
    }


def _is_ours(level: str, method: str) -> bool:
    return method == "ours" or level not in SETTINGS


def _ours(lm: Any, level: str, method: str, texts: list[str], folder: Path) -> dict[str, Any]:
    from mlx_companion.quant import quantize

    name = f"{level}bpw" if method == "ours" else level
    found = quantize(
        lm,
        name,
        method="auto" if method == "ours" else method,  # type: ignore[arg-type]
        calibration=texts,
        calibration_tokens=1 << 20 if method == "ours" else TABLE_TOKENS,
        evaluation_tokens=WINDOW,
        window=WINDOW,
    )
    found.save(folder)
    kinds = {own.packing for own in found.report.layers}
    shares = {
        kind: sum(own.weights for own in found.report.layers if own.packing == kind)
        for kind in sorted(kinds)
    }
    unchanged = sum(own.weights for own in found.report.layers if own.error == 0)
    return {
        "recipe": found.report.recipe,
        "tried": dict(found.report.tried),
        "weights_by_packing": shares,
        "weights_unchanged": unchanged,
    }


def _peer(lm: Any, level: str, method: str, texts: list[str], folder: Path) -> None:
    import mlx.core as mx
    import numpy as np

    from benchmarks.quant_peers import PEERS, Setting, keep

    tokens = [token for text in texts for token in lm.tokenizer.encode(text)]
    rows = len(tokens) // WINDOW
    windows = np.array(tokens[: rows * WINDOW]).reshape(rows, WINDOW)
    windows = windows[np.random.default_rng(0).permutation(rows)]
    if method == "awq":
        windows = windows[: AWQ_TOKENS // WINDOW]
    setting = Setting(*SETTINGS[level][method])
    keep(PEERS[method](lm.model, setting, mx.array(windows)), lm, folder)


def _ratios(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Our KL over that of each of mlx-lm's, and of the best one, by budget."""
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        if row["method"] != "ours":
            continue
        others = {
            other["method"]: row["kl"] / other["kl"]
            for other in rows
            if other["level"] == row["level"] and other is not row
        }
        if others:
            own = {name: value for name, value in others.items() if name != "gptq-mended"}
            found[row["level"]] = others | {"best": max(own.values(), default=float("nan"))}
    return found


def _text(result: dict[str, Any]) -> str:
    header = [
        "level",
        "method",
        "bits/weight",
        "MB",
        "KL",
        "same choice",
        "perplexity",
        "s",
        "CPU s",
    ]
    lines = [
        [row["level"], row["method"], f"{row['bits_per_weight']:.3f}", f"{row['bytes'] / 1e6:.1f}",
         f"{row['kl']:.4f}", f"{row['agreement']:.1%}", f"{row['perplexity']:.2f}",
         f"{row['seconds']:.0f}", f"{row['cpu_seconds']:.0f}"]
        for row in result["rows"]
    ]  # fmt: skip
    told = [
        f"{level} bits per weight: our KL is {own['best']:.2f} times that of mlx-lm's best "
        f"(aim: at most {AIM})"
        for level, own in result.get("ratios", {}).items()
    ]
    return "\n".join(
        [
            f"quantization of {result['model']}, measured on text that nothing was calibrated on",
            common.machine_text(result["machine"]),
            "",
            common.table(header, lines),
            "",
            *told,
        ]
    )


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="quantization beside mlx-lm's")
    parser.add_argument("--data", type=Path, required=True, help="see quant_text.py")
    parser.add_argument("--out", type=Path, default=Path("runs/quant"), help="rows and models")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--bpw", default="4.5,3.5", help="budgets, of 4.5 and 3.5")
    parser.add_argument("--only", help="contestants: rtn, awq, gptq, gptq-mended, ours")
    parser.add_argument("--table", action="store_true", help="levels and methods of our own")
    parser.add_argument("--no-save", action="store_true", help="keep no results")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
