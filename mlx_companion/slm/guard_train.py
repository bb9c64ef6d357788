"""Trains the heads of the personality guard, for tone and for stage directions; writes its pack.

The sentences are those of `data/guard_training/tone.yaml`, with their slots filled, and those of
`data/written/tone.txt`; variants of one pattern and neighbours of the second file share a fold, so
that the figures are for sentences unlike those that were seen. The threshold is the lowest one at
which held-out precision is at least `PRECISION`, and of ordinary sentences at most `FALSE_ALARMS`
are taken for cheer. Those come from elsewhere and join the calm ones. The other head is trained
by `guard_direction_train`::

    pack = train_guard("out/personality_guard", calm=calm_sentences(data), pages=pages_of(data))
"""

from __future__ import annotations

import gzip
import random
import re
from collections.abc import Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mlx_companion.errors import DataError
from mlx_companion.personality.words import sentences
from mlx_companion.slm.guard_direction_train import ROWS, train_directions
from mlx_companion.slm.guard_text import GuardRules
from mlx_companion.slm.guard_tone import head_text
from mlx_companion.slm.linear import fit_logistic, fit_platt, out_of_fold
from mlx_companion.slm.ngrams import NGramConfig, NGrams
from mlx_companion.slm.packs import Pack, packaged, save_pack
from mlx_companion.slm.written import written

PRECISION = 0.94
FALSE_ALARMS = 0.003
# Sentences written one by one are of more kinds than those from patterns.
_WRITTEN_WEIGHT = 3.0
_NGRAMS = NGramConfig(char=(2, 5), words=(1, 3), char_columns=1 << 15, word_columns=1 << 14)
_PER_PATTERN = 8
_FOLDS = 8
_PENALTY = 3e-5
# Sentences are taken from so many characters of each book.
_PAGE = 200_000
# "neutral" among the labels of GoEmotions.
_NEUTRAL = "27"
_SLOT = re.compile(r"\{(\w+)\}")


def tone_sentences(seed: int = 7) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The training sentences, their labels (1: cheers) and the number of each one's pattern."""
    source = resources.files("mlx_companion.slm") / "data" / "guard_training" / "tone.yaml"
    tree = yaml.safe_load(source.read_text(encoding="utf-8"))
    rng = random.Random(seed)
    texts, labels, patterns = [], [], []
    for label, kind in enumerate(("calm", "cheer")):
        for number, pattern in enumerate(tree[kind]):
            filled = {_fill(pattern, tree["slots"], rng) for _ in range(_PER_PATTERN)}
            texts += sorted(filled)
            labels += [label] * len(filled)
            patterns += [number] * len(filled)
    first = max(patterns) + 1
    for one in written("tone"):
        texts.append(one.text)
        labels.append(int(one.label))
        patterns.append(first + one.pair)
    return texts, np.array(labels), np.array(patterns)


def _fill(pattern: str, slots: dict[str, list[str]], rng: random.Random) -> str:
    said = _SLOT.sub(lambda found: rng.choice(slots[found[1]]), pattern)
    return said[:1].upper() + said[1:]


