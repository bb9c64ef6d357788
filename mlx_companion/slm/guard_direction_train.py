"""Trains the head that tells stage directions from emphasis, for the pack of the guard.

    arrays, settings, metrics = train_directions(sentences, pages, seed=7)

The rows come from `guard_direction_rows`. Those of one pattern, line or verb share a fold, so that
the figures are for wordings that were not seen. They are harder than replies are: half of what
stands there alone looks like an action and is none.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from mlx_companion.slm.guard_actions import can_be_action, ruled_action
from mlx_companion.slm.guard_direction_rows import Row, direction_rows, narrated
from mlx_companion.slm.guard_directions import ARRAYS, features_text
from mlx_companion.slm.guard_marked import pieces
from mlx_companion.slm.guard_stage import Stage
from mlx_companion.slm.guard_text import Draft, GuardRules
from mlx_companion.slm.linear import fit_logistic, out_of_fold
from mlx_companion.slm.ngrams import NGramConfig, NGrams

ROWS = 24000
# Chosen on replies written for it (`tests/slm/test_slm_guard_directions.py`).
KEEP = 0.4
OVERRULE = 1.0
_NGRAMS = NGramConfig(char=(0, 0), words=(1, 1), word_columns=1 << 15)
_PENALTY = 3e-6
_FOLDS = 5


def train_directions(
    sentences: Sequence[str],
    pages: Iterable[str],
    rules: GuardRules,
    *,
    count: int = ROWS,
    seed: int = 7,
) -> tuple[dict[str, np.ndarray], dict[str, Any], dict[str, float]]:
    """Train the head.

    Args:
        sentences: ordinary ones, to set the marked pieces into.
        pages: of novels, for their verbs.
        rules: of the guard; what they say is a feature.
        count: rows of each class.
        seed: of the rows.

    Returns:
        Arrays and settings for the pack, and held-out figures.
    """
    rows = direction_rows(sentences, narrated(pages), count, seed)
    read = [(row, *features) for row in rows if (features := _features(row, rules)) is not None]
    labels = np.array([int(row.label) for row, _, _ in read])
    ruled = np.array([said for _, _, said in read])
    table = NGrams(_NGRAMS).transform([text for _, text, _ in read])
    folds = np.array([zlib.crc32(row.source.encode()) % _FOLDS for row, _, _ in read])
    logits = out_of_fold([table], labels, folds, penalties=_PENALTY)[:, 0]
    head = fit_logistic([table], labels, penalties=_PENALTY)
    settings = {"ngrams": asdict(_NGRAMS), "keep": KEEP, "overrule": OVERRULE}
    fired = logits >= np.where(ruled, KEEP, OVERRULE)
    metrics = {
        "direction_recall": _share(fired[labels == 1]),
        "direction_false_alarms": _share(fired[labels == 0]),
        "direction_recall_of_rules": _share(ruled[labels == 1]),
        "direction_false_alarms_of_rules": _share(ruled[labels == 0]),
    }
    return head.to_arrays(ARRAYS, "int8"), {ARRAYS: settings}, metrics


def _features(row: Row, rules: GuardRules) -> tuple[str, bool] | None:
    piece = next((one for one in pieces(Draft(row.text)) if one.start == row.start), None)
    if piece is None or not can_be_action(piece):
        return None
    stage = Stage(piece.words, piece.content, rules)
    ruled = ruled_action(piece, rules, stage)
    return features_text(piece, stage, ruled), ruled


def _share(hits: np.ndarray) -> float:
    return round(float(hits.mean()), 4)
