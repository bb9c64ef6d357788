"""The figures of `slm_accuracy`: rates with intervals, calibration, the surest answers.

binary(gold, found)          accuracy, precision, recall, F1, false positives of a yes or no
counts(rows)                 the same for things found in texts, several in each
calibration(gold, chance)    calibration error and the points of a reliability plot
pooled(calibrations)         those of several sets as one
surest(gold, chance)         accuracy and false positives on the surest 85 %
concordance(gold, value)     how often a higher label has the higher value

Intervals are for 95 %: Wilson's for shares, percentiles of 2,000 resamples (seeded) for F1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np

RESAMPLES, SEED, Z = 2000, 7, 1.959964
SURE_SHARE, BINS = 0.85, 10

Share = dict[str, float | None]


@dataclass(frozen=True)
class Found:
    """What was found in one text.

    Attributes:
        right: of the things found, how many are there.
        found: how many were found.
        hit: of the things there, how many were found.
        there: how many are there.
    """

    right: int
    found: int
    hit: int
    there: int


def share(count: int, total: int) -> Share:
    """A share with Wilson's interval; all None when there is nothing to divide by.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    if total == 0:
        return {"value": None, "low": None, "high": None, "of": 0}
    p, n = count / total, total
    middle = (p + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    return {"value": p, "low": max(0.0, middle - half), "high": min(1.0, middle + half), "of": n}


def binary(gold: Sequence[bool], found: Sequence[bool]) -> dict[str, Any]:
    """Rates of a yes-or-no answer.

    Args:
        gold: what is so.
        found: what was said.
    """
    is_so, said = np.array(gold, dtype=bool), np.array(found, dtype=bool)
    both = int((is_so & said).sum())
    return {
        "accuracy": share(int((is_so == said).sum()), len(is_so)),
        "precision": share(both, int(said.sum())),
        "recall": share(both, int(is_so.sum())),
        "f1": _f1(np.stack([is_so & said, said, is_so & said, is_so], axis=1).astype(int)),
        "false_positives": share(int((said & ~is_so).sum()), int((~is_so).sum())),
    }


def counts(rows: Sequence[Found]) -> dict[str, Any]:
    """Precision, recall and F1 of things found in texts, over all texts together."""
    table = np.array([astuple(row) for row in rows])
    right, found, hit, there = (int(n) for n in table.sum(axis=0))
    return {
        "precision": share(right, found),
        "recall": share(hit, there),
        "f1": _f1(table),
    }


def calibration(gold: Sequence[bool], chance: Sequence[float]) -> dict[str, Any]:
    """Expected calibration error over ten bins of equal width, and the bins.

    Args:
        gold: what is so.
        chance: the probability given for it, 0 to 1.
    """
    is_so, given = np.array(gold, dtype=float), np.array(chance)
    places = np.minimum((given * BINS).astype(int), BINS - 1)
    bins = [
        {
            "chance": float(given[places == place].mean()),
            "share": float(is_so[places == place].mean()),
            "rows": int((places == place).sum()),
        }
        for place in range(BINS)
        if (places == place).any()
    ]
    error = sum(abs(one["chance"] - one["share"]) * one["rows"] for one in bins) / len(is_so)
    return {
        "calibration_error": error,
        "brier": float(((given - is_so) ** 2).mean()),
        "reliability": bins,
    }


def pooled(calibrations: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Calibration error and points of several sets together, from what `calibration` gave."""
    points = [point for one in calibrations for point in one["reliability"]]
    bins = []
    for place in range(BINS):
        own = [one for one in points if min(int(one["chance"] * BINS), BINS - 1) == place]
        rows = sum(one["rows"] for one in own)
        if rows:
            means = {
                name: sum(one[name] * one["rows"] for one in own) / rows
                for name in ("chance", "share")
            }
            bins.append({**means, "rows": rows})
    off = sum(abs(one["chance"] - one["share"]) * one["rows"] for one in bins)
    return {"calibration_error": off / sum(one["rows"] for one in bins), "reliability": bins}


def surest(gold: Sequence[bool], chance: Sequence[float]) -> dict[str, Any]:
    """Accuracy and false positives on the answers that are furthest from even odds."""
    is_so, given = np.array(gold, dtype=bool), np.array(chance)
    kept = np.argsort(-np.abs(given - 0.5), kind="stable")[: round(SURE_SHARE * len(is_so))]
    rates = binary(is_so[kept].tolist(), (given[kept] >= 0.5).tolist())
    return {"accuracy": rates["accuracy"], "false_positives": rates["false_positives"]}


def concordance(gold: Sequence[int], value: Sequence[float]) -> float:
    """Of all pairs with different labels, the share where the higher label has the higher value."""
    label, given = np.array(gold), np.array(value)
    higher = label[:, None] > label[None, :]
    above = (given[:, None] > given[None, :]) + 0.5 * (given[:, None] == given[None, :])
    return float(above[higher].mean())


def _f1(table: np.ndarray) -> Share:
    """F1 over texts with its interval; the columns are those of `Found`."""
    rng = np.random.default_rng(SEED)
    # How often each text is drawn in each resample: one product sums all of them.
    times = rng.multinomial(len(table), np.full(len(table), 1 / len(table)), RESAMPLES)
    low, high = np.percentile(_f1_of_sums(times @ table), [2.5, 97.5])
    value = float(_f1_of_sums(table.sum(axis=0, keepdims=True))[0])
    return {"value": value, "low": float(low), "high": float(high), "of": len(table)}


def _f1_of_sums(sums: np.ndarray) -> np.ndarray:
    right, found, hit, there = sums.astype(float).T
    precision, recall = right / np.maximum(found, 1), hit / np.maximum(there, 1)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return np.where((found == 0) & (there == 0), 1.0, f1)