def train_guard(
    folder: str | Path,
    version: str = "1",
    seed: int = 7,
    calm: Sequence[str] = (),
    pages: Sequence[str] = (),
    direction_count: int = ROWS,
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

    Returns:
        The pack, with its held-out figures in `metrics`.
    """
    texts, labels, patterns = tone_sentences(seed)
    plain = [*calm, *(text for text, label in zip(texts, labels, strict=True) if not label)]
    own, lone = len(texts), len(written("tone"))
    texts += calm
    labels = np.concatenate([labels, np.zeros(len(calm), labels.dtype)])
    folds = np.concatenate([patterns, np.arange(len(calm))]) % _FOLDS
    each = own / 3 / max(1, len(calm))
    weights = np.repeat([1.0, _WRITTEN_WEIGHT, each], [own - lone, lone, len(calm)])
    rows = NGrams(_NGRAMS).transform([head_text(text) for text in texts])
    logits = out_of_fold([rows], labels, folds, row_weights=weights, penalties=_PENALTY)[:, 0]
    calibration = fit_platt(logits, labels, weights)
    threshold, metrics = _threshold(calibration(logits), labels, weights, own)
    head = fit_logistic([rows], labels, row_weights=weights, penalties=_PENALTY)
    settings = {
        "tone": {
            "ngrams": asdict(_NGRAMS),
            "slope": calibration.slope,
            "offset": calibration.offset,
            "threshold": threshold,
        }
    }
    rules = (packaged("personality_guard") / "rules.yaml").read_text(encoding="utf-8")
    arrays, directions, figures = train_directions(
        plain, pages, GuardRules(rules), count=direction_count, seed=seed
    )
    metrics |= figures
    return save_pack(
        folder,
        "personality_guard",
        version,
        arrays={**head.to_arrays("tone", "int8"), **arrays},
        settings={**settings, **directions},
        rules=rules,
        metrics={**metrics, "sentences": own, "calm_sentences": len(calm), "seed": seed},
        card=_CARD.format(
            count=own, lone=lone, calm=len(calm), seed=seed, version=version, **metrics
        ),
    )


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


def _threshold(
    chances: np.ndarray, labels: np.ndarray, weights: np.ndarray, own: int
) -> tuple[float, dict[str, Any]]:
    best = 0.99
    for threshold in np.arange(0.5, 0.99, 0.01):
        fired = chances >= threshold
        if not fired.any() or (len(chances) > own and fired[own:].mean() > FALSE_ALARMS):
            continue
        if np.average(labels[fired], weights=weights[fired]) >= PRECISION:
            best = float(round(threshold, 2))
            break
    fired = chances >= best
    return best, {
        "tone_precision": _share(labels[fired], weights[fired]),
        "tone_recall": _share(fired[labels == 1], weights[labels == 1]),
        "tone_accuracy": _share(fired == labels, weights),
        "tone_false_alarms": round(float(fired[own:].mean()), 4) if len(fired) > own else 0.0,
    }


def _share(hits: np.ndarray, weights: np.ndarray) -> float:
    return round(float(np.average(hits, weights=weights)), 4)


_CARD = """# Personality guard, version {version}

What a reply must not hold, and two small heads: one hears cheerleading, one tells stage directions
from emphasis.

- `rules.yaml`: words behind the enumerable rules (actions, capitals, topics, names), written for
  this project.
- `weights.safetensors`, int8: `tone`, logistic regression over hashed character and word n-grams of
  one sentence, which judges where no set phrase does; `direction`, the same over hashed features of
  a marked piece (classes and endings of its words, its place, what the rules say of it), which
  judges where no rule is sure. Calibration and thresholds are in `settings.json`.

**Data.** {count} sentences written for this project (Apache-2.0, as the package): {lone} one by
one in `slm/data/written/tone.txt`, the rest from patterns with slots in
`slm/data/guard_training/tone.yaml`; and {calm} ordinary sentences of the calm class:
comments labelled neutral from GoEmotions (Demszky et al., 2020; Apache-2.0) and sentences of
public-domain books (Standard Ebooks editions, CC0). Marked pieces come from
`slm/data/guard_training/directions.yaml` and from the verbs of those books, set into those
sentences.

**Figures**, on sentences and patterns that were held out. Tone: precision {tone_precision}, recall
{tone_recall}, accuracy {tone_accuracy} at the threshold in use; {tone_false_alarms} of the ordinary
sentences are taken for cheer. Stage directions, on rows made to be hard: recall {direction_recall},
false alarms {direction_false_alarms} (the rules alone: {direction_recall_of_rules} and
{direction_false_alarms_of_rules}). Seed {seed}.

**Made with** `python recipes/train_guard.py --data data`; the same seed gives the same weights.

**Limits.** English only. The head knows the cheer of chat assistants; irony that imitates it is
heard as cheer. Tone is a matter of taste: at the level `moderate` it is reported and left alone.
"""
