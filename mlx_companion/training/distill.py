"""Distillation: a small model learns the next-token distribution of a larger one.

With s and t the student's and the teacher's distributions at a target position, both at temperature
T, and m = (1 - mix) s + mix t:

    forward   KL(t || s)                             covers all that the teacher might say
    reverse   KL(s || t)                             says only what the teacher would
    jsd       mix KL(t || m) + (1 - mix) KL(s || m)  in between (generalized Jensen-Shannon)

each times T^2, which keeps the gradient's size, plus `ce_weight` times the cross-entropy of the
token itself. Both models' logits exist a slice of positions at a time.

    Trainer(student, LengthBuckets(rows), loss=DistillLoss(teacher=lm.model)).run()

The teacher is a model with the same vocabulary, or None for the student without its adapters, or
is not there at all: `teacher_cache` keeps its likeliest tokens on the disk. Learning from texts
that a teacher wrote is plain fine-tuning.

Reference: Hinton et al. 2015; Agarwal et al. 2024 (GKD), equation 1.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, Literal, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from mlx_companion.errors import ConfigError
from mlx_companion.kernels import fast_math
from mlx_companion.models.heads import split_head
from mlx_companion.text.batches import Batch
from mlx_companion.training.logprobs import (
    check_reference,
    rowwise,
    shares_prefix,
    target_hidden,
    without_adapters,
)
from mlx_companion.training.loss_metrics import MetricSums
from mlx_companion.training.losses import SftLoss, Targets
from mlx_companion.training.teacher_cache import TaughtBatch

Kind = Literal["forward", "reverse", "jsd"]
_KINDS = ("forward", "reverse", "jsd")
# Where the likeliest tokens hold everything, the others still need a logarithm.
_ALL = -1e-6
# Logits of both models, their logarithms and a mixture.
_ARRAYS = 4


class TaughtTargets(NamedTuple):
    """Targets, and what the teacher's cache says of them: (N, K) ids and log-probabilities."""

    targets: Targets
    ids: mx.array
    logprobs: mx.array


