"""Losses for heads: classification, and vectors that lie near those of like meaning.

    classifier = make_classifier(lm, labels)
    rows = labelled_rows(classifier, texts, names, batch_tokens=4096)
    Trainer(classifier, rows, loss=ClassifierLoss(label_smoothing=0.05)).run()

With smoothing e, C labels and weights w, the loss of a text of label y is

    -(1 - e) w_y log p_y - (e / C) sum_c w_c log p_c          divided by sum of w_y over the step

as in PyTorch. The contrastive loss (InfoNCE) takes pairs of texts that belong together; the other
texts of the batch are what they should not be near to:

    -mean over the positives j of i of log( e^(a_i b_j / t) / sum_k e^(a_i b_k / t) )

Reference: van den Oord et al. 2018 (InfoNCE); Khosla et al. 2020, equation 2 (several positives).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_companion.errors import ConfigError, DataError
from mlx_companion.models.classifier import Classifier, hidden_states, pool
from mlx_companion.models.fast_cpu import fast_cpu
from mlx_companion.text.batches import Batch, LengthBuckets, collate
from mlx_companion.text.encode import Encoded
from mlx_companion.training.loss_metrics import MetricSums, mean_of

_SHORTEST = 1e-12


class LabelledTokens(NamedTuple):
    """Rows of tokens (B, L), their lengths (B,) and labels (B,)."""

    tokens: mx.array
    lengths: mx.array
    labels: mx.array


@dataclass(frozen=True)
class LabelledBatch:
    """Rows and the numbers of their labels (B,)."""

    rows: Batch
    labels: np.ndarray
    indices: tuple[int, ...]

    def split_rows(self, parts: int) -> list[LabelledBatch]:
        """The rows as at most `parts` batches of about the same work."""
        known = dict(zip(self.indices, self.labels.tolist(), strict=True))
        return [
            LabelledBatch(part, np.array([known[at] for at in part.indices]), part.indices)
            for part in self.rows.split_rows(parts)
        ]


class LabelledRows(LengthBuckets):
    """A row source of labelled texts; a row counts once in the mean loss.

    Args:
        rows: tokens of each text.
        labels: number of each text's label.
        options: of `LengthBuckets`.

    Raises:
        DataError: no rows, or labels of another number.
    """

    def __init__(self, rows: Sequence[list[int]], labels: Sequence[int], **options: Any) -> None:
        if len(rows) != len(labels):
            raise DataError(f"{len(rows)} texts and {len(labels)} labels; give one for each")
        super().__init__([_as_row(row) for row in rows], **options)
        self.labels = np.array(labels, dtype=np.int32)

    def batch(self, indices: Sequence[int]) -> Any:
        """Collate those rows."""
        return LabelledBatch(super().batch(indices), self.labels[list(indices)], tuple(indices))


def labelled_rows(
    classifier: Classifier, texts: Sequence[str], labels: Sequence[str], **options: Any
) -> LabelledRows:
    """Texts and their labels' names as rows for a classifier; options as in `LengthBuckets`.

    Raises:
        DataError: a label that the classifier does not know.
    """
    numbers = {label: at for at, label in enumerate(classifier.config.labels)}
    for at, label in enumerate(labels, start=1):
        if label not in numbers:
            raise DataError(
                f"'{label}' is none of the classifier's {len(numbers)} labels; make the classifier "
                "with all labels of the data",
                line=at,
                field="label",
            )
    rows = [classifier.encode(text) for text in texts]
    return LabelledRows(rows, [numbers[label] for label in labels], **options)


class ClassifierLoss:
    """Cross-entropy of labels, for a `Classifier`.

    Args:
        class_weights: what each label counts, by its name; 1 where it is not named.
        label_smoothing: share of the target that is spread over all labels.

    Attributes:
        metrics: "accuracy"; for `LossMetricsLog`.

    Raises:
        ConfigError: a value out of range.
    """

    def __init__(
        self,
        class_weights: Mapping[str, float] | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        if not 0 <= label_smoothing < 1:
            raise ConfigError(f"label_smoothing is {label_smoothing!r}; expected 0 up to 1")
        self.class_weights = dict(class_weights or {})
        if any(not weight >= 0 for weight in self.class_weights.values()):
            raise ConfigError(f"class_weights are {self.class_weights!r:.200}; expected 0 or more")
        self.label_smoothing = label_smoothing
        self.metrics = MetricSums()

    def ready(self, model: nn.Module) -> None:
        """Check that every weight is of a label.

        Raises:
            ConfigError: one is not.
        """
        unknown = self.class_weights.keys() - set(model.config.labels)
        if unknown:
            raise ConfigError(f"class_weights name '{min(unknown)}', which is no label")

    def prepare(self, batch: LabelledBatch) -> LabelledTokens:
        """The batch as arrays."""
        self.metrics.settle()
        return LabelledTokens(batch.rows.tokens, batch.rows.lengths, mx.array(batch.labels))

    def __call__(self, model: nn.Module, batch: Any) -> tuple[mx.array, mx.array]:
        """(weighted sum of cross-entropies in nats, sum of the labels' weights)."""
        given = self.prepare(batch) if isinstance(batch, LabelledBatch) else batch
        logits = model(given.tokens, given.lengths)
        self.metrics.note(
            model.training, {"accuracy": mean_of(logits.argmax(axis=-1) == given.labels)}
        )
        weights = mx.array([self.class_weights.get(label, 1.0) for label in model.config.labels])
        losses = label_cross_entropy(logits, given.labels, weights, self.label_smoothing)
        return losses.sum(), weights[given.labels].sum()


class TextPairs(NamedTuple):
    """B pairs of texts that belong together.

    Attributes:
        first, second: (B, L) tokens and (B,) lengths of each.
        groups: (B,) int; pairs of one group are all positives of each other.
    """

    first: tuple[mx.array, mx.array]
    second: tuple[mx.array, mx.array]
    groups: mx.array


@dataclass(frozen=True)
class TextPairBatch:
    """Pairs of rows; never split, as all are each other's negatives."""

    first: Batch
    second: Batch
    groups: np.ndarray
    indices: tuple[int, ...]


class TextPairRows(LengthBuckets):
    """A row source of pairs of texts that belong together.

    Args:
        first, second: tokens of each text.
        groups: pairs of one number are positives of each other; by default each pair is alone.
        options: of `LengthBuckets`; `batch_tokens` counts the first texts.

    Raises:
        DataError: no rows, or another number of second texts or groups.
    """

    def __init__(
        self,
        first: Sequence[list[int]],
        second: Sequence[list[int]],
        groups: Sequence[int] | None = None,
        **options: Any,
    ) -> None:
        groups = range(len(first)) if groups is None else groups
        if not len(first) == len(second) == len(groups):
            raise DataError(
                f"{len(first)} first and {len(second)} second texts, {len(groups)} groups; "
                "give as many of each"
            )
        super().__init__([_as_row(row) for row in first], **options)
        self.second = [_as_row(row) for row in second]
        self.groups = np.array(groups, dtype=np.int32)

    def batch(self, indices: Sequence[int]) -> Any:
        """Collate those pairs."""
        return TextPairBatch(
            super().batch(indices),
            collate(self.second, indices, self.pad_to),
            self.groups[list(indices)],
            tuple(indices),
        )


class ContrastiveLoss:
    """InfoNCE over unit vectors of texts, pooled from a language model's hidden states.

    Args:
        temperature: cosines are divided by it.
        symmetric: also find the first text by the second; the mean of both.
        pooling, layer: see `models.classifier`.

    Attributes:
        metrics: "accuracy", how often the nearest text is a positive; for `LossMetricsLog`.

    Raises:
        ConfigError: the temperature is not over 0.
    """

    def __init__(
        self,
        temperature: float = 0.05,
        *,
        symmetric: bool = True,
        pooling: Literal["last", "mean"] = "mean",
        layer: int | None = None,
    ) -> None:
        if not temperature > 0:
            raise ConfigError(f"temperature is {temperature!r}; expected more than 0")
        self.temperature, self.symmetric = temperature, symmetric
        self.pooling, self.layer = pooling, layer
        self.metrics = MetricSums()

    def prepare(self, batch: TextPairBatch) -> TextPairs:
        """The batch as arrays."""
        self.metrics.settle()
        return TextPairs(
            (batch.first.tokens, batch.first.lengths),
            (batch.second.tokens, batch.second.lengths),
            mx.array(batch.groups),
        )

    def __call__(self, model: nn.Module, batch: Any) -> tuple[mx.array, mx.array]:
        """(sum over pairs in nats, number of pairs)."""
        given = self.prepare(batch) if isinstance(batch, TextPairBatch) else batch
        first, second = self.embed(model, *given.first), self.embed(model, *given.second)
        positives = given.groups[:, None] == given.groups[None]
        losses, hits = info_nce(first, second, positives, self.temperature)
        if self.symmetric:
            back, more = info_nce(second, first, positives, self.temperature)
            losses, hits = (losses + back) / 2, (hits + more) / 2
        self.metrics.note(model.training, {"accuracy": mean_of(hits)})
        return losses.sum(), mx.array(float(len(losses)))

    def embed(self, model: nn.Module, tokens: mx.array, lengths: mx.array) -> mx.array:
        """Unit vectors (B, D) float32 of rows of tokens (B, L)."""
        with fast_cpu(model):
            hidden = hidden_states(model, tokens, self.layer).astype(mx.float32)
        return unit(pool(hidden, lengths, self.pooling))


def label_cross_entropy(
    logits: mx.array, labels: mx.array, weights: mx.array, label_smoothing: float = 0.0
) -> mx.array:
    """Weighted cross-entropies (B,) of logits (B, C), labels (B,) and class weights (C,)."""
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    own = mx.take_along_axis(logprobs, labels[:, None], axis=-1).squeeze(-1)
    losses = -(1 - label_smoothing) * weights[labels] * own
    if not label_smoothing:
        return losses
    return losses - label_smoothing * (weights * logprobs).mean(axis=-1)


def info_nce(
    first: mx.array, second: mx.array, positives: mx.array, temperature: float
) -> tuple[mx.array, mx.array]:
    """Contrastive losses of vectors (B, D) against others (B, D).

    Args:
        first, second: unit vectors.
        positives: (B, B) bool, which of the second belong to which of the first; at least one.
        temperature: of the softmax.

    Returns:
        Losses (B,) in nats, and (B,) whether the nearest one is a positive.
    """
    scores = first @ second.T / temperature
    logprobs = scores - mx.logsumexp(scores, axis=-1, keepdims=True)
    wanted = positives.astype(scores.dtype)
    losses = -(logprobs * wanted).sum(axis=-1) / wanted.sum(axis=-1)
    nearest = scores.argmax(axis=-1)[:, None]
    return losses, mx.take_along_axis(wanted, nearest, axis=-1).squeeze(-1)


def unit(vectors: mx.array) -> mx.array:
    """The same vectors (..., D) at length 1."""
    # The root of a sum that cannot be 0: the gradient of a norm at 0 is not a number.
    return vectors * mx.rsqrt(mx.square(vectors).sum(axis=-1, keepdims=True) + _SHORTEST)


def _as_row(tokens: list[int]) -> Encoded:
    # Nothing is predicted; a row counts once.
    return Encoded(tokens, [False] * (len(tokens) - 1) + [True])
