"""Linear heads over blocks of features: logistic regression, calibration, small weights.

A head reads any number of feature blocks side by side, sparse ones (n-grams) and dense ones
(hidden states, counts), each with a penalty of its own, because a thousand dense columns and
fifty thousand sparse ones want different ones::

    head = fit_logistic([ngrams, dense], labels, penalties=[1e-5, 1e-2])
    scores = head.logits([ngrams, dense])                    # (N, 1), or (N, C)
    calibration = fit_platt(out_of_fold_logits[:, 0], labels)
    calibration(scores[:, 0])                                # probabilities
    arrays = head.to_arrays("head"); LinearHead.from_arrays(arrays, "head")

Two classes have one column of logits. Probabilities for people come from logits of rows that the
head was not trained on (`out_of_fold`), since a head is always too sure of its own rows.

Sources: Platt, "Probabilistic Outputs for Support Vector Machines", 1999; Zadrozny and Elkan,
"Transforming Classifier Scores into Accurate Multiclass Probability Estimates", 2002.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mlx_companion.errors import ConfigError, SLMError

Block = Any
Storage = Literal["int8", "float16", "float32"]
# Below this a column is constant, and dividing by its deviation would blow up noise.
_SMALLEST_DEVIATION = 1e-6


@dataclass(frozen=True)
class LinearHead:
    """Weights of a trained head; `logits = sum of block @ weights + bias`.

    Attributes:
        weights: one array (F, C) float32 per block; C is 1 for two classes.
        bias: (C,) float32.
    """

    weights: tuple[np.ndarray, ...]
    bias: np.ndarray

    def logits(self, blocks: Sequence[Block]) -> np.ndarray:
        """Logits of rows.

        Args:
            blocks: arrays or sparse matrices (N, F), in the order of `weights`.

        Returns:
            (N, C) float32.

        Raises:
            SLMError: blocks that do not fit the weights.
        """
        wanted, given = [w.shape[0] for w in self.weights], [b.shape[1] for b in blocks]
        if wanted != given:
            raise SLMError(f"the head reads blocks of {wanted} columns, and was given {given}")
        total = self.bias[None].astype(np.float32)
        for block, weights in zip(blocks, self.weights, strict=True):
            total = total + np.asarray(block @ weights)
        return total.astype(np.float32)

    def to_arrays(
        self, prefix: str, storage: Storage | Sequence[Storage] = "float16"
    ) -> dict[str, np.ndarray]:
        """The head as arrays for a pack.

        Args:
            prefix: their names start with it.
            storage: number type of the weights, for all blocks or for each; int8 has one scale
                per class.
        """
        kinds = [storage] * len(self.weights) if isinstance(storage, str) else list(storage)
        arrays = {f"{prefix}.bias": self.bias.astype(np.float32)}
        for at, (weights, kind) in enumerate(zip(self.weights, kinds, strict=True)):
            name = f"{prefix}.{at}"
            if kind == "int8":
                scale = np.maximum(np.abs(weights).max(axis=0), 1e-12) / 127
                arrays[f"{name}.scale"] = scale.astype(np.float32)
                weights = np.rint(weights / scale)
            arrays[name] = np.ascontiguousarray(weights.astype(kind))
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], prefix: str) -> LinearHead:
        """What `to_arrays` gave.

        Raises:
            SLMError: there is no such head among the arrays.
        """
        bias = arrays.get(f"{prefix}.bias")
        blocks: list[np.ndarray] = []
        while (stored := arrays.get(f"{prefix}.{len(blocks)}")) is not None:
            scale = arrays.get(f"{prefix}.{len(blocks)}.scale", np.float32(1))
            blocks.append((stored.astype(np.float32) * scale).astype(np.float32))
        if bias is None or not blocks:
            raise SLMError(f"the pack has no head '{prefix}'; restore it or train it again")
        if any(block.shape[1:] != bias.shape for block in blocks):
            raise SLMError(f"weights and bias of the head '{prefix}' do not fit each other")
        return cls(tuple(blocks), bias.astype(np.float32))


@dataclass(frozen=True)
class Calibration:
    """From a logit to a probability.

    Attributes:
        slope, offset: the probability is sigmoid(slope * logit + offset), unless there are knots.
        knots: (logit, probability) pairs, both ascending; between them a straight line.
    """

    slope: float = 1.0
    offset: float = 0.0
    knots: tuple[tuple[float, float], ...] = ()

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        """Probabilities of logits, of the same shape."""
        logits = np.asarray(logits, dtype=np.float64)
        if self.knots:
            at, probability = np.array(self.knots).T
            return np.interp(logits, at, probability)
        return sigmoid(self.slope * logits + self.offset)


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + e^-x), without overflow."""
    result: np.ndarray = 0.5 * (1 + np.tanh(0.5 * np.asarray(x, dtype=np.float64)))
    return result


