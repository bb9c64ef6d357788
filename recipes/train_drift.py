"""Train the drift monitor's heads and its space of style, and write them as a pack.

    python recipes/train_drift.py --data data --out runs/drift
    python recipes/train_drift.py --smoke
    python recipes/train_drift.py --data data --set heads.readings=8 --set style.level=0.01

Data: a folder with `goemotions/train.tsv` (harmless comments) and `prose/train/*.txt.gz` (further
voices). Without one, the sentences and replies that come with the package are all there is. The
heads read hidden states of the backbone (`--backbone`, the default model unless told) and the
default encoder's sentence embeddings, and fit no others; two of them tune the encoder, which is
most of the half hour of processor time. The pack lies in `OUT/pack`;
`DriftMonitor(pack=load_pack(...))` uses it.

Settings are those of `DriftTraining`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from mlx_companion.models.tiny import tiny_model
from mlx_companion.runtime.script import script_options, script_settings, script_work
from mlx_companion.slm.backbone import EncoderAdapter, LanguageModelAdapter
from mlx_companion.slm.drift_train import DriftTraining, train_drift

SMOKE = {
    "heads.readings": 1,
    "heads.comments": 20,
    "heads.every_reply": 40,
    "heads.network.epochs": 1,
    "style.voices": 12,
    "style.replies": 16,
    "style.pairs": 30,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, write the pack, and show its held-out figures."""
    options = _options().parse_args(arguments)
    with script_work(options.out) as stop:
        config = script_settings(DriftTraining, options, SMOKE)
        tiny = options.smoke and options.backbone is None
        source = str(tiny_model(options.out / "tiny")) if tiny else options.backbone
        pack = train_drift(
            options.out / "pack",
            config,
            backbone=LanguageModelAdapter(source),
            encoder=None if options.smoke else EncoderAdapter(),
            data=options.data,
            stop=stop,
        )
    print(f"{json.dumps(pack.metrics, indent=1)}\npack                   {pack.folder}")


def _options() -> argparse.ArgumentParser:
    parser = script_options(__doc__, out="runs/drift")
    parser.add_argument("--data", type=Path, help="folder with goemotions and prose")
    parser.add_argument("--backbone", help="alias, hub id, folder or GGUF file")
    return parser


if __name__ == "__main__":
    main()
