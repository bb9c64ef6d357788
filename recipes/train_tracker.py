"""Train the context tracker: slang in its sense, formality, mood, topic, technical depth.

    python recipes/train_tracker.py --data data/ --out runs/tracker
    python recipes/train_tracker.py --smoke
    mlx-companion slm run context_tracker --in messages.jsonl --out answers.jsonl

Data: a folder with `goemotions/train.tsv` and `labels.txt`, `clinc150/train.jsonl` and
`prose/train/*.txt.gz`; what else it learns from comes with the package. Word vectors are taken from
an encoder's input embeddings. What comes out: a pack with its model card and held-out figures.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from mlx_companion.models import load_encoder
from mlx_companion.runtime.files import atomic_write_json
from mlx_companion.runtime.script import needed, script_options, script_work
from mlx_companion.slm.slang_reader import TermReader
from mlx_companion.slm.tracker_card import tracker_card
from mlx_companion.slm.tracker_sources import Sources, encoder_vectors, smoke_vectors
from mlx_companion.slm.tracker_train import train_tracker


def main(arguments: Sequence[str] | None = None) -> None:
    """Read, train, and report."""
    options = _options().parse_args(arguments)
    with script_work(options.out):
        sources = Sources(
            _data(options),
            _vectors(options),
            options.per_source,
            options.seed,
            reader=None if options.smoke else TermReader(_encoder(options)),
        )
        if options.smoke:
            sources = replace(sources, max_steps=2, every=8)
        pack = train_tracker(
            sources, options.out / "pack", version=options.version, say=print, card=tracker_card
        )
    atomic_write_json(options.out / "report.json", pack.metrics)
    print(f"pack                   {pack.folder}")


def _data(options: argparse.Namespace) -> Path | None:
    return None if options.smoke else Path(needed(options, "data", Path()))


def _vectors(options: argparse.Namespace) -> dict[str, np.ndarray]:
    if options.smoke:
        return smoke_vectors()
    return encoder_vectors(_encoder(options))


def _encoder(options: argparse.Namespace) -> Path:
    given = () if options.encoder is None else (options.encoder,)
    return load_encoder(*given).path


def _options() -> argparse.ArgumentParser:
    parser = script_options(__doc__, out="runs/tracker")
    parser.add_argument("--data", type=Path, help="folder with goemotions, clinc150 and prose")
    parser.add_argument("--encoder", help="alias or folder of an encoder (MiniLM)")
    parser.add_argument("--per-source", type=int, default=2500, help="rows of each source (2500)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--version", default="5", help="name of the pack's version")
    return parser


if __name__ == "__main__":
    main()