def softmax(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    result: np.ndarray = powers / powers.sum(axis=-1, keepdims=True)
    return result


def fit_logistic(
    blocks: Sequence[Block],
    labels: Sequence[int] | np.ndarray,
    *,
    penalties: float | Sequence[float] = 1e-4,
    row_weights: np.ndarray | None = None,
    classes: int | None = None,
    max_steps: int = 300,
) -> LinearHead:
    """Logistic regression by L-BFGS; the same rows give the same head.

    Minimizes the weighted mean of the rows' losses plus half of the squared weights times the
    block's penalty. Dense columns are brought to mean 0 and deviation 1 first, which the weights
    returned take back; sparse ones are taken as they are.

    Args:
        blocks: arrays or sparse matrices (N, F).
        labels: (N,) class of each row, 0 to C - 1.
        penalties: for all blocks or for each.
        row_weights: (N,) how much each row counts; all the same unless told.
        classes: C; by default the largest label and one.
        max_steps: of L-BFGS.

    Raises:
        ConfigError: rows, labels or penalties that do not fit, or labels of one class only.
    """
    from scipy.optimize import minimize

    labels = np.asarray(labels, dtype=np.int64)
    counts = [1.0] * len(labels) if row_weights is None else row_weights
    weights = np.asarray(counts, dtype=np.float64)
    _check_rows(blocks, labels, weights)
    classes = classes or int(labels.max()) + 1
    scaled, means, deviations = _standardized(blocks)
    widths = [block.shape[1] for block in scaled]
    columns = 1 if classes == 2 else classes
    loss = _binary if columns == 1 else _multinomial
    objective = _objective(scaled, labels, weights / weights.sum(), _each(penalties, blocks), loss)
    start = np.zeros((sum(widths) + 1) * columns)
    options = {"maxiter": max_steps, "maxcor": 20}
    found = minimize(objective, start, jac=True, method="L-BFGS-B", options=options)
    flat = found.x.reshape(-1, columns)
    parts = np.split(flat[:-1], np.cumsum(widths)[:-1])
    bias = flat[-1].copy()
    for at, (mean, deviation) in enumerate(zip(means, deviations, strict=True)):
        parts[at] = parts[at] / deviation[:, None]
        bias -= mean @ parts[at]
    return LinearHead(tuple(p.astype(np.float32) for p in parts), bias.astype(np.float32))


def out_of_fold(
    blocks: Sequence[Block],
    labels: Sequence[int] | np.ndarray,
    folds: np.ndarray,
    *,
    row_weights: np.ndarray | None = None,
    classes: int | None = None,
    **options: Any,
) -> np.ndarray:
    """Logits of every row from a head that has not seen its fold.

    Args:
        blocks, labels, row_weights, classes, options: as of `fit_logistic`.
        folds: (N,) the fold of each row; rows that are variants of each other share one.

    Returns:
        (N, C) float32.
    """
    labels = np.asarray(labels, dtype=np.int64)
    classes = classes or int(labels.max()) + 1
    logits = np.zeros((len(labels), 1 if classes == 2 else classes), dtype=np.float32)
    for fold in np.unique(folds):
        out = np.flatnonzero(folds == fold)
        kept = np.flatnonzero(folds != fold)
        head = fit_logistic(
            [block[kept] for block in blocks],
            labels[kept],
            row_weights=None if row_weights is None else row_weights[kept],
            classes=classes,
            **options,
        )
        logits[out] = head.logits([block[out] for block in blocks])
    return logits


def fit_platt(
    logits: np.ndarray, labels: np.ndarray, row_weights: np.ndarray | None = None
) -> Calibration:
    """A sigmoid through held-out logits (N,) and labels (N,) of 0 and 1."""
    spread = max(float(np.std(logits)), _SMALLEST_DEVIATION)
    column = np.asarray(logits, dtype=np.float64)[:, None] / spread
    head = fit_logistic([column], labels, penalties=1e-6, row_weights=row_weights, classes=2)
    return Calibration(float(head.weights[0][0, 0]) / spread, float(head.bias[0]))


def fit_isotonic(
    logits: np.ndarray, labels: np.ndarray, row_weights: np.ndarray | None = None
) -> Calibration:
    """The best ascending steps through held-out logits (N,) and labels (N,), joined by lines."""
    from scipy.optimize import isotonic_regression

    order = np.argsort(logits, kind="stable")
    weights = None if row_weights is None else np.asarray(row_weights, dtype=np.float64)[order]
    at = np.asarray(logits, dtype=np.float64)[order]
    steps = isotonic_regression(np.asarray(labels, dtype=np.float64)[order], weights=weights)
    knots = [
        (float(at[first:end].mean()), float(steps.x[first]))
        for first, end in zip(steps.blocks[:-1], steps.blocks[1:], strict=True)
    ]
    return Calibration(knots=tuple(knots))


def _objective(
    blocks: Sequence[Block],
    labels: np.ndarray,
    weights: np.ndarray,
    penalties: Sequence[float],
    loss: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]],
) -> Callable[[np.ndarray], tuple[float, np.ndarray]]:
    widths = [block.shape[1] for block in blocks]
    strengths = np.repeat([*penalties, 0.0], [*widths, 1])[:, None]
    ends = np.cumsum(widths)

    def value_and_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
        table = flat.reshape(len(strengths), -1)
        parts = np.split(table[:-1], ends[:-1])
        total = sum(
            (block @ part for block, part in zip(blocks, parts, strict=True)), start=table[-1:]
        )
        losses, slopes = loss(np.asarray(total), labels)
        slopes = slopes * weights[:, None]
        gradient = np.concatenate([*(block.T @ slopes for block in blocks), slopes.sum(0)[None]])
        gradient += strengths * table
        return float(losses @ weights + 0.5 * (strengths * table * table).sum()), gradient.ravel()

    return value_and_gradient


