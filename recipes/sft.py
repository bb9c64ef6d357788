"""Fine-tune a model on your own replies, and see what it says before and after.

    python recipes/sft.py --data chats.jsonl --out runs/mine
    python recipes/sft.py --data chats.jsonl --out runs/mine --config mine.yaml --set lora.rank=16
    python recipes/sft.py --smoke

Data: rows of {"messages": [...]}, {"prompt", "completion"}, {"instruction", "output"} or {"text"},
in jsonl, json, csv or txt files, or a folder of them. A share of it is held out; the model answers
some of the held-out prompts before and after. Stopped at any moment, the same command goes on where
it was. The run's folder then holds `adapter`, `report.json` and the metrics.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import mlx_companion as mc
from mlx_companion.models import DEFAULT_MODEL
from mlx_companion.models.tiny import tiny_model
from mlx_companion.runtime.files import atomic_write_json
from mlx_companion.runtime.monitor import ResourceMonitor
from mlx_companion.runtime.script import needed, script_options, script_settings, script_work
from mlx_companion.text import Sample, read_samples
from mlx_companion.training.data import hold_out
from mlx_companion.training.settings import FinetuneConfig, load_for

SMOKE_DATA = Path(__file__).parent.parent / "examples" / "data" / "keeper.jsonl"
SMOKE = {"train.max_steps": 3, "train.batch_tokens": 512, "lora.rank": 4}


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and report."""
    options = _options().parse_args(arguments)
    with script_work(options.out) as stop:
        settings = script_settings(FinetuneConfig, options, SMOKE)
        rows, held_out = _data(options, settings.train.seed)
        prompts = options.prompt or _prompts(held_out)[: options.show]
        model = options.model or (
            tiny_model(options.out / "tiny") if options.smoke else DEFAULT_MODEL
        )
        lm = load_for(model, settings.train)
        length = 16 if options.smoke else options.max_tokens
        before = mc.batch_generate(lm, prompts, max_tokens=length, switch=stop)
        result = mc.finetune(
            lm,
            rows,
            options.out,
            lora=settings.lora,
            train=settings.train,
            valid=held_out,
            stop=stop,
            monitor=ResourceMonitor(settings.limits),
        )
        after = mc.batch_generate(lm, prompts, max_tokens=length, switch=stop)
    replies = [
        {"prompt": prompt, "before": old.text, "after": new.text}
        for prompt, old, new in zip(prompts, before, after, strict=True)
    ]
    figures = {
        "valid_before": result.valid_before,
        "valid_best": result.valid_best,
        "steps": result.steps,
        "seconds": result.seconds,
        "peak_mb": result.peak_mb,
    }
    atomic_write_json(options.out / "report.json", figures | {"replies": replies})
    for reply in replies:
        print(f"> {reply['prompt']}\n  before: {reply['before']}\n  after:  {reply['after']}\n")
    print(
        f"held-out loss  {result.valid_before:.4f} -> {result.valid_best:.4f} nats per token\n"
        f"steps          {result.steps} in {result.seconds:.0f} s, {result.peak_mb:.0f} MB\n"
        f"adapter        {result.adapter}\n"
        f"report         {options.out / 'report.json'}"
    )


def _data(options: argparse.Namespace, seed: int) -> tuple[list[Sample], list[Sample]]:
    samples = read_samples(needed(options, "data", SMOKE_DATA))
    if options.valid is not None:
        return samples, read_samples(options.valid)
    return hold_out(samples, options.share, seed)


def _prompts(samples: Sequence[Sample]) -> list[str]:
    """First questions of conversations; the beginnings of texts."""
    asked = (
        next((turn.content for turn in sample.messages if turn.role == "user"), None)
        or (sample.text or "")[:200]
        for sample in samples
    )
    return list(dict.fromkeys(asked))


def _options() -> argparse.ArgumentParser:
    parser = script_options(__doc__, out="runs/sft")
    parser.add_argument("--model", help=f"alias, hub id, folder or GGUF file ({DEFAULT_MODEL})")
    parser.add_argument("--data", type=Path, help="file or folder of txt, jsonl, json or csv")
    parser.add_argument("--valid", type=Path, help="held-out data (a share of --data)")
    parser.add_argument("--share", type=float, default=0.1, help="what is held out (0.1)")
    parser.add_argument("--prompt", action="append", help="ask this before and after; repeatable")
    parser.add_argument("--show", type=int, default=4, help="held-out prompts to ask (4)")
    parser.add_argument("--max-tokens", type=int, default=120, help="longest reply (120)")
    return parser


if __name__ == "__main__":
    main()