class DistillLoss:
    """Divergence from a teacher, nats per target token (times T^2).

    Args:
        teacher: an mlx-lm model with the student's vocabulary; None for the student with its
            adapters switched off, or where batches hold the teacher's cache.
        kind: see above.
        temperature: T.
        mix: of "jsd".
        ce_weight: of the target's own cross-entropy, at temperature 1.

    Attributes:
        metrics: the mean loss, apart for training and evaluation; for `LossMetricsLog`.

    Raises:
        ConfigError: a value out of range.
    """

    def __init__(
        self,
        teacher: nn.Module | None = None,
        kind: Kind = "forward",
        *,
        temperature: float = 1.0,
        mix: float = 0.5,
        ce_weight: float = 0.0,
    ) -> None:
        if kind not in _KINDS:
            raise ConfigError(f"kind is {kind!r}; expected one of {', '.join(_KINDS)}")
        if not temperature > 0:
            raise ConfigError(f"temperature is {temperature!r}; expected more than 0")
        if not 0 < mix < 1:
            raise ConfigError(f"mix is {mix!r}; expected between 0 and 1 (they are kinds)")
        if ce_weight < 0:
            raise ConfigError(f"ce_weight is {ce_weight!r}; expected 0 or more")
        self.teacher, self.kind, self.mix = teacher, kind, mix
        self.temperature, self.ce_weight = temperature, ce_weight
        self.metrics = MetricSums()
        self._targets = SftLoss(share_prefix=False)

    def ready(self, model: nn.Module) -> None:
        """Look at both models before anything is traced.

        Raises:
            ConfigError: the teacher has another vocabulary.
        """
        share = shares_prefix(model)
        if self.teacher is not None:
            self.teacher.eval()
            share = share and shares_prefix(self.teacher)
            own, others = vocabulary_of(model), vocabulary_of(self.teacher)
            if own != others:
                raise ConfigError(
                    f"the student knows {own:,} tokens and the teacher {others:,}; distil from "
                    "logits between models of one vocabulary, or from texts that the teacher wrote"
                )
        self._targets = SftLoss(share_prefix=share)

    def prepare(self, batch: Batch | TaughtBatch) -> Targets | TaughtTargets:
        """Find the targets of a batch.

        Raises:
            DataError: the batch has no target.
            ConfigError: the teacher's cache was made at another temperature.
        """
        self.metrics.settle()
        if isinstance(batch, Batch):
            return self._targets.prepare(batch)
        if batch.temperature != self.temperature:
            raise ConfigError(
                f"the teacher's cache was made at temperature {batch.temperature:g}, the loss has "
                f"{self.temperature:g}; give both the same"
            )
        targets = self._targets.prepare(batch.rows)
        return TaughtTargets(targets, mx.array(batch.ids), mx.array(batch.logprobs))

    def __call__(self, model: nn.Module, batch: Any) -> tuple[mx.array, mx.array]:
        """(sum over targets, number of targets).

        Raises:
            TrainingError: there is no teacher, and switching adapters off does not give one.
        """
        ready = isinstance(batch, Targets | TaughtTargets)
        given = batch if ready else self.prepare(batch)
        if isinstance(given, TaughtTargets):
            return self._sum(model, given.targets, given.ids, given.logprobs)
        with self._teaching(model) as teacher:
            hidden = mx.stop_gradient(target_hidden(teacher or model, given))
        return self._sum(model, given, hidden)

    def _teaching(self, model: nn.Module) -> Any:
        if self.teacher is not None:
            return nullcontext(self.teacher)
        check_reference(model)
        return without_adapters(model)

    def _sum(
        self, model: nn.Module, targets: Targets, *others: mx.array
    ) -> tuple[mx.array, mx.array]:
        compare = self._to_model(model) if len(others) == 1 else self._to_cache(model)
        _, head = split_head(model)

        def values(hidden: mx.array, labels: mx.array, *others: mx.array) -> mx.array:
            logits = head(hidden).astype(mx.float32)
            apart = compare(logits / self.temperature, *others)
            if not self.ce_weight:
                return self.temperature**2 * apart
            own = mx.fast.cross_entropy(logits, labels)
            return self.temperature**2 * apart + self.ce_weight * own

        each = rowwise(
            model,
            values,
            target_hidden(model, targets),
            [targets.labels, *others],
            gradient=model.training,
            arrays=_ARRAYS,
        )
        loss = (each * targets.weights).sum()
        self.metrics.note(model.training, {"loss": (loss, targets.weights.sum())})
        return loss, targets.weights.sum()

    def _to_model(self, model: nn.Module) -> Any:
        def apart(student: mx.array, hidden: mx.array) -> mx.array:
            with self._teaching(model) as teacher:
                logits = split_head(teacher or model).head(hidden).astype(mx.float32)
            return divergence(student, logits / self.temperature, self.kind, self.mix)

        return apart

    def _to_cache(self, model: nn.Module) -> Any:
        def apart(student: mx.array, ids: mx.array, logprobs: mx.array) -> mx.array:
            own = mx.take_along_axis(log_softmax(student), ids, axis=-1)
            known = logprobs.astype(mx.float32)
            return divergence(with_rest(own), with_rest(known), self.kind, self.mix)

        return apart


def divergence(student: mx.array, teacher: mx.array, kind: Kind, mix: float = 0.5) -> mx.array:
    """How far two distributions are apart.

    Args:
        student, teacher: (n, V) float32 logits, the temperature applied.
        kind, mix: see above.

    Returns:
        (n,) nats.
    """
    s, t = log_softmax(student), log_softmax(teacher)
    if kind == "forward":
        return _kl(t, s)
    if kind == "reverse":
        return _kl(s, t)
    mixed = mx.log((1 - mix) * fast_math.exp(s) + mix * fast_math.exp(t))
    return mix * _kl(t, mixed) + (1 - mix) * _kl(s, mixed)


def log_softmax(logits: mx.array) -> mx.array:
    """Log-probabilities over the last axis, float32."""
    shifted = logits - mx.stop_gradient(logits.max(axis=-1, keepdims=True))
    return shifted - mx.log(fast_math.exp(shifted).sum(axis=-1, keepdims=True))


def with_rest(logprobs: mx.array) -> mx.array:
    """Log-probabilities (n, K) of some tokens, and of all others together: (n, K + 1)."""
    total = mx.minimum(mx.logsumexp(logprobs, axis=-1, keepdims=True), _ALL)
    return mx.concatenate([logprobs, mx.log(-mx.expm1(total))], axis=-1)


def vocabulary_of(model: nn.Module) -> int:
    """How many logits a model gives."""
    backbone, head = split_head(model)
    # Shapes are known without computing anything.
    return head(backbone(mx.zeros((1, 2), dtype=mx.int32))).shape[-1]


def _kl(p: mx.array, q: mx.array) -> mx.array:
    """KL(p || q) from log-probabilities."""
    return (fast_math.exp(p) * (p - q)).sum(axis=-1)
