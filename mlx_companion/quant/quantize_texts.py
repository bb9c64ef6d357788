"""Which text a quantization uses for what: to calibrate, to train scales, to choose, to measure.

Texts are cut into windows. Some windows of the calibration are kept back, to choose by: a recipe
is never judged on what it was made with. What the report measures is other text altogether.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_companion.errors import ConfigError, DataError
from mlx_companion.quant.quantize_subjects import Subject

_EXAMPLE_TEXT = Path(__file__).parent.parent / "loop" / "data" / "general_text.txt"
_EVALUATION_SHARE = 5
_CHOOSING_ROWS, _CHOOSING_SHARE = 4, 4


@dataclass(frozen=True)
class Amounts:
    """Tokens: per window, and the most to calibrate on, to train on and to measure on.

    `training` is None for as many as `calibration`.

    Raises:
        ConfigError: a number that is too small.
    """

    window: int = 256
    calibration: int = 8192
    training: int | None = None
    evaluation: int = 4096

    def __post_init__(self) -> None:
        negative = self.training is not None and self.training < 0
        if min(self.window, self.calibration, self.evaluation) < 2 or negative:
            raise ConfigError(
                f"a window of {self.window} and {self.calibration}, {self.training} and "
                f"{self.evaluation} tokens to calibrate, train and measure on: numbers have to be "
                "positive, and at least 2 but for training"
            )


@dataclass(frozen=True)
class Texts:
    """Windows (N, L) for each purpose; those to train on may be none."""

    calibration: mx.array
    training: mx.array
    choosing: mx.array
    evaluation: mx.array


def choose_texts(
    subject: Subject,
    calibration: Sequence[str] | None,
    evaluation: Sequence[str] | None,
    amounts: Amounts,
    seed: int,
) -> Texts:
    """Windows of texts.

    Args:
        subject: the model, whose tokens they become.
        calibration: None for a few pages that come with the package.
        evaluation: None for the last fifth of `calibration`.
        amounts: how many tokens.
        seed: decides which windows are taken, and their order.

    Raises:
        DataError: too little text.
    """
    for name, value in (("calibration", calibration), ("evaluation", evaluation)):
        if isinstance(value, str) or (value is not None and not len(value)):
            raise DataError(f"{name} has to be a list of texts, with at least one")
    given = _example_texts() if calibration is None else list(calibration)
    if evaluation is None:
        given, evaluation = _split(given)
    rows = subject.windows(given, amounts.window)
    length = rows.shape[1]
    training = amounts.calibration if amounts.training is None else amounts.training
    most = max(1, max(amounts.calibration, training) // length)
    rows = rows[mx.array(np.random.default_rng(seed).permutation(len(rows))[:most])]
    held = min(_CHOOSING_ROWS, len(rows) // _CHOOSING_SHARE)
    used, choosing = (rows[:-held], rows[-held:]) if held else (rows, rows)
    return Texts(
        used[: max(1, amounts.calibration // length)],
        used[: training // length],
        choosing,
        evenly(subject.windows(evaluation, amounts.window), amounts.evaluation),
    )


def evenly(rows: mx.array, tokens: int) -> mx.array:
    """So many tokens, taken evenly from all rows."""
    count = min(len(rows), max(1, tokens // rows.shape[1]))
    return rows[mx.array(np.linspace(0, len(rows) - 1, count).astype(int))]


def _example_texts() -> list[str]:
    return _EXAMPLE_TEXT.read_text(encoding="utf-8").split("\n\n")


def _split(texts: list[str]) -> tuple[list[str], list[str]]:
    """Four fifths and the last fifth; a text on its own is cut."""
    if len(texts) == 1:
        cut = len(texts[0]) * (_EVALUATION_SHARE - 1) // _EVALUATION_SHARE
        return [texts[0][:cut]], [texts[0][cut:]]
    # An encoder needs two texts to compare.
    held = max(2 if len(texts) > 3 else 1, len(texts) // _EVALUATION_SHARE)
    return texts[:-held], texts[-held:]
