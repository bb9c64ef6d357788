"""Trains the context tracker: sense check, formality, mood, topic, depth; writes its pack.

    train_tracker(Sources(Path("data"), encoder_vectors("minilm")), "runs/tracker")

This is what `recipes/train_tracker.py` does. Every figure in the pack is of rows that the head
which scored them had not seen: of other sentences, other terms, other generators.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlx_companion.slm.formality import formality_blocks
from mlx_companion.slm.linear import (
    Calibration,
    LinearHead,
    Storage,
    fit_logistic,
    fit_platt,
    out_of_fold,
    softmax,
)
from mlx_companion.slm.packs import Pack, save_pack
from mlx_companion.slm.slang import FULL, LIGHT, sense_blocks
from mlx_companion.slm.slang_lexicon import Lexicon, Match
from mlx_companion.slm.tracker_heads import context_blocks
from mlx_companion.slm.tracker_rows import (
    depth_rows,
    formality_rows,
    plain_senses,
    sense_rows,
    topic_rows,
)
from mlx_companion.slm.tracker_sources import Sources, Texts
from mlx_companion.slm.tracker_texts import written
from mlx_companion.slm.tracker_words import WordTable, tokens, word_hash

Trained = tuple[dict[str, np.ndarray], dict[str, Any], dict[str, Any]]
# From here an ambiguous word counts as slang: of what is found, nine in ten are to be right.
_SENSE_THRESHOLDS = {
    LIGHT: {"threshold": 0.65, "unpractised": 0.8, "usual": 0.5},
    FULL: {"threshold": 0.9, "unpractised": 0.93, "usual": 0.6},
}
_SENSE_PENALTIES = {LIGHT: [1e-4, 1e-2], FULL: [1e-4, 5e-2, 1e-1]}
# More change nothing that can be measured.
_SENSE_STEPS = 60
_SENSE_STORAGE: list[Storage] = ["int8", "float32", "float16"]
# Words in books and commands are plain more often than in what people write to each other.
_PLAIN_WEIGHT = 0.5


def train_tracker(
    sources: Sources,
    out: str | Path,
    *,
    version: str = "1",
    say: Callable[[str], None] = lambda line: None,
    card: Callable[[dict[str, Any], Sources], str] | None = None,
) -> Pack:
    """Train every head and write the pack.

    Args:
        sources: texts and vectors.
        out: folder of the pack.
        version: its name.
        say: is told figures as they come.
        card: makes the model card of the figures.

    Raises:
        DataError: a source is missing.
    """
    texts = Texts.read(sources)
    table = WordTable.build(sources.vectors, texts.known)
    lexicon = Lexicon.parse(written("lexicon"))
    arrays: dict[str, np.ndarray] = dict(table.to_arrays())
    settings: dict[str, Any] = {}
    metrics: dict[str, Any] = {}
    for name, train in (("slang", _train_sense), ("formality", _train_formality)):
        trained = train(texts, lexicon, table)
        arrays |= trained[0]
        settings[name], metrics[name] = trained[1], trained[2]
        say(f"{name}: {metrics[name]}")
    for name, rows in (
        ("mood", texts.moods),
        ("topic", topic_rows(texts)),
        ("depth", depth_rows(texts)),
    ):
        arrays_of, settings[name], metrics[name] = _train_classes(name, rows, table, texts)
        arrays |= arrays_of
        say(f"{name}: {metrics[name]}")
    rules = "lexicon: |\n" + "".join(f"  {line}\n" for line in written("lexicon").splitlines())
    return save_pack(
        out,
        "context_tracker",
        version,
        arrays=arrays,
        settings=settings,
        rules=rules,
        metrics=metrics,
        card=None if card is None else card(metrics, sources),
    )


def _folds(names: Sequence[str], folds: int = 5) -> np.ndarray:
    return np.array([word_hash(name) % folds for name in names])


def _train_sense(texts: Texts, lexicon: Lexicon, table: WordTable) -> Trained:
    around = [t for t in texts.comments if len(t) < 90 and not any(_ambiguous(lexicon, t))]
    # What phrases around a word decide never reaches the head, but holds elsewhere as well.
    alone = [e for e in lexicon.entries if not (e.plain or e.before or e.after)]
    lexicon = Lexicon(alone)
    rows = sense_rows(lexicon, texts.rng, around[:3000], texts.every)
    own = len(rows)
    rows += plain_senses(texts, lexicon)
    labels = np.array([row[1] for row in rows])
    weights = np.where(np.arange(len(rows)) < own, 1.0, _PLAIN_WEIGHT)
    folds = {
        "sentences": _folds([row[3] for row in rows], 3),
        "terms": _folds([row[2] for row in rows], 3),
    }
    reader = texts.reader
    blocks = sense_blocks([row[0] for row in rows], table, reader)
    arrays: dict[str, np.ndarray] = {}
    settings: dict[str, Any] = {}
    metrics: dict[str, Any] = {"rows": own, "plain_rows": len(rows) - own}
    for name, penalties in _SENSE_PENALTIES.items():
        if len(penalties) > len(blocks):
            continue
        options = _options(texts, weights, penalties)
        options["max_steps"] = min(texts.max_steps, _SENSE_STEPS)
        read = blocks[: len(penalties)]
        unseen = {
            kind: out_of_fold(read, labels, fold, **options)[:, 0] for kind, fold in folds.items()
        }
        calibration = fit_platt(unseen["sentences"], labels, weights)
        head = fit_logistic(read, labels, **options)
        arrays |= head.to_arrays(name, _SENSE_STORAGE[: len(read)])
        settings[name] = _sigmoid_of(calibration) | _SENSE_THRESHOLDS[name]
        metrics[name] = {
            f"unseen_{kind}": _right(
                calibration(logits)[:own],
                labels[:own],
                _SENSE_THRESHOLDS[name]["threshold" if kind == "sentences" else "unpractised"],
            )
            for kind, logits in unseen.items()
        }
    if reader is not None:
        settings["encoder"] = reader.sha256
    return arrays, settings, metrics


def _counted(match: Match) -> bool:
    return not match.entry.ambiguous and not match.entry.plain


def _ambiguous(lexicon: Lexicon, text: str) -> Iterator[bool]:
    return (True for match in lexicon.matches(tokens(text)) if match.entry.ambiguous)


def _options(texts: Texts, weights: np.ndarray, penalties: list[float]) -> dict[str, Any]:
    return {"penalties": penalties, "row_weights": weights, "max_steps": texts.max_steps}


def _right(shares: np.ndarray, labels: np.ndarray, threshold: float) -> dict[str, float]:
    said = shares >= threshold
    hits = float((said & (labels == 1)).sum())
    return {
        "accuracy": round(float((said == (labels == 1)).mean()), 4),
        "precision": round(hits / max(float(said.sum()), 1.0), 4),
        "recall": round(hits / max(float((labels == 1).sum()), 1.0), 4),
    }


def _sigmoid_of(calibration: Calibration) -> dict[str, float]:
    return {"slope": calibration.slope, "offset": calibration.offset}


def _train_formality(texts: Texts, lexicon: Lexicon, table: WordTable) -> Trained:
    rows = formality_rows(texts)
    slang = [sum(map(_counted, lexicon.matches(tokens(row[0])))) for row in rows]
    blocks = formality_blocks([row[0] for row in rows], table, slang)
    labels = np.array([row[1] for row in rows])
    names = np.array([row[2] for row in rows])
    weights = np.where(names == "pairs", 4.0, 1.0)
    options = _options(texts, weights, [1e-5, 1e-4])
    logits = out_of_fold(blocks, labels, _folds([row[3] for row in rows], 3), **options)[:, 0]
    calibration = fit_platt(logits, labels, weights)
    metrics: dict[str, Any] = {"rows": len(rows)}
    metrics["unseen_contents"] = _right(calibration(logits), labels, 0.5)
    kinds = {str(name): at for at, name in enumerate(sorted(set(names)))}
    # Without a second generator of both registers nothing is left to learn from.
    if sum(len(set(labels[names == name])) > 1 for name in kinds) > 1:
        folds = np.array([kinds[name] for name in names])
        left_out = out_of_fold(blocks, labels, folds, **options)[:, 0]
        metrics["generator_left_out"] = {
            name: _right(calibration(left_out[folds == at]), labels[folds == at], 0.5)
            for name, at in kinds.items()
        }
    head = fit_logistic(blocks, labels, **options)
    return head.to_arrays("formality", ["int8", "float32"]), _sigmoid_of(calibration), metrics


def _train_classes(
    name: str, rows: list[tuple[str, str]], table: WordTable, texts: Texts
) -> Trained:
    names = ["everyday", "user", "specialist"] if name == "depth" else sorted({m for _, m in rows})
    labels = np.array([names.index(label) for _, label in rows])
    blocks = context_blocks([text for text, _ in rows], table)
    shares_of = np.bincount(labels, minlength=len(names)) / len(labels)
    weights = (shares_of[labels] + 1e-9) ** -0.5
    options = _options(texts, weights, [2e-4, 1e-2]) | {"classes": len(names)}
    logits = out_of_fold(blocks, labels, _folds([text for text, _ in rows], 3), **options)
    head = fit_logistic(blocks, labels, **options)
    if logits.shape[1] == 1:
        logits = np.hstack([np.zeros_like(logits), logits])
        head = LinearHead(
            tuple(np.hstack([np.zeros_like(w), w]) for w in head.weights),
            np.array([0.0, float(head.bias[0])], dtype=np.float32),
        )
    temperature = _temperature(logits, labels)
    shares = softmax(logits / temperature)
    threshold = {"mood": 0.45, "topic": 0.4, "depth": 0.0}[name]
    sure = shares.max(axis=1) >= threshold
    right = shares.argmax(axis=1) == labels
    metrics = {
        "rows": len(rows),
        "accuracy": round(float(right.mean()), 4),
        "accuracy_when_clear": round(float(right[sure].mean()) if sure.any() else 0.0, 4),
        "clear": round(float(sure.mean()), 4),
    }
    settings = {"labels": names, "temperature": temperature, "threshold": threshold}
    return head.to_arrays(name, ["int8", "float32"]), settings, metrics


def _temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature at which the held-out rows are likeliest."""
    grid = np.geomspace(0.2, 5.0, 40)
    rows = np.arange(len(labels))
    losses = [-np.log(softmax(logits / t)[rows, labels] + 1e-12).mean() for t in grid]
    return float(grid[int(np.argmin(losses))])
