"""Train the space of style and its thresholds: many voices, each speaking about many things.

Voices are generated replies (several instructions and temperatures), the same replies said with
random habits (`drift_voices`), some topics laid out in a way of their own (`drift_layouts`);
passages of books; and replies written one by one in sixteen voices. The space is learned on some
voices. On others, kept apart, pairs of samples are drawn: of one voice whose topics differ between
the two (these set the thresholds, so that a shift of topic stays below them), and of two voices.
"""

from __future__ import annotations

import gzip
import json
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from mlx_companion.errors import ConfigError, DataError
from mlx_companion.personality.words import sentences
from mlx_companion.slm.drift_layouts import LAYOUTS, laid_out
from mlx_companion.slm.drift_metric import StyleJudge, StyleMetric, evidence, fit_metric
from mlx_companion.slm.drift_statistics import TwoSample, permutation_test
from mlx_companion.slm.drift_style import style_matrix
from mlx_companion.slm.drift_voices import Voice, random_voice
from mlx_companion.slm.linear import fit_logistic

_SIZES = (5, 8, 12, 24, 48)
# Comparisons of each kind from which a threshold is set.
_FEWEST = 15
# Characters of a passage of prose.
_SHORTEST, _LONGEST = 60, 1500


@dataclass(frozen=True)
class SpokenReply:
    """A reply with what is known of it."""

    voice: str
    topic: str
    text: str


@dataclass(frozen=True)
class StyleTraining:
    """Settings of training the space of style.

    Args:
        voices: voices with random habits.
        replies: replies of each.
        layouts: share of a voice's topics that have a layout of their own (`drift_layouts`).
        dimensions, topic_weight: see `fit_metric`.
        pairs: comparisons drawn of each kind and size.
        level: false alarms aimed at in one comparison of the whole.
        seed: of every choice made by chance.
    """

    voices: int = 160
    replies: int = 48
    layouts: float = 0.4
    dimensions: int = 20
    topic_weight: float = 4.0
    pairs: int = 1200
    level: float = 0.015
    seed: int = 0


@dataclass(frozen=True)
class TrainedStyle:
    """What training gave."""

    metric: StyleMetric
    judge: StyleJudge
    metrics: dict[str, Any] = field(default_factory=dict)


def read_replies() -> list[SpokenReply]:
    """Generated replies that come with the package."""
    return _spoken("replies.jsonl")


