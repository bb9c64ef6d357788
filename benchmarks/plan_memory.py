"""The planner's memory against what a process really takes: load, generation, LoRA training.

    python benchmarks/plan_memory.py                 # about three minutes on two cores
    python benchmarks/plan_memory.py --only load,generate --no-save

Each measurement runs in a process of its own and counts the bytes that MLX's arrays held at most;
what the interpreter and its libraries take comes on top, and is shown beside it. The aim is to be
within 15 % everywhere.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import common

AIM = 0.15
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "load": [{}],
    "generate": [{"context": size} for size in (64, 256, 512, 1024)],
    "lora": [
        {"rank": 8, "batch": 2, "length": 128},
        {"rank": 8, "batch": 2, "length": 256},
        {"rank": 32, "batch": 4, "length": 64},
        {"rank": 8, "batch": 1, "length": 512},
    ],
}


def main() -> None:
    """Run and report."""
    options = _arguments().parse_args()
    if options.worker:
        print(json.dumps(_measure(options.model, options.worker, json.loads(options.setting))))
        return
    rows = [
        _row(options.model, kind, setting)
        for kind in options.only.split(",")
        for setting in SETTINGS[kind]
    ]
    worst = max(abs(row["error"]) for row in rows)
    facts = common.machine()
    lines = [
        [row["what"], *(f"{row[name]:.0f}" for name in ("predicted_mb", "arrays_mb")),
         f"{row['error']:+.1%}", f"{row['process_mb']:.0f}"]
        for row in rows
    ]  # fmt: skip
    text = "\n".join(
        [
            f"peak memory of {options.model}, predicted and measured (MB)",
            common.machine_text(facts),
            "",
            common.table(["run", "predicted", "arrays", "error", "whole process"], lines),
            "",
            f"largest error {worst:.1%} (aim: within {AIM:.0%}: "
            f"{'met' if worst <= AIM else 'missed'})",
        ]
    )
    result = {"benchmark": "plan_memory", "worst": worst, "rows": rows, "machine": facts}
    common.publish("plan_memory", result, text, options.save)


def _row(model: str, kind: str, setting: dict[str, Any]) -> dict[str, Any]:
    work = ["--worker", kind, "--setting", json.dumps(setting), "--model", model]
    found = common.in_fresh_process(__file__, work)
    said = ", ".join(f"{name} {value}" for name, value in setting.items())
    error = found["predicted_mb"] / found["arrays_mb"] - 1
    return {"what": f"{kind} {said}".strip(), **found, "error": error}


def _measure(model: str, kind: str, setting: dict[str, Any]) -> dict[str, float]:
    import mlx_companion as mc  # noqa: I001 - before mlx.core
    import mlx.core as mx

    from mlx_companion.models.load import find_model
    from mlx_companion.quant.plan import LoraPlan, plan
    from mlx_companion.runtime.memory import peak_memory_mb

    lora = LoraPlan(**setting) if kind == "lora" else None
    found = plan(find_model(model), lora=lora, context=setting.get("context"))
    lm = mc.load(model)
    if kind != "load":
        mx.reset_peak_memory()
    if kind == "generate":
        prompt = [100 + i % 1000 for i in range(setting["context"])]
        list(mc.stream_generate(lm, prompt, max_tokens=8))
    elif lora is not None:
        _train(lm, lora)
    expected = found.loading if kind == "load" else found.total
    return {
        "predicted_mb": expected / 1e6,
        "arrays_mb": mx.get_peak_memory() / 1e6,
        "process_mb": peak_memory_mb(),
    }


def _train(lm: Any, lora: Any) -> None:
    import mlx_companion as mc
    from mlx_companion.lora import attach
    from mlx_companion.text.batches import LengthBuckets
    from mlx_companion.text.encode import Encoded
    from mlx_companion.training.trainer import Trainer

    attach(lm.model, mc.LoraConfig(rank=lora.rank))
    # Rows that begin differently, so that nothing is shared among them.
    rows = [
        Encoded([(5 + 7919 * i * (row + 1)) % 40000 for i in range(1, lora.length + 1)],
                [False] + [True] * (lora.length - 1))
        for row in range(lora.batch)
    ]  # fmt: skip
    config = mc.TrainConfig(
        max_steps=2, batch_tokens=lora.tokens, max_tokens=lora.length,
        gradient_checkpointing=lora.checkpoint,
    )  # fmt: skip
    Trainer(lm.model, LengthBuckets(rows, batch_tokens=lora.tokens), config=config).run()


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="smollm2-135m", help="alias, hub id, folder or GGUF")
    parser.add_argument("--only", default="load,generate,lora", help="which kinds of run")
    parser.add_argument("--no-save", dest="save", action="store_false", help="keep no results")
    parser.add_argument("--worker", default="", help=argparse.SUPPRESS)
    parser.add_argument("--setting", default="{}", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
