"""Train the research classifier: does a query need looking things up?

    python recipes/train_research.py --data data --out runs/research
    python recipes/train_research.py --data data --data more.jsonl
    python recipes/train_research.py --smoke
    mlx-companion slm run research_classifier --in queries.jsonl --out answers.jsonl

Data: a folder with `research/*.jsonl` (rows of {"query", "needs_research", "source"}),
`clinc150` and `goemotions/train.tsv`, or single files of such rows. Queries from the package's
templates are added to them (`--per-template 0` for none), and those written for it. What comes
out: a pack with its model card, held-out figures by source, and a reliability plot. All experts
are trained nine times: for the pack, for three folds, and with each group of sources left out;
about an hour of processor time in all, most of it for the encoder. Settings:
`ResearchTrainConfig`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mlx_companion.models import DEFAULT_MODEL
from mlx_companion.models.tiny import tiny_model
from mlx_companion.runtime.files import atomic_write_json, atomic_write_text
from mlx_companion.runtime.script import script_options, script_settings, script_work
from mlx_companion.slm.backbone import EncoderAdapter, LanguageModelAdapter
from mlx_companion.slm.research_queries import Query, generate_queries
from mlx_companion.slm.research_sources import read_collections, read_queries, read_written
from mlx_companion.slm.research_train import (
    UNSEEN,
    ResearchTrainConfig,
    train_research_classifier,
)
from mlx_companion.slm.scores import reliability_svg

SMOKE = {
    "max_steps": 20,
    "folds": 2,
    "network.members": 1,
    "network.hidden": 8,
    "network.epochs": 1,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Read and make queries, train, and report."""
    options = _options().parse_args(arguments)
    with script_work(options.out) as stop:
        config = script_settings(ResearchTrainConfig, options, SMOKE)
        tiny = options.smoke and options.model is None
        model = tiny_model(options.out / "tiny") if tiny else options.model or DEFAULT_MODEL
        made = train_research_classifier(
            _queries(options),
            options.out / "pack",
            backbone=LanguageModelAdapter(str(model)),
            encoder=None if options.smoke else EncoderAdapter(),
            config=config,
            version=options.version,
            stop=stop,
        )
    scores = {name: found.to_dict() for name, found in made.scores.items()}
    atomic_write_json(options.out / "report.json", scores)
    plot = reliability_svg(*made.held_out, f"Research need, {UNSEEN}")
    atomic_write_text(options.out / "reliability.svg", plot)
    for name, found in made.scores.items():
        print(
            f"{name:28} {found.rows:6,} queries, accuracy {found.accuracy:.3f}, of the surest "
            f"{found.surest_share:.0%} {found.surest_accuracy:.3f}, false positives there "
            f"{found.surest_false_positive_rate:.3f}"
        )
    print(f"pack                   {made.pack.folder}")


def _queries(options: argparse.Namespace) -> list[Query]:
    per_template = min(options.per_template, 1) if options.smoke else options.per_template
    queries = generate_queries(per_template, options.seed) + read_written()
    for path in options.data:
        queries += read_collections(path) if path.is_dir() else read_queries(path)
    # The smoke run wants each of both answers a few times and no more.
    return queries[::12] if options.smoke else queries


def _options() -> argparse.ArgumentParser:
    parser = script_options(__doc__, out="runs/research")
    parser.add_argument(
        "--data", type=Path, action="append", default=[], help="folder, or labelled queries"
    )
    parser.add_argument("--model", help=f"alias, hub id or folder ({DEFAULT_MODEL})")
    parser.add_argument("--per-template", type=int, default=14, help="queries made of each (14)")
    parser.add_argument("--seed", type=int, default=0, help="of the queries that are made (0)")
    parser.add_argument("--version", default="3", help="of the pack (3)")
    return parser


if __name__ == "__main__":
    main()
