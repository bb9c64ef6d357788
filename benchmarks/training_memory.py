"""Memory of a training run over many steps: does it stay flat?

    python benchmarks/training_memory.py                  # 2,000 steps, a quarter of an hour
    python benchmarks/training_memory.py --steps 200 --no-save

LoRA of the default model on short rows of uneven length, so that arrays of many sizes come and go.
After every 20 steps the arrays that MLX holds and what the system counts for the process are noted;
what counts is the mean of the last tenth of the steps over that of the second tenth (in the first
one, buffers of every size are made).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import common
from benchmarks.finetune_data import made

EVERY = 20
AIM = 0.02


def main() -> None:
    """Run and report."""
    options = _arguments().parse_args()
    if options.worker:
        print(json.dumps({"readings": _train(options.model, options.steps)}))
        return
    work = ["--worker", "--steps", str(options.steps), "--model", options.model]
    readings = common.in_fresh_process(__file__, work)["readings"]
    growth = {name: _growth([r[name] for r in readings]) for name in ("arrays_mb", "resident_mb")}
    flat = all(abs(value) <= AIM for value in growth.values())
    facts = common.machine()
    shown = readings[:: max(1, len(readings) // 10)]
    text = "\n".join(
        [
            f"{options.steps} steps of LoRA on {options.model}, rows of uneven length",
            common.machine_text(facts),
            "",
            common.table(
                ["step", "arrays MB", "resident MB"],
                [[str(r["step"]), f"{r['arrays_mb']:.1f}", f"{r['resident_mb']:.0f}"]
                 for r in shown],
            ),
            "",
            f"from the second tenth to the last: arrays {growth['arrays_mb']:+.2%}, resident "
            f"{growth['resident_mb']:+.2%} (aim: within {AIM:.0%}: {'met' if flat else 'missed'})",
        ]
    )  # fmt: skip
    result = {"benchmark": "training_memory", "steps": options.steps, "growth": growth}
    result |= {"flat": flat, "readings": readings, "machine": facts}
    common.publish("training_memory", result, text, options.save)


def _growth(values: list[float]) -> float:
    tenth = max(1, len(values) // 10)
    first, last = statistics.mean(values[tenth : 2 * tenth]), statistics.mean(values[-tenth:])
    return last / first - 1


def _train(model: str, steps: int) -> list[dict[str, Any]]:
    import mlx_companion as mc
    from mlx_companion.training import Callback, TrainConfig, finetune

    readings: list[dict[str, Any]] = []

    class Watch(Callback):
        def on_step(self, step: Any) -> None:
            if step.step % EVERY == 0:
                readings.append({"step": step.step, **_memory()})

    with tempfile.TemporaryDirectory() as folder:
        rows = [*made("classification", 1500, 0), *made("chat", 100, 0)]
        data = Path(folder) / "data.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        config = TrainConfig(
            epochs=1000, max_steps=steps, batch_tokens=96, save_every=500, max_tokens=192
        )
        lora = mc.LoraConfig(rank=4, layers=6)
        finetune(
            model, data, Path(folder) / "run", lora=lora, train=config, valid=0.02,
            callbacks=[Watch()], progress=False, track=(),
        )  # fmt: skip
    return readings


def _memory() -> dict[str, float]:
    import mlx.core as mx

    from mlx_companion.runtime.memory import memory_mb

    return {"arrays_mb": mx.get_active_memory() / 1e6, "resident_mb": memory_mb()}


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--model", default="smollm2-135m", help="alias, hub id, folder or GGUF")
    parser.add_argument("--no-save", dest="save", action="store_false", help="keep no results")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