def read_voices() -> list[SpokenReply]:
    """Written replies that come with the package: sixteen voices, thirty replies of each.

    Each is about something else; five in a row count as one topic.
    """
    said = _spoken("voices.jsonl")
    return [SpokenReply(one.voice, str(at // 5), one.text) for at, one in enumerate(said)]


def _spoken(name: str) -> list[SpokenReply]:
    path = resources.files("mlx_companion.slm") / "data/drift_training" / name
    return [SpokenReply(**json.loads(line)) for line in path.read_text("utf-8").splitlines()]


def read_comments(data: str | Path, seed: int = 0) -> list[str]:
    """Comments of GoEmotions, in an order made by chance.

    Raises:
        DataError: the folder has none.
    """
    path = Path(data) / "goemotions" / "train.tsv"
    if not path.is_file():
        raise DataError("expected goemotions/train.tsv in the data folder", path=data)
    rows = [line.split("\t")[0] for line in path.read_text(encoding="utf-8").splitlines()]
    random.Random(seed).shuffle(rows)
    return rows


def read_prose(data: str | Path, passages: int = 120, parts: int = 6) -> list[SpokenReply]:
    """Passages of books: the author is the voice, the part of the book the topic.

    Raises:
        DataError: the folder has none.
    """
    books = sorted((Path(data) / "prose" / "train").glob("*.txt.gz"))
    if not books:
        raise DataError("expected prose/train/*.txt.gz in the data folder", path=data)
    found: list[SpokenReply] = []
    for book in books:
        rng = random.Random(book.name)
        whole = gzip.decompress(book.read_bytes()).decode()
        said = [one for one in whole.split("\n\n") if _SHORTEST < len(one) < _LONGEST]
        for part in range(parts):
            first = part * len(said) // parts
            for text in said[first : first + passages // parts]:
                kept = sentences(" ".join(text.split()))[: rng.choice([1, 2, 3, 4])]
                found.append(SpokenReply(book.name, str(part), " ".join(kept)))
    return found


def train_style(config: StyleTraining, prose: Sequence[SpokenReply] = ()) -> TrainedStyle:
    """Learn space and thresholds.

    Args:
        config: settings.
        prose: further voices; see `read_prose`.
    """
    spoken = _for_occasions([*_voices(config), *read_voices(), *prose], config)
    features = style_matrix([one.text for one in spoken])
    voices = sorted({one.voice for one in spoken})
    kept = set(random.Random(config.seed).sample(voices, max(2, len(voices) // 3)))
    learned = [i for i, one in enumerate(spoken) if one.voice not in kept]
    metric = fit_metric(
        features[learned],
        [spoken[i].voice for i in learned],
        [spoken[i].topic for i in learned],
        dimensions=config.dimensions,
        topic_weight=config.topic_weight,
    )
    places = metric.project(features)
    cells: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for i, one in enumerate(spoken):
        if one.voice in kept:
            cells[one.voice][one.topic].append(i)
    judge, metrics = _fit_judge(config, places, cells)
    return TrainedStyle(metric, judge, metrics | {"voices": len(voices)})


def _voices(config: StyleTraining) -> list[SpokenReply]:
    rng = random.Random(config.seed)
    groups: dict[str, list[SpokenReply]] = defaultdict(list)
    for reply in read_replies():
        groups[reply.voice].append(reply)
    said = [reply for group in groups.values() for reply in group]
    for number in range(config.voices):
        voice = random_voice(number, rng.choice([0.3, 0.6, 0.9]), rng.choice([2, 4, 6]))
        base = groups[rng.choice(sorted(groups))]
        said += _speak(voice, f"made-{number}", base, config.replies, rng)
    return said


def _for_occasions(spoken: Sequence[SpokenReply], config: StyleTraining) -> list[SpokenReply]:
    """Some topics of each voice, laid out in a way of their own; not all of their replies."""
    said = []
    for one in spoken:
        occasion = random.Random(f"{config.seed} {one.voice} {one.topic}")
        chosen, share = occasion.random() < config.layouts, occasion.uniform(0.3, 0.9)
        layout = occasion.choice(LAYOUTS)
        rng = random.Random(f"{config.seed} {one.voice} {one.text}")
        text = laid_out(one.text, layout, rng) if chosen and rng.random() < share else one.text
        said.append(SpokenReply(one.voice, one.topic, text))
    return said


def _speak(
    voice: Voice, name: str, base: Sequence[SpokenReply], count: int, rng: random.Random
) -> list[SpokenReply]:
    chosen = rng.sample(list(base), min(count, len(base)))
    return [SpokenReply(name, one.topic, voice.say(one.text, rng)) for one in chosen]


def _fit_judge(
    config: StyleTraining, places: np.ndarray, cells: dict[str, dict[str, list[int]]]
) -> tuple[StyleJudge, dict[str, Any]]:
    rng = random.Random(config.seed + 1)
    same: dict[int, list[TwoSample]] = {size: [] for size in _SIZES}
    other: dict[int, list[TwoSample]] = {size: [] for size in _SIZES}
    names = sorted(cells)
    for size in _SIZES:
        for _ in range(config.pairs):
            one, two = rng.choice(names), rng.choice(names)
            _compare(same[size], places, cells[one], cells[one], size, rng)
            if one != two:
                _compare(other[size], places, cells[one], cells[two], size, rng)
    sizes = [size for size in _SIZES if min(len(same[size]), len(other[size])) >= _FEWEST]
    if not sizes:
        raise ConfigError(
            f"{config.voices} voices with {config.replies} replies give too few comparisons; "
            "raise style.voices, style.replies or style.pairs"
        )
    rows = [(evidence(f), label) for size in sizes for f, label in _labelled(same, other, size)]
    weights = _weights(np.array([row for row, _ in rows]), np.array([label for _, label in rows]))
    judge = StyleJudge(weights, (1.0,), (0.0,))
    thresholds = [
        float(np.quantile([judge.score(f) for f in same[size]], 1 - config.level)) for size in sizes
    ]
    judge = StyleJudge(weights, tuple(map(float, sizes)), tuple(thresholds))
    metrics = {
        f"detection_at_{size}": round(
            float(np.mean([judge.score(f) > limit for f in other[size]])), 3
        )
        for size, limit in zip(sizes, thresholds, strict=True)
    }
    return judge, metrics


def _labelled(
    same: dict[int, list[TwoSample]], other: dict[int, list[TwoSample]], size: int
) -> list[tuple[TwoSample, int]]:
    return [(one, 0) for one in same[size]] + [(one, 1) for one in other[size]]


def _weights(rows: np.ndarray, labels: np.ndarray) -> tuple[float, ...]:
    head = fit_logistic([rows], labels, penalties=1e-3, classes=2)
    # More distance is never less evidence.
    found = np.maximum(head.weights[0][:, 0], 0.0)
    return tuple(float(x) for x in found / max(found.sum(), 1e-9))


def _compare(
    into: list[TwoSample],
    places: np.ndarray,
    first: dict[str, list[int]],
    second: dict[str, list[int]],
    size: int,
    rng: random.Random,
) -> None:
    """One comparison whose two samples share no topic, when there are enough replies for it."""
    topics = sorted(set(first) | set(second))
    rng.shuffle(topics)
    half = set(topics[: len(topics) // 2])
    one = [i for topic, rows in sorted(first.items()) if topic in half for i in rows]
    two = [i for topic, rows in sorted(second.items()) if topic not in half for i in rows]
    if min(len(one), len(two)) < size:
        return
    samples = places[rng.sample(one, size)], places[rng.sample(two, size)]
    into.append(permutation_test(*samples, permutations=99, seed=rng.randrange(1 << 30)))
