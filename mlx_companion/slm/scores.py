"""How good a yes-or-no head is on rows that it has not seen: one set of figures for all heads.

    scores = binary_scores(probabilities, labels)
    scores.accuracy, scores.accuracy_range           # with a 95 % bootstrap interval
    scores.surest_accuracy                           # of the 85 % that it is surest of
    reliability_svg(probabilities, labels, "Research")   # a picture

The calibration error is the mean distance between how sure the head says it is and how often it
is right, over ten groups of equally many rows (expected calibration error, equal mass).

Source: Naeini et al., "Obtaining Well Calibrated Probabilities Using Bayesian Binning", 2015.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

_GROUPS = 10
_SIZE, _EDGE = 300, 40


@dataclass(frozen=True)
class BinaryScores:
    """Figures of one set of rows; shares from 0 to 1, NaN where there are no such rows.

    Attributes:
        rows: how many.
        positive: share of positive labels.
        accuracy, recall, precision, false_positive_rate: of all rows.
        calibration_error: see the module.
        surest_share: part of the rows that the next two are of.
        surest_accuracy, surest_false_positive_rate: of the rows with the surest answers.
        accuracy_range, surest_accuracy_range, surest_false_positive_range: 95 % intervals.
    """

    rows: int
    positive: float
    accuracy: float
    recall: float
    precision: float
    false_positive_rate: float
    calibration_error: float
    surest_share: float
    surest_accuracy: float
    surest_false_positive_rate: float
    accuracy_range: tuple[float, float]
    surest_accuracy_range: tuple[float, float]
    surest_false_positive_range: tuple[float, float]

    def to_dict(self) -> dict[str, Any]:
        """JSON values, rounded to four decimals; None for what could not be measured."""
        return {name: _json(value) for name, value in dataclasses.asdict(self).items()}


class ReliabilityPoint(NamedTuple):
    """A group of rows: mean confidence, share that was right, how many."""

    confidence: float
    right: float
    rows: int


def binary_scores(
    probabilities: np.ndarray,
    labels: np.ndarray,
    *,
    surest: float = 0.85,
    samples: int = 1000,
    seed: int = 0,
) -> BinaryScores:
    """Figures of held-out rows.

    Args:
        probabilities: (N,) of the positive label; 0.5 and above answers yes.
        labels: (N,) 0 or 1.
        surest: share of rows that count as the surest.
        samples: of the bootstrap.
        seed: of the bootstrap.
    """
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(labels).astype(int)
    top = surest_rows(p, surest)
    said = p >= 0.5
    return BinaryScores(
        rows=len(p),
        positive=float(y.mean()),
        accuracy=_accuracy(p, y),
        recall=_share(said, y == 1),
        precision=_share(y == 1, said),
        false_positive_rate=_false_positives(p, y),
        calibration_error=calibration_error(p, y),
        surest_share=surest,
        surest_accuracy=_accuracy(p[top], y[top]),
        surest_false_positive_rate=_false_positives(p[top], y[top]),
        accuracy_range=_bootstrap(_accuracy, p, y, samples, seed),
        surest_accuracy_range=_bootstrap(_accuracy, p[top], y[top], samples, seed),
        surest_false_positive_range=_bootstrap(_false_positives, p[top], y[top], samples, seed),
    )


def surest_rows(probabilities: np.ndarray, share: float) -> np.ndarray:
    """Indices of the rows with the surest answers, surest first."""
    order = np.argsort(-np.abs(probabilities - 0.5), kind="stable")
    return order[: round(share * len(order))]


def calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Expected calibration error of the answers, equal-mass groups."""
    points = reliability(probabilities, labels)
    rows = sum(point.rows for point in points)
    return sum(abs(c - right) * n for c, right, n in points) / max(rows, 1)