def _binary(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    signed = np.where(labels == 1, logits[:, 0], -logits[:, 0])
    return np.logaddexp(0, -signed), sigmoid(logits) - labels[:, None]


def _multinomial(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    shares = softmax(logits)
    rows = np.arange(len(labels))
    losses = -np.log(np.maximum(shares[rows, labels], 1e-300))
    shares[rows, labels] -= 1
    return losses, shares


def _standardized(
    blocks: Sequence[Block],
) -> tuple[list[Block], list[np.ndarray], list[np.ndarray]]:
    from scipy.sparse import issparse

    scaled: list[Block] = []
    means, deviations = [], []
    for block in blocks:
        width = block.shape[1]
        if issparse(block):
            scaled.append(block.astype(np.float64))
            means.append(np.zeros(width))
            deviations.append(np.ones(width))
            continue
        block = np.asarray(block, dtype=np.float64)
        deviation = block.std(axis=0)
        means.append(block.mean(axis=0))
        deviations.append(np.where(deviation > _SMALLEST_DEVIATION, deviation, 1.0))
        scaled.append((block - means[-1]) / deviations[-1])
    return scaled, means, deviations


def _each(penalties: float | Sequence[float], blocks: Sequence[Block]) -> list[float]:
    each = [penalties] * len(blocks) if isinstance(penalties, int | float) else list(penalties)
    if len(each) != len(blocks) or min(each) < 0:
        raise ConfigError(f"penalties are {each} for {len(blocks)} blocks; expected one for each")
    return each


def _check_rows(blocks: Sequence[Block], labels: np.ndarray, weights: np.ndarray) -> None:
    lengths = [block.shape[0] for block in blocks]
    if not lengths or set(lengths) != {len(labels)} or len(weights) != len(labels):
        raise ConfigError(
            f"blocks have {lengths} rows, with {len(labels)} labels and {len(weights)} weights; "
            "expected the same number of each"
        )
    if len(labels) == 0 or labels.min() < 0 or labels.min() == labels.max():
        raise ConfigError("the labels are of fewer than two classes; give rows of two or more")
