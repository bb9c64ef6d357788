"""Trains the heads of the personality guard and writes its pack.

What hears cheer is trained by `guard_tone_train`, what tells stage directions by
`guard_direction_train`; the rules are those of the pack that ships::

    pack = train_guard(
        "out/personality_guard",
        calm=calm_sentences(data),
        pages=pages_of(data),
        encoder=load_encoder(),
    )
"""

from __future__ import annotations

import gzip
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_companion.errors import DataError
from mlx_companion.personality.words import sentences
from mlx_companion.runtime.stop import NEVER, StopSwitch
from mlx_companion.slm.guard_direction_train import ROWS, train_directions
from mlx_companion.slm.guard_text import GuardRules
from mlx_companion.slm.guard_tone_train import (
    FILES,
    LAYERS,
    PATTERN,
    TUNING,
    WRITTEN,
    tone_rows,
    train_tone,
)
from mlx_companion.slm.packs import Pack, packaged, save_pack
from mlx_companion.slm.tuned_encoder import TuneConfig
from mlx_companion.slm.written import written

if TYPE_CHECKING:
    from mlx_companion.models.encoder import SentenceEncoder

# Sentences are taken from so many characters of each book.
_PAGE = 200_000
# "neutral" among the labels of GoEmotions.
_NEUTRAL = "27"


def train_guard(
    folder: str | Path,
    version: str = "1",
    seed: int = 7,
    calm: Sequence[str] = (),
    pages: Sequence[str] = (),
    direction_count: int = ROWS,
    *,
    encoder: SentenceEncoder | None = None,
    tuning: TuneConfig = TUNING,
    layers: int = LAYERS,
    stop: StopSwitch = NEVER,
) -> Pack:
    """Train and write the pack.

    Args:
        folder: where to; an older pack there is replaced.
        version: its name.
        seed: of the slots that are filled.
        calm: more sentences that do not cheer; together they weigh as much as a third of the
            others. Stage directions are set among them.
        pages: of novels, whose verbs become stage directions.
        direction_count: rows of stage directions, and of other marked words.
        encoder: that tone is read with; None for n-grams alone.
        tuning: how its lower layers are tuned.
        layers: so many of them.
        stop: consulted before each step of that.

    Returns:
        The pack, with its held-out figures in `metrics`.

    Raises:
        Stopped: the switch was thrown.
    """
    rows = tone_rows(seed, calm)
    rules = (packaged("personality_guard") / "rules.yaml").read_text(encoding="utf-8")
    tone, settings, figures = train_tone(rows, encoder, tuning=tuning, layers=layers, stop=stop)
    arrays, directions, more = train_directions(
        [*calm, *_plain(seed)], pages, GuardRules(rules), count=direction_count, seed=seed
    )
    metrics = figures | more
    counts = {"sentences": len(rows.texts) - len(calm), "calm_sentences": len(calm), "seed": seed}
    read = _CARD_READ.format(**metrics) if encoder is not None else ""
    return save_pack(
        folder,
        "personality_guard",
        version,
        arrays={**tone, **arrays},
        settings={"tone": settings, **directions},
        rules=rules,
        metrics={**metrics, **counts},
        card=_CARD.format(
            read=read,
            lone=sum(len(written(name)) for name in FILES),
            version=version,
            **metrics,
            **counts,
        ),
    )


def _plain(seed: int) -> list[str]:
    """Calm sentences that stage directions are set among: of patterns, and of the first file."""
    rows = tone_rows(seed)
    first = {one.text for one in written(FILES[0])}
    return [
        text
        for text, label, kind in zip(rows.texts, rows.labels, rows.kinds, strict=True)
        if not label and (kind == PATTERN or (kind == WRITTEN and text in first))
    ]


