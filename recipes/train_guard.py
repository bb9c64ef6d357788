"""Train the personality guard's heads, for tone and stage directions, and write them as a pack.

    python recipes/train_guard.py --data data --out runs/guard
    python recipes/train_guard.py --smoke

Data: a folder with `goemotions/train.tsv` (ordinary comments) and `prose/train/*.txt.gz` (novels,
for their sentences and verbs); what else is learned from comes with the package. The lower layers
of the sentence encoder are tuned twice, once for the figures, which takes most of the two minutes
of processor time. The defaults give the pack that ships, bit by bit when `OMP_NUM_THREADS=1` is in
the environment (more threads add in another order). It lies in `OUT/pack`;
`PersonalityGuard(pack=...)` uses it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from mlx_companion.models import load_encoder
from mlx_companion.runtime.script import needed, script_options, script_work
from mlx_companion.slm.guard_direction_train import ROWS
from mlx_companion.slm.guard_train import calm_sentences, pages_of, train_guard

SMOKE_ROWS = 300


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, write the pack, and show its held-out figures."""
    options = _options().parse_args(arguments)
    with script_work(options.out) as stop:
        data = None if options.smoke else Path(needed(options, "data", Path()))
        pack = train_guard(
            options.out / "pack",
            options.version,
            options.seed,
            calm=calm_sentences(data) if data else (),
            pages=pages_of(data) if data else (),
            direction_count=SMOKE_ROWS if options.smoke else ROWS,
            encoder=None if options.smoke else load_encoder(),
            stop=stop,
        )
    print(f"{json.dumps(pack.metrics, indent=1)}\npack                   {pack.folder}")


def _options() -> argparse.ArgumentParser:
    parser = script_options(__doc__, out="runs/guard")
    parser.add_argument("--data", type=Path, help="folder with goemotions and prose")
    parser.add_argument("--version", default="5", help="name of the version")
    parser.add_argument("--seed", type=int, default=7, help="of every choice")
    return parser


if __name__ == "__main__":
    main()
