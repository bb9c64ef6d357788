"""Group relative policy optimization: what a step minimizes, given rollouts and their rewards.

With ratio w = p(token) / p_behaviour(token) and a completion's advantage A among its group:

    loss of a token   -min(w A, clip(w, 1 - eps_low, 1 + eps_high) A) + kl_weight k3
    k3                p_ref/p - log(p_ref/p) - 1, which estimates KL(p || p_ref) and is never < 0

The published variants are settings: `Grpo()` averages tokens in each completion first; "dapo" lets
every token of the step count the same and clips upwards later (so that unlikely tokens can grow);
"dr_grpo" divides by a constant length and leaves the standard deviation out (`advantages`), so that
neither long nor unanimous answers count less. Rollouts are made by `rollouts`:

    source = RolloutSource(lm, prompts, [reward])
    Trainer(lm.model, source, loss=GrpoLoss("dapo")).run()

Reference: Shao et al. 2024 (GRPO); Yu et al. 2025 (DAPO); Liu et al. 2025 (Dr. GRPO); Zheng et al.
2025 (GSPO); Schulman 2020, "Approximating KL divergence".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_companion.errors import ConfigError
from mlx_companion.text.batches import Batch
from mlx_companion.training.logprobs import (
    TargetRows,
    shares_prefix,
    target_rows,
    token_logprobs,
)
from mlx_companion.training.loss_metrics import MetricSums, Noted, by_name, mean_of, mean_where

Normalisation = Literal["sequence", "token", "constant"]
Scaling = Literal["group", "batch", "none"]

# TRL's: keeps groups whose rewards hardly differ from blowing up.
_STD_FLOOR = 1e-4
# Counts of a micro-batch of which nothing counts; 0 would make the mean loss 0/0.
_NOTHING = 1e-6


@dataclass(frozen=True)
class Grpo:
    """The objective.

    Args:
        eps_low: how far a ratio may fall below 1 before a token with a negative advantage is cut.
        eps_high: how far it may rise above 1 with a positive one; None for `eps_low`.
        ratio_cap: upper bound of the ratio where the advantage is negative, where the clip does
            not reach; None for none.
        kl_weight: of the divergence from the reference; over 0 the rollouts must hold the
            reference's log-probabilities.
        normalisation: "sequence" (mean over a completion's tokens, then over completions), "token"
            (every token of the step counts the same) or "constant" (sum over the longest allowed
            length).
        ratio: per "token", or of the whole "sequence" (GSPO).
        off_policy_limit: completions with a negative advantage whose mean log-ratio has fallen by
            more than this (nats per token) are left out; None for none.

    Raises:
        ConfigError: a value out of range.
    """

    eps_low: float = 0.2
    eps_high: float | None = None
    ratio_cap: float | None = None
    kl_weight: float = 0.0
    normalisation: Normalisation = "sequence"
    ratio: Literal["token", "sequence"] = "token"
    off_policy_limit: float | None = None

    def __post_init__(self) -> None:
        high = self.eps_low if self.eps_high is None else self.eps_high
        self._check("eps_low", 0 < self.eps_low < 1, "between 0 and 1")
        self._check("eps_high", high > 0, "over 0, or None")
        cap = self.ratio_cap
        self._check("ratio_cap", cap is None or cap > 1 + high, "over 1 + eps_high, or None")
        self._check("kl_weight", self.kl_weight >= 0, "0 or more")
        limit = self.off_policy_limit
        self._check("off_policy_limit", limit is None or limit > 0, "over 0, or None")
        known = ("sequence", "token", "constant")
        self._check("normalisation", self.normalisation in known, f"one of {', '.join(known)}")
        self._check("ratio", self.ratio in ("token", "sequence"), "token or sequence")

    def __call__(self, scores: GroupScores) -> tuple[mx.array, Noted]:
        """Loss of each token (B, T), not yet masked, and figures for people."""
        mask, advantages = scores.mask, scores.advantages[:, None]
        log_ratio = (scores.policy - scores.behaviour) * mask
        lengths = mx.maximum(mask.sum(axis=1, keepdims=True), 1.0)
        mean_ratio = log_ratio.sum(axis=1, keepdims=True) / lengths
        ratio = mx.exp(log_ratio if self.ratio == "token" else mean_ratio)
        high = 1 + (self.eps_low if self.eps_high is None else self.eps_high)
        clipped = mx.clip(ratio, 1 - self.eps_low, high)
        free = ratio if self.ratio_cap is None else mx.minimum(ratio, self.ratio_cap)
        losses = -mx.minimum(free * advantages, clipped * advantages)
        if self.off_policy_limit is not None:
            near = (advantages >= 0) | (-mx.stop_gradient(mean_ratio) <= self.off_policy_limit)
            losses = losses * near
        losses = mx.broadcast_to(losses, mask.shape)
        metrics = {
            "ratio": mean_where(mx.exp(log_ratio), mask),
            "clipped_low": mean_where((ratio < 1 - self.eps_low) & (advantages < 0), mask),
            "clipped_high": mean_where((ratio > high) & (advantages > 0), mask),
        }
        if self.off_policy_limit is not None:
            metrics["off_policy"] = mean_of(~near)
        if self.kl_weight:
            divergence = k3(scores.policy, _reference_of(scores)) * mask
            losses = losses + self.kl_weight * divergence
            metrics["kl"] = mean_where(divergence, mask)
        return losses, metrics

    def reduce(self, losses: mx.array, mask: mx.array, budget: int) -> tuple[mx.array, mx.array]:
        """(sum, count) of token losses (B, T), so that sums over counts give the normalisation.

        Args:
            losses: of each token.
            mask: (B, T), 1 where it counts.
            budget: tokens that a completion may have at most.
        """
        if self.normalisation == "sequence":
            lengths = mx.maximum(mask.sum(axis=1), 1.0)
            return ((losses * mask).sum(axis=1) / lengths).sum(), mx.array(float(len(mask)))
        total = (losses * mask).sum()
        if self.normalisation == "constant":
            return total, mx.array(float(len(mask) * budget))
        return total, mx.maximum(mask.sum(), _NOTHING)

    def _check(self, name: str, fits: bool, expected: str) -> None:
        if not fits:
            raise ConfigError(f"{name} is {getattr(self, name)!r}; expected {expected}")


class GroupScores(NamedTuple):
    """What the objective is a function of.

    Attributes:
        policy: (B, T) log-probabilities of the completions' tokens (nats).
        behaviour: (B, T) the same under the policy that wrote them.
        reference: (B, T) the same under the reference, or None.
        mask: (B, T) float32, 1 where a token counts.
        advantages: (B,).
    """

    policy: mx.array
    behaviour: mx.array
    reference: mx.array | None
    mask: mx.array
    advantages: mx.array


VARIANTS = {
    "grpo": Grpo(),
    "dapo": Grpo(eps_high=0.28, normalisation="token"),
    "dr_grpo": Grpo(normalisation="constant"),
    "gspo": Grpo(eps_low=3e-4, eps_high=4e-4, ratio="sequence"),
}


@dataclass(frozen=True)
class RolloutBatch:
    """Completions with their advantages.

    Attributes:
        rows: (B, L) prompts and completions; the completions' tokens are the targets.
        advantages: (B,) float32.
        behaviour: a row's log-probabilities (nats) under the policy that wrote it, one array each.
        reference: the same under the reference model, or None.
        kept: (B,) float32, 0 where a completion was cut off and is not trained on.
        temperature: at which they were written.
        budget: tokens that a completion may have at most.
        indices: of the rows.
    """

    rows: Batch
    advantages: np.ndarray
    behaviour: tuple[np.ndarray, ...]
    reference: tuple[np.ndarray, ...] | None
    kept: np.ndarray
    temperature: float
    budget: int
    indices: tuple[int, ...]

    def split_rows(self, parts: int) -> list[RolloutBatch]:
        """The rows as at most `parts` batches of about the same work."""
        at = {index: place for place, index in enumerate(self.indices)}
        return [
            self._take(part, [at[index] for index in part.indices])
            for part in self.rows.split_rows(parts)
        ]

    def _take(self, rows: Batch, places: Sequence[int]) -> RolloutBatch:
        reference = self.reference
        return RolloutBatch(
            rows,
            self.advantages[places],
            tuple(self.behaviour[place] for place in places),
            None if reference is None else tuple(reference[place] for place in places),
            self.kept[places],
            self.temperature,
            self.budget,
            rows.indices,
        )


class PreparedRollouts(NamedTuple):
    """A batch as arrays (B, T); see `RolloutBatch`."""

    rows: TargetRows
    behaviour: mx.array
    reference: mx.array | None
    mask: mx.array
    advantages: mx.array
    temperature: float
    budget: int


class GrpoLoss:
    """Policy optimization on rollouts.

    Args:
        objective: a `Grpo`, or the name of a variant: "grpo", "dapo", "dr_grpo", "gspo".

    Attributes:
        metrics: ratio, clipping, KL; for `LossMetricsLog`.

    Raises:
        ConfigError: no variant has that name.
    """

    def __init__(self, objective: Grpo | str = "grpo") -> None:
        self.objective = by_name(objective, VARIANTS, "variant of GRPO")
        self.metrics = MetricSums()
        self._share = False

    def ready(self, model: nn.Module) -> None:
        """Look at the model before anything is traced."""
        self._share = shares_prefix(model)

    def prepare(self, batch: RolloutBatch) -> PreparedRollouts:
        """Lay the rows' values out as the targets lie."""
        self.metrics.settle()
        rows = target_rows(batch.rows, self._share)
        width = rows.at.shape[1]
        return PreparedRollouts(
            rows,
            _padded(batch.behaviour, width),
            None if batch.reference is None else _padded(batch.reference, width),
            rows.mask * mx.array(batch.kept)[:, None],
            mx.array(batch.advantages),
            batch.temperature,
            batch.budget,
        )

    def __call__(
        self, model: nn.Module, batch: RolloutBatch | PreparedRollouts
    ) -> tuple[mx.array, mx.array]:
        """(sum, count), whose quotient over a step is the objective's normalisation.

        Raises:
            ConfigError: `kl_weight` is set and the rollouts hold no reference.
        """
        given = self.prepare(batch) if isinstance(batch, RolloutBatch) else batch
        each = token_logprobs(
            model, given.rows.targets, temperature=given.temperature, gradient=model.training
        )
        scores = GroupScores(
            given.rows.grid(each), given.behaviour, given.reference, given.mask, given.advantages
        )
        losses, figures = self.objective(scores)
        self.metrics.note(model.training, figures)
        return self.objective.reduce(losses, given.mask, given.budget)


def advantages(rewards: np.ndarray, scaling: Scaling = "group") -> np.ndarray:
    """How much better each completion is than the others to its prompt.

    Args:
        rewards: (prompts, completions of each).
        scaling: divide by the standard deviation in the "group", in the whole "batch" (both
            unbiased, plus 1e-4), or "none" (Dr. GRPO: no weight for prompts by their difficulty).

    Returns:
        The same shape, float32.
    """
    rewards = np.asarray(rewards, dtype=np.float64)
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    if scaling == "group" and rewards.shape[1] > 1:
        centred /= rewards.std(axis=1, ddof=1, keepdims=True) + _STD_FLOOR
    elif scaling == "batch" and rewards.size > 1:
        centred /= rewards.std(ddof=1) + _STD_FLOOR
    return centred.astype(np.float32)


def k3(policy: mx.array, reference: mx.array) -> mx.array:
    """Estimate of KL(policy || reference) from log-probabilities of the policy's own tokens."""
    difference = reference - policy
    return mx.exp(difference) - difference - 1


def _reference_of(scores: GroupScores) -> mx.array:
    if scores.reference is None:
        raise ConfigError(
            "kl_weight is over 0 and the rollouts hold no log-probabilities of the reference; "
            "set reference=True in RolloutConfig"
        )
    return scores.reference


def _padded(values: Sequence[np.ndarray], width: int) -> mx.array:
    grid = np.zeros((len(values), width), dtype=np.float32)
    for row, own in zip(grid, values, strict=True):
        row[: len(own)] = own
    return mx.array(grid)
