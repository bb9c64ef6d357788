"""Train a byte latent transformer on your own texts, from nothing to a report.

    python recipes/train_blt.py --texts books/ --valid held-out.txt --out runs/my-blt --flops 2e14

An entropy model is trained first; then the entropy above which a patch begins is set so that
patches have the wanted mean length on these texts, and the model itself is trained with patches
that begin there. The report says how well it predicts the held-out text, what a byte costs, and
lets it write; a picture shows where patches begin. Stopped at any moment, the same command goes on
where it was.

The run's folder then holds `blt/model` and `entropy/model`, which `blt.load` reads, the metrics of
both runs, `report.json` and `patches.svg`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx_companion as mc
from mlx_companion import blt
from mlx_companion.runtime.files import atomic_write_json
from mlx_companion.training import RichProgress
from mlx_companion.training.byte_runs import ByteRunConfig, train_from_files

# The entropy model's share of the FLOPs.
ENTROPY_SHARE = 0.05
PLOT_BYTES = 400


def main(arguments: Sequence[str] | None = None) -> None:
    """Train both models and report."""
    options = _options().parse_args(arguments)
    try:
        with mc.StopSwitch(options.out / "STOP") as stop:
            model = _train(options, stop)
            _report(model, options)
    except mc.errors.Stopped as stopped:
        sys.exit(f"{stopped}; the same command goes on from here")
    except mc.errors.CompanionError as error:
        sys.exit(f"error: {error}")


def _train(options: argparse.Namespace, stop: mc.StopSwitch) -> Path:
    """The folder of the trained model."""
    run = ByteRunConfig(preset=options.preset, target_patch_bytes=options.patch_bytes)
    given: dict[str, Any] = {"callbacks": [RichProgress()], "stop": stop}
    entropy_model, _ = train_from_files(
        options.texts,
        options.out / "entropy",
        replace(run, kind="entropy", train=_settings(run, options, ENTROPY_SHARE)),
        **given,
    )
    model, _ = train_from_files(
        options.texts,
        options.out / "blt",
        replace(run, train=_settings(run, options, 1 - ENTROPY_SHARE)),
        entropy_model=entropy_model,
        **given,
    )
    return model


def _settings(run: ByteRunConfig, options: argparse.Namespace, share: float) -> mc.TrainConfig:
    flops = None if options.flops is None else share * options.flops
    return replace(run.train, max_steps=options.steps, max_flops=flops, seed=options.seed)


def _report(folder: Path, options: argparse.Namespace) -> None:
    model = blt.load(folder)
    found = blt.evaluate(model, options.valid)
    half = model.config.context // 2
    reply = blt.generate(
        model,
        options.prompt,
        max_bytes=min(half, 300),
        sampling=mc.Sampling(temperature=0.8),
        seed=options.seed,
    )
    some = options.valid.read_bytes()[:PLOT_BYTES]
    plot = blt.save_plot(blt.patches(model, some), options.out / "patches.svg")
    threshold = model.config.patching.threshold
    figures = found.to_dict() | {"threshold": threshold, "sample": options.prompt + reply.text}
    atomic_write_json(options.out / "report.json", figures)
    print(
        f"bits per byte    {found.bits_per_byte:.4f}  ({options.valid}, {found.bytes:,} bytes)\n"
        f"bytes per patch  {found.mean_patch_bytes:.2f}  (threshold {threshold:.3f} nats)\n"
        f"FLOPs per byte   {found.flops_per_byte / 1e6:.3f} million\n"
        f"model            {folder}\n"
        f"patches          {plot}\n\n{options.prompt}{reply.text}"
    )


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--texts", type=Path, nargs="+", required=True, help=".txt or .txt.gz files, or folders"
    )
    parser.add_argument("--valid", type=Path, required=True, help="held-out .txt file")
    parser.add_argument("--out", type=Path, required=True, help="the run's folder")
    parser.add_argument("--preset", default="small", help="tiny, small or base")
    parser.add_argument(
        "--flops", type=float, help="training FLOPs in all (one pass over the texts)"
    )
    parser.add_argument("--steps", type=int, help="at most so many steps of each model")
    parser.add_argument("--patch-bytes", type=float, default=4.5, help="mean bytes per patch")
    parser.add_argument("--prompt", default="The ", help="what the sample begins with")
    parser.add_argument("--seed", type=int, default=0)
    return parser


if __name__ == "__main__":
    main()