def reliability(
    probabilities: np.ndarray, labels: np.ndarray, groups: int = _GROUPS
) -> list[ReliabilityPoint]:
    """How sure the answers are, and how often right, in groups of equally many rows."""
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(labels).astype(int)
    confidence, right = np.maximum(p, 1 - p), (p >= 0.5) == y
    order = np.argsort(confidence, kind="stable")
    return [
        ReliabilityPoint(float(confidence[part].mean()), float(right[part].mean()), len(part))
        for part in np.array_split(order, min(groups, max(len(p), 1)))
        if len(part)
    ]


def reliability_svg(probabilities: np.ndarray, labels: np.ndarray, title: str) -> str:
    """A reliability plot: confidence against the share that was right; the line is perfect."""
    points = reliability(probabilities, labels)
    error = calibration_error(probabilities, labels)
    width = _SIZE + 2 * _EDGE
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {width}" '
        f'width="{2 * width}" height="{2 * width}" '
        'font-family="sans-serif" font-size="11" fill="#333">',
        f"<title>{title}: confidence and accuracy</title>",
        f'<rect width="{width}" height="{width}" fill="#fff"/>',
        *_axes(),
        f'<text x="{width / 2}" y="14" text-anchor="middle">{title}</text>',
        f'<text x="{width / 2}" y="28" text-anchor="middle" font-size="9">calibration error '
        f"{100 * error:.1f} %, {len(labels):,} rows</text>",
        *_marks(points),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _axes() -> Iterator[str]:
    first, last = _EDGE, _EDGE + _SIZE
    yield f'<path d="M{first} {first}V{last}H{last}" fill="none" stroke="#999"/>'
    yield f'<path d="M{first} {last}L{last} {first}" stroke="#bbb" stroke-dasharray="4 4"/>'
    for tick in (0.5, 0.6, 0.7, 0.8, 0.9, 1.0):
        yield f'<text x="{_place(tick)}" y="{last + 14}" text-anchor="middle">{tick}</text>'
        yield f'<text x="{first - 6}" y="{_EDGE + last - _place(tick) + 4}" text-anchor="end">'
        yield f"{tick}</text>"
    middle = _EDGE + _SIZE / 2
    yield f'<text x="{middle}" y="{last + 32}" text-anchor="middle">confidence</text>'
    yield f'<text transform="translate(11 {middle}) rotate(-90)" text-anchor="middle">right</text>'


def _marks(points: list[ReliabilityPoint]) -> Iterator[str]:
    places = [(_place(c), 2 * _EDGE + _SIZE - _place(right)) for c, right, _ in points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    yield f'<polyline points="{path}" fill="none" stroke="#2266aa"/>'
    for (x, y), point in zip(places, points, strict=True):
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="#2266aa">'
        yield f"<title>{point.confidence:.3f} sure, {point.right:.3f} right, {point.rows} rows"
        yield "</title></circle>"


def _place(share: float) -> float:
    """Along an axis that goes from 0.5 to 1."""
    return _EDGE + _SIZE * min(max(2 * share - 1, 0.0), 1.0)


def _accuracy(p: np.ndarray, y: np.ndarray) -> float:
    return _share((p >= 0.5) == y, np.ones(len(y), dtype=bool))


def _false_positives(p: np.ndarray, y: np.ndarray) -> float:
    return _share(p >= 0.5, y == 0)


def _share(wanted: np.ndarray, among: np.ndarray) -> float:
    return float(wanted[among].mean()) if among.any() else math.nan


def _bootstrap(
    measure: Callable[[np.ndarray, np.ndarray], float],
    p: np.ndarray,
    y: np.ndarray,
    samples: int,
    seed: int,
) -> tuple[float, float]:
    rng = np.random.default_rng(seed)
    drawn = (rng.integers(0, len(y), len(y)) for _ in range(samples))
    values = [measure(p[rows], y[rows]) for rows in drawn]
    values = [value for value in values if not math.isnan(value)]
    if not values:
        return math.nan, math.nan
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def _json(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_json(one) for one in value]
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, 4)
    return value
