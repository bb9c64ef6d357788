"""The space in which voices are compared, and how far apart is too far.

`StyleMetric` scales the style features and turns them so that voices lie apart while replies of
one voice about different things lie together: Fisher's linear discriminants, where what varies
within a voice includes what varies between its topics. `StyleJudge` then says whether two samples
are farther apart than a shift of topic brings about, with thresholds that depend on how many
replies there are::

    metric = StyleMetric.from_arrays(pack.arrays)
    found = permutation_test(metric.project(before), metric.project(after))
    judge.score(found) > judge.threshold(len(before), len(after))

Source: Hatch, Kajarekar and Stolcke, "Within-Class Covariance Normalization for SVM-Based Speaker
Recognition", 2006, for suppressing variation within a voice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlx_companion.errors import SLMError
from mlx_companion.slm.drift_statistics import TwoSample

_CLIP = 5.0


@dataclass(frozen=True)
class StyleMetric:
    """From style features to the space of voices.

    Attributes:
        center, scale: (F,) of the features, over all voices and within one.
        turn: (F, K) projection; within a voice every direction has variance 1.
    """

    center: np.ndarray
    scale: np.ndarray
    turn: np.ndarray

    def scaled(self, features: np.ndarray) -> np.ndarray:
        """Features (N, F) in deviations within a voice, outliers cut off."""
        return np.clip((features - self.center) / self.scale, -_CLIP, _CLIP)

    def project(self, features: np.ndarray) -> np.ndarray:
        """Features (N, F) in the space of voices (N, K)."""
        return np.asarray(self.scaled(features) @ self.turn)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Arrays for a pack."""
        kept = {"center": self.center, "scale": self.scale, "turn": self.turn}
        return {f"style.{name}": value.astype(np.float32) for name, value in kept.items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], features: int) -> StyleMetric:
        """What `to_arrays` gave.

        Raises:
            SLMError: arrays are missing or made for other features.
        """
        try:
            parts = [
                np.asarray(arrays[f"style.{name}"], dtype=np.float64)
                for name in ("center", "scale", "turn")
            ]
        except KeyError as error:
            raise SLMError(f"the pack lacks the array {error}; restore it or train again") from None
        if any(len(part) != features for part in parts):
            raise SLMError(f"the pack's style space is not of {features} features; train it again")
        return cls(*parts)


@dataclass(frozen=True)
class StyleJudge:
    """Whether two samples are farther apart than a topic shift makes them.

    Attributes:
        weights: of the square root of z_mean, of z_energy and of the effect.
        sizes: numbers of replies (harmonic mean of the two samples), ascending.
        thresholds: for whole comparisons, one per size.
    """

    weights: tuple[float, ...]
    sizes: tuple[float, ...]
    thresholds: tuple[float, ...]

    def score(self, found: TwoSample) -> float:
        """How far apart, 0 for not at all."""
        return float(np.dot(self.weights, evidence(found)))

    def threshold(self, first: int, second: int) -> float:
        """Scores of one voice stay below, for samples of these sizes."""
        size = np.log(2 / (1 / first + 1 / second))
        return float(np.interp(size, np.log(self.sizes), self.thresholds))

    def to_settings(self) -> dict[str, Any]:
        """JSON values for a pack."""
        return {
            "weights": list(self.weights),
            "sizes": list(self.sizes),
            "thresholds": list(self.thresholds),
        }

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> StyleJudge:
        """What `to_settings` gave.

        Raises:
            SLMError: they do not fit together.
        """
        try:
            parts = [
                tuple(float(x) for x in settings[name])
                for name in ("weights", "sizes", "thresholds")
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise SLMError(f"the pack has no thresholds of style ({error}); restore it") from None
        if len(parts[1]) != len(parts[2]) or list(parts[1]) != sorted(parts[1]):
            raise SLMError("the pack's thresholds of style do not fit its sizes; restore it")
        return cls(*parts)


def evidence(found: TwoSample) -> np.ndarray:
    """(3,) what a judge weighs; roots tame the long tails of plain differences."""
    values = [found.z_mean, found.z_energy, found.effect]
    return np.sqrt(np.maximum(values, 0))


def fit_metric(
    features: np.ndarray,
    voices: Sequence[Any],
    topics: Sequence[Any],
    *,
    dimensions: int = 12,
    topic_weight: float = 4.0,
    shrink: float = 0.1,
) -> StyleMetric:
    """Learn the space from replies whose voice and topic are known.

    Args:
        features: (N, F) style features.
        voices, topics: (N,) labels.
        dimensions: K.
        topic_weight: how strongly directions in which topics differ are avoided.
        shrink: share of a plain diagonal in the covariance within voices.
    """
    voice, cell = _codes(voices), _codes(list(zip(voices, topics, strict=True)))
    center = features.mean(axis=0)
    residual = features - _group_means(features, voice)[voice]
    scale = np.maximum(residual.std(axis=0), 0.05 * features.std(axis=0) + 1e-3)
    rows = np.clip((features - center) / scale, -_CLIP, _CLIP)
    means = _group_means(rows, voice)
    cells = _group_means(rows, cell)
    owner = np.zeros(len(cells), dtype=int)
    owner[cell] = voice
    within = np.cov((rows - means[voice]).T, bias=True)
    between_topics = np.cov((cells - means[owner]).T, bias=True)
    noise = within + topic_weight * between_topics
    noise = (1 - shrink) * noise + shrink * np.diag(np.diag(noise) + 1e-3)
    whiten = np.linalg.inv(np.linalg.cholesky(noise)).T
    spread = np.cov((means - means.mean(axis=0)).T, bias=True)
    values, vectors = np.linalg.eigh(whiten.T @ spread @ whiten)
    order = np.argsort(values)[::-1][:dimensions]
    return StyleMetric(center, scale, whiten @ vectors[:, order])


def _codes(labels: Sequence[Any]) -> np.ndarray:
    known: dict[Any, int] = {}
    return np.array([known.setdefault(label, len(known)) for label in labels])


def _group_means(rows: np.ndarray, codes: np.ndarray) -> np.ndarray:
    sums = np.zeros((codes.max() + 1, rows.shape[1]))
    np.add.at(sums, codes, rows)
    return np.asarray(sums / np.bincount(codes)[:, None])
