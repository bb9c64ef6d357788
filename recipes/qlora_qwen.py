"""QLoRA: an adapter over a 4-bit Qwen2.5-3B, with settings for an M4 Pro with 48 GB.

    python recipes/qlora_qwen.py --data chats.jsonl --rehearse     # what it will take; trains not
    python recipes/qlora_qwen.py --data chats.jsonl --out runs/qlora
    python recipes/qlora_qwen.py --smoke                           # a tiny 4-bit model
    python recipes/qlora_qwen.py --smoke --model smollm2-135m      # three steps of the default one

The settings are in `presets/qlora-qwen2.5-3b-m4-pro-48.yaml`; give another file with `--config` or
single values with `--set`. A few real steps come first and say what the whole run will take. On a
CPU a model from files is dequantized, because 4-bit products are ten times slower there than
float32; `--packed` keeps it packed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import mlx_companion as mc
from mlx_companion.models.tiny import tiny_model
from mlx_companion.runtime.files import atomic_write_json
from mlx_companion.runtime.monitor import ResourceMonitor
from mlx_companion.runtime.script import needed, script_options, script_settings, script_work
from mlx_companion.training import rehearse
from mlx_companion.training.settings import FinetuneConfig, load_for

MODEL = "mlx-community/Qwen2.5-3B-Instruct-4bit"
HERE = Path(__file__).parent
PRESET = HERE / "presets" / "qlora-qwen2.5-3b-m4-pro-48.yaml"
SMOKE_DATA = HERE.parent / "examples" / "data" / "keeper.jsonl"
SMOKE = {
    "train.max_steps": 3,
    "train.batch_tokens": 256,
    "train.dtype": "auto",
    "lora.rank": 4,
    "limits.on_battery": "ignore",
    "limits.max_memory_mb": None,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Rehearse, train and report."""
    options = _options().parse_args(arguments)
    with script_work(options.out) as stop:
        settings = script_settings(FinetuneConfig, options, SMOKE)
        data = needed(options, "data", SMOKE_DATA)
        tiny = options.smoke and options.model is None
        model = tiny_model(options.out / "tiny", bits=4) if tiny else options.model or MODEL
        lm = load_for(model, settings.train, dequantize=False if tiny or options.packed else None)
        valid = options.valid or options.share
        given = {"lora": settings.lora, "train": settings.train, "valid": valid}
        if options.rehearse or not (options.out / "checkpoints").exists():
            expected = rehearse(lm, data, **given)
            print(expected)
            options.out.mkdir(parents=True, exist_ok=True)
            atomic_write_json(options.out / "rehearsal.json", expected.to_json())
        if options.rehearse:
            return
        result = mc.finetune(
            lm, data, options.out, stop=stop, monitor=ResourceMonitor(settings.limits), **given
        )
        reply = mc.generate(lm, options.prompt, max_tokens=16 if options.smoke else 120)
    print(
        f"\n> {options.prompt}\n{reply}\n\n"
        f"held-out loss  {result.valid_before:.4f} -> {result.valid_best:.4f} nats per token\n"
        f"steps          {result.steps} in {result.seconds:.0f} s, {result.peak_mb:.0f} MB\n"
        f"adapter        {result.adapter}\n"
        f"use it         mlx-companion generate --model {model} --adapter {result.adapter} ..."
    )


def _options() -> argparse.ArgumentParser:
    parser = script_options(__doc__, out="runs/qlora", config=PRESET)
    parser.add_argument("--model", help=f"alias, hub id or folder ({MODEL})")
    parser.add_argument("--data", type=Path, help="file or folder of txt, jsonl, json or csv")
    parser.add_argument("--valid", type=Path, help="held-out data (a share of --data)")
    parser.add_argument("--share", type=float, default=0.05, help="what is held out (0.05)")
    parser.add_argument("--rehearse", action="store_true", help="say what it takes, and stop")
    parser.add_argument("--packed", action="store_true", help="keep 4-bit weights on a CPU, too")
    parser.add_argument("--prompt", default="What is a glacier?", help="asked at the end")
    return parser


if __name__ == "__main__":
    main()