def calm_sentences(data: str | Path, count: int = 3000, seed: int = 7) -> list[str]:
    """Ordinary sentences from public data: neutral comments and prose, half of each.

    Args:
        data: the folder that holds goemotions/train.tsv and prose/train/*.txt.gz.
        count: how many sentences in all.
        seed: of the choice.

    Raises:
        DataError: a file is missing.
    """
    rng = random.Random(seed)
    pages = pages_of(data)
    table = Path(data) / "goemotions" / "train.tsv"
    if not table.is_file():
        raise DataError("expected goemotions/train.tsv", path=data)
    rows = [line.split("\t") for line in table.read_text(encoding="utf-8").splitlines()]
    neutral = [row[0] for row in rows if row[1] == _NEUTRAL]
    prose = [one for page in pages for one in sentences(page[:_PAGE]) if 20 < len(one) < 250]
    return rng.sample(neutral, count // 2) + rng.sample(prose, count - count // 2)


def pages_of(data: str | Path) -> list[str]:
    """The texts of the novels in a folder that holds prose/train/*.txt.gz.

    Raises:
        DataError: there are none.
    """
    books = sorted((Path(data) / "prose" / "train").glob("*.txt.gz"))
    if not books:
        raise DataError("expected prose/train/*.txt.gz", path=data)
    pages = []
    for book in books:
        with gzip.open(book, "rt", encoding="utf-8") as file:
            pages.append(file.read())
    return pages


_CARD = """# Personality guard, version {version}

What a reply must not hold, and three small heads: two hear cheerleading, one tells stage directions
from emphasis.

- `rules.yaml`: words behind the enumerable rules (actions, capitals, topics, names), written for
  this project.
- `weights.safetensors`: `tone`, logistic regression over hashed character and word n-grams of one
  sentence, int8, which judges where no set phrase does; `tuned`, a low-rank update of the lower
  layers of the sentence encoder all-MiniLM-L6-v2 (Apache-2.0) with a linear head, half precision,
  which reads what the n-grams do not find harmless; `direction`, logistic regression over hashed
  features of a marked piece (classes and endings of its words, its place, what the rules say of
  it), int8, which judges where no rule is sure. Calibrations, thresholds and the encoder's hash
  are in `settings.json`. Where that encoder is not on the disk, n-grams judge tone alone.

**Data.** {sentences} sentences written for this project (Apache-2.0, as the package): {lone} one by
one in `slm/data/written/tone*.txt`, the sentences of assistants with other manners in
`slm/data/drift_training/voices.jsonl`, the rest from patterns with slots in
`slm/data/guard_training/tone.yaml`; and {calm_sentences} ordinary sentences of the calm class:
comments labelled neutral from GoEmotions (Demszky et al., 2020; Apache-2.0) and sentences of
public-domain books (Standard Ebooks editions, CC0). Marked pieces come from
`slm/data/guard_training/directions.yaml` and from the verbs of those books, set into those
sentences.

**Figures.** Tone, on the sentences of a writer who was held out (`tone_pairs.txt`, half of them
cheer), a third of the other assistants' and a third of the ordinary ones, at the threshold in use,
set phrases not counted:

- n-grams: recall {tone_recall}, precision {tone_precision}; of neutral sentences in an assistant's
  voice {tone_false_alarms} are taken for cheer, of comments and novels
  {tone_false_alarms_elsewhere}.
{read}
Stage directions, on rows made to be hard: recall {direction_recall}, false alarms
{direction_false_alarms} (the rules alone: {direction_recall_of_rules} and
{direction_false_alarms_of_rules}). Seed {seed}.

**Made with** `python recipes/train_guard.py --data data`; the same seed gives the same weights.

**Limits.** English only. The heads know the cheer of chat assistants; irony that imitates it is
heard as cheer. Tone is a matter of taste: at the level `moderate` it is reported and left alone.
"""
_CARD_READ = """- with the encoder: recall {tone_read_recall}, precision {tone_read_precision};
  false alarms {tone_read_false_alarms} and {tone_read_false_alarms_elsewhere}. It reads a share of
  {tone_read_share} of the neutral sentences of other assistants.
"""
