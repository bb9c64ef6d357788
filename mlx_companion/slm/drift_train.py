"""Train what the drift monitor ships: the heads over messages and replies, and the space of style.

    train_drift("out/pack", DriftTraining(), backbone=shared_backbone())

The heads learn from the sentences in `data/drift_training` (hand-written lines with choices, both
labels in the same words and moods), with Reddit comments (GoEmotions) and generated replies as
further harmless ones where they are given. Folds are cut by line. Probabilities are calibrated on
rows that a head has not seen. The space of style is learned by `drift_train_style`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mlx_companion.errors import ConfigError
from mlx_companion.slm.attachment import NGRAMS, readable
from mlx_companion.slm.backbone import BaseSLMAdapter
from mlx_companion.slm.drift_templates import read_slots, read_templates, variants
from mlx_companion.slm.drift_train_style import StyleTraining, read_replies, train_style
from mlx_companion.slm.linear import Calibration, fit_logistic, fit_platt, out_of_fold
from mlx_companion.slm.ngrams import NGrams
from mlx_companion.slm.packs import Pack, save_pack

# Head -> files of sentences that it looks for, and of those that it must let pass.
_FILES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "user": (("user_attached",), ("user_plain",)),
    "assistant": (("assistant_attached",), ("assistant_plain", "boundary_kept", "polite")),
    "boundary": (("boundary_broken",), ("boundary_kept", "assistant_plain", "polite")),
    "hostile": (("hostile",), ("polite", "boundary_kept", "assistant_plain")),
}
# Heads that read replies of the assistant, for which generated replies are harmless examples.
_OF_REPLIES = ("assistant", "boundary", "hostile")
_FOLDS = 5
_BATCH = 64


@dataclass(frozen=True)
class DriftTraining:
    """Settings of training.

    Args:
        readings: variants made of each hand-written line.
        comments: Reddit comments taken as harmless ones.
        every_reply: one in so many of the generated replies is taken as a harmless one.
        comment_weight: how much a comment or a generated reply counts beside a written line.
        ngram_penalty, backbone_penalty: of the full heads.
        plain_penalty: of the heads over n-grams alone.
        style: see `StyleTraining`.
        seed: of every choice made by chance.
        version: name of the pack.
    """

    readings: int = 5
    comments: int = 400
    every_reply: int = 3
    comment_weight: float = 0.15
    ngram_penalty: float = 1e-4
    backbone_penalty: float = 0.1
    plain_penalty: float = 3e-5
    style: StyleTraining = field(default_factory=StyleTraining)
    seed: int = 0
    version: str = "1"

    def __post_init__(self) -> None:
        if self.readings < 1:
            raise ConfigError(f"readings is {self.readings}; expected 1 or more")


@dataclass(frozen=True)
class _Rows:
    texts: list[str]
    labels: np.ndarray
    lines: np.ndarray
    weights: np.ndarray


def train_drift(
    out: str | Path,
    config: DriftTraining | None = None,
    *,
    backbone: BaseSLMAdapter,
    comments: Sequence[str] = (),
    prose: Sequence[tuple[str, str, str]] = (),
    card: str | None = None,
) -> Pack:
    """Train everything and write a pack.

    Args:
        out: folder of the pack.
        config: settings.
        backbone: whose features the full heads read; they fit no other.
        comments: harmless texts, such as GoEmotions' comments.
        prose: (voice, topic, text) passages of books, as further voices.
        card: model card.

    Raises:
        ConfigError: settings that make no training set.
    """
    config = config or DriftTraining()
    arrays: dict[str, np.ndarray] = {}
    heads: dict[str, Any] = {}
    metrics: dict[str, Any] = {}
    for name in _FILES:
        made = _train_head(name, config, backbone, comments)
        arrays |= made["arrays"]
        heads[name], metrics[name] = made["settings"], made["metrics"]
    style = train_style(config.style, prose)
    settings = {
        "heads": heads,
        "backbone": backbone.identity,
        "style": style.judge.to_settings(),
        "training": asdict(config),
    }
    return save_pack(
        out,
        "drift_monitor",
        config.version,
        arrays=arrays | style.metric.to_arrays(),
        settings=settings,
        metrics=metrics | {"style": style.metrics},
        card=card,
    )


def head_rows(name: str, config: DriftTraining, comments: Sequence[str] = ()) -> _Rows:
    """Texts, labels, line numbers and weights that a head is trained on."""
    slots = read_slots()
    texts: list[str] = []
    labels: list[int] = []
    lines: list[int] = []
    for label, files in zip((1, 0), _FILES[name], strict=True):
        for line in (line for file in files for line in read_templates(file)):
            number = lines[-1] + 1 if lines else 0
            rng = random.Random(f"{config.seed} {line}")
            for text in variants(line, slots, count=config.readings, seed=config.seed):
                texts.append(_as_typed(text, rng))
                labels.append(label)
                lines.append(number)
    written = len(texts)
    others = list(comments[: config.comments])
    if name in _OF_REPLIES:
        others += [reply.text for reply in read_replies()[:: config.every_reply]]
    texts += others
    labels += [0] * len(others)
    lines += range(lines[-1] + 1, lines[-1] + 1 + len(others))
    return _Rows(
        [readable(text) for text in texts],
        np.array(labels),
        np.array(lines),
        _weights(np.array(labels), written, config.comment_weight),
    )


def _weights(labels: np.ndarray, written: int, others: float) -> np.ndarray:
    """Written lines of both labels weigh the same in sum; the others little."""
    weights = np.full(len(labels), others)
    for label in (0, 1):
        own = np.flatnonzero(labels[:written] == label)
        weights[own] = written / (2 * len(own))
    return weights


def _train_head(
    name: str, config: DriftTraining, backbone: BaseSLMAdapter, comments: Sequence[str]
) -> dict[str, Any]:
    rows = head_rows(name, config, comments)
    ngrams = NGrams(NGRAMS).transform(rows.texts)
    features = _features(backbone, rows.texts)
    kinds = {
        "full": ([ngrams, features], [config.ngram_penalty, config.backbone_penalty]),
        "plain": ([ngrams], [config.plain_penalty]),
    }
    arrays: dict[str, np.ndarray] = {}
    settings: dict[str, Any] = {}
    metrics: dict[str, Any] = {"rows": len(rows.texts)}
    for kind, (blocks, penalties) in kinds.items():
        options = {"penalties": penalties, "row_weights": rows.weights, "classes": 2}
        unseen = out_of_fold(blocks, rows.labels, rows.lines % _FOLDS, **options)[:, 0]
        calibration = fit_platt(unseen, rows.labels, rows.weights)
        head = fit_logistic(blocks, rows.labels, **options)
        storage = ["int8", "float16"][: len(blocks)]
        arrays |= head.to_arrays(f"{name}.{kind}", storage)
        settings[kind] = [calibration.slope, calibration.offset]
        metrics[kind] = _measured(calibration, unseen, rows)
    # Messages are single and worth a forward pass; of many replies only the suspicious are.
    settings["floor"] = 0.0 if name == "user" else 0.04
    return {"arrays": arrays, "settings": settings, "metrics": metrics}


def _measured(calibration: Calibration, logits: np.ndarray, rows: _Rows) -> dict[str, float]:
    called = calibration(logits) >= 0.5
    written = rows.weights >= rows.weights[rows.labels == 1][0] * 0.3
    right = called == (rows.labels == 1)
    return {
        "accuracy_on_unseen_lines": round(float(right[written].mean()), 4),
        "false_positives_elsewhere": round(float(called[~written].mean()), 4)
        if (~written).any()
        else 0.0,
    }


def _features(backbone: BaseSLMAdapter, texts: Sequence[str]) -> np.ndarray:
    parts = [backbone.features(texts[i : i + _BATCH]) for i in range(0, len(texts), _BATCH)]
    return np.concatenate(parts)


_EARLY = ("Honestly, ", "hey, ", "ok so ", "lol ", "You know what? ", "I have to say, ", "so ")
_LATE = (" lol", " :)", "...", " haha", " you know?", " just saying", " <3", " ugh")


def _as_typed(text: str, rng: random.Random) -> str:
    """Capitals, apostrophes and end marks as people type them, or do not."""
    way = rng.random()
    if way < 0.5:
        text = re.sub(r"(^|[.!?] )([a-z])", lambda m: m[1] + m[2].upper(), text)
        text = re.sub(r"\bi\b", "I", text)
    elif way < 0.62:
        text = text.replace("'", "")
    if rng.random() < 0.2:
        text = text.rstrip(".!")
    if rng.random() < 0.12:
        text = rng.choice(_EARLY) + text
    return text + rng.choice(_LATE) if rng.random() < 0.12 else text
