"""Preference tuning: teach a model which of two replies is the better one.

    python recipes/preferences.py --data pairs.jsonl --objective dpo --out runs/dpo
    python recipes/preferences.py --smoke --objective kto

Data: rows of {"prompt", "chosen", "rejected"}; see `text.preference_records` for other forms.
Objectives: dpo, ipo, hinge, orpo, simpo, kto (which takes each pair as a wanted and an unwanted
reply); `docs/losses.md` says which to take. All pairs of some prompts are held out, and say how
often the chosen reply is the likelier one before and after, and how often it gained more than the
rejected one. The run's folder then holds `adapter`, `report.json` and the metrics.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from mlx_companion.models import DEFAULT_MODEL
from mlx_companion.models.tiny import tiny_model
from mlx_companion.runtime.files import atomic_write_json
from mlx_companion.runtime.monitor import ResourceMonitor
from mlx_companion.runtime.script import needed, script_options, script_settings, script_work
from mlx_companion.text.preference_records import read_pairs
from mlx_companion.training.preference_objectives import OBJECTIVES
from mlx_companion.training.preference_run import split_pairs, tune_preferences
from mlx_companion.training.settings import FinetuneConfig, load_for

SMOKE_DATA = Path(__file__).parent.parent / "examples" / "data" / "preferences.jsonl"
SMOKE = {"train.max_steps": 3, "train.batch_tokens": 2048, "train.lr": 1e-3, "lora.rank": 4}


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and report."""
    options = _options().parse_args(arguments)
    with script_work(options.out) as stop:
        settings = script_settings(FinetuneConfig, options, SMOKE)
        pairs = read_pairs(needed(options, "data", SMOKE_DATA))
        held_out = read_pairs(options.valid) if options.valid else []
        if not held_out:
            pairs, held_out = split_pairs(pairs, options.share, settings.train.seed)
        tiny = options.smoke and options.model is None
        model = tiny_model(options.out / "tiny") if tiny else options.model or DEFAULT_MODEL
        lm = load_for(model, settings.train)
        result = tune_preferences(
            lm,
            pairs,
            options.out,
            objective=options.objective,
            valid=held_out,
            lora=settings.lora,
            train=settings.train,
            stop=stop,
            monitor=ResourceMonitor(settings.limits),
        )
    before, after, run = result.before, result.after, result.run
    assert before is not None
    assert after is not None
    report = {"before": asdict(before), "after": asdict(after)}
    atomic_write_json(options.out / "report.json", report | {"objective": options.objective})
    print(
        f"objective          {options.objective}, {len(pairs)} pairs, {run.steps} steps\n"
        f"chosen is likelier {before.likelier:.1%} -> {after.likelier:.1%} "
        f"of {after.pairs} held-out pairs\n"
        f"reward accuracy    {after.reward_accuracy:.1%}: the chosen reply gained more\n"
        f"margin             {after.margin:.2f} nats\n"
        f"adapter            {run.adapter}\n"
        f"report             {options.out / 'report.json'}"
    )


def _options() -> argparse.ArgumentParser:
    parser = script_options(__doc__, out="runs/preferences")
    parser.add_argument("--model", help=f"alias, hub id, folder or GGUF file ({DEFAULT_MODEL})")
    parser.add_argument("--data", type=Path, help="pairs: a jsonl, json or csv file, or a folder")
    parser.add_argument("--valid", type=Path, help="held-out pairs (a share of --data)")
    parser.add_argument("--share", type=float, default=0.2, help="of prompts held out (0.2)")
    parser.add_argument("--objective", default="dpo", choices=list(OBJECTIVES))
    return parser


if __name__ == "__main__":
    main()
