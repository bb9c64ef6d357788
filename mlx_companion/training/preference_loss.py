"""One loss for preference tuning; what it minimizes is an argument.

    attach(lm.model, LoraConfig(rank=16))
    loss = PreferenceLoss("dpo")      # or Dpo(beta=0.2), "ipo", "orpo", "simpo", "kto"
    Trainer(lm.model, PreferenceRows(pairs), loss=loss).run()

The reference model costs no memory: it is the model with its adapters switched off. What it thinks
of the data can also be computed once, before training, and kept on the disk, which saves a third of
the work and is the only way where more than adapters is trained:

    reference = reference_logprobs(lm.model, rows, "run/reference", fingerprint)
    Trainer(lm.model, rows.with_reference(reference), loss=loss)
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_companion.errors import ConfigError
from mlx_companion.lora import is_attached
from mlx_companion.models.fast_cpu import fast_cpu
from mlx_companion.text.array_cache import cached_array
from mlx_companion.training.logprobs import (
    TargetRows,
    shares_prefix,
    target_rows,
    token_logprobs,
    without_adapters,
)
from mlx_companion.training.loss_metrics import MetricSums, by_name
from mlx_companion.training.preference_data import PreferenceBatch, PreferenceRows
from mlx_companion.training.preference_objectives import OBJECTIVES, Objective, Scores


class PreparedPairs(NamedTuple):
    """A batch as arrays; see `PreferenceBatch`."""

    rows: TargetRows
    mismatched: TargetRows | None
    desirable: mx.array | None
    reference: mx.array | None


class PreferenceLoss:
    """Preference tuning. The loss is a mean over pairs, or over judged replies.

    Args:
        objective: an objective of `preference_objectives`, or the name of one with its defaults.

    Attributes:
        metrics: rewards, margin and accuracy, or rewards and KL; for `LossMetricsLog`.

    Raises:
        ConfigError: no objective has that name.
    """

    def __init__(self, objective: Objective | str = "dpo") -> None:
        self.objective = by_name(objective, OBJECTIVES, "preference objective")
        self.metrics = MetricSums()
        self._share = False

    def ready(self, model: nn.Module) -> None:
        """Look at the model before anything is traced."""
        self._share = shares_prefix(model)

    def prepare(self, batch: PreferenceBatch) -> PreparedPairs:
        """Find the replies' tokens.

        Raises:
            ConfigError: pairs for an objective of judged replies, or the other way round.
        """
        self.metrics.settle()
        if self.objective.judged != (batch.desirable is not None):
            kinds = ("judged replies", "pairs")
            wants, given = kinds if self.objective.judged else kinds[::-1]
            name = type(self.objective).__name__
            raise ConfigError(f"{name} takes {wants}, but the rows are {given}")
        return _prepared(batch, self._share)

    def __call__(
        self, model: nn.Module, batch: PreferenceBatch | PreparedPairs
    ) -> tuple[mx.array, mx.array]:
        """(sum of the pairs' losses, number of pairs).

        Raises:
            TrainingError: a reference is needed, and switching adapters off does not give it.
        """
        given = self.prepare(batch) if isinstance(batch, PreferenceBatch) else batch
        scores = Scores(
            pair_logprobs(model, given, gradient=model.training),
            self._reference(model, given) if self.objective.needs_reference else None,
            _lengths(given),
            given.desirable,
        )
        losses, figures = self.objective(scores)
        self.metrics.note(model.training, figures)
        if self.objective.sft_weight:
            losses = losses - self.objective.sft_weight * scores.policy[0] / scores.lengths[0]
        return losses.sum(), mx.array(float(len(losses)))

    def _reference(self, model: nn.Module, given: PreparedPairs) -> mx.array:
        if given.reference is not None:
            return given.reference
        with without_adapters(model):
            return mx.stop_gradient(pair_logprobs(model, given, gradient=False))


def pair_logprobs(model: nn.Module, given: PreparedPairs, *, gradient: bool) -> mx.array:
    """Summed log-probabilities (2, P) of first and second replies; mismatched ones never train."""
    first = given.rows.sums(token_logprobs(model, given.rows.targets, gradient=gradient))
    if given.mismatched is None:
        return first.reshape(2, -1)
    others = token_logprobs(model, given.mismatched.targets, gradient=False)
    return mx.stack([first, mx.stop_gradient(given.mismatched.sums(others))])


def reference_logprobs(
    model: nn.Module,
    rows: PreferenceRows,
    folder: str | Path | None = None,
    fingerprint: str = "",
) -> np.ndarray:
    """The reference's log-probabilities of all replies, computed once.

    Args:
        model: adapters on it are switched off meanwhile; without any, it is the reference itself.
        rows: the pairs.
        folder: where to keep them; None not to.
        fingerprint: names model and data (hashes of both); a cache of others is replaced.

    Returns:
        (2, rows) float32, nats, for `PreferenceRows.with_reference`.

    Raises:
        TrainingError: more than adapters is trained on a model with adapters.
        DiskFullError: no space to keep them.
    """

    def compute() -> np.ndarray:
        return _reference_of(model, rows)

    return compute() if folder is None else cached_array(folder, fingerprint, compute)


def _reference_of(model: nn.Module, rows: PreferenceRows) -> np.ndarray:
    found = np.zeros((2, rows.rows), dtype=np.float32)
    was_training = model.training
    model.eval()
    share = shares_prefix(model)
    switched: Any = without_adapters(model) if is_attached(model) else nullcontext()
    try:
        with switched, fast_cpu(model):
            for indices in rows.epoch(0):
                given = _prepared(rows.batch(indices), share)
                found[:, list(indices)] = np.array(pair_logprobs(model, given, gradient=False))
    finally:
        model.train(was_training)
    return found


def _prepared(batch: PreferenceBatch, share: bool) -> PreparedPairs:
    other = batch.mismatched
    return PreparedPairs(
        target_rows(batch.rows, share),
        None if other is None else target_rows(other, share),
        None if batch.desirable is None else mx.array(batch.desirable),
        None if batch.reference is None else mx.array(batch.reference),
    )


def _lengths(given: PreparedPairs) -> mx.array:
    if given.mismatched is None:
        return given.rows.lengths.reshape(2, -1)
    return mx.stack([given.rows.lengths, given.mismatched.lengths])
