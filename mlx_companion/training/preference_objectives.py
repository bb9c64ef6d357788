"""What a preference loss minimizes, as functions of log-probabilities: DPO, IPO, ORPO, SimPO, KTO.

With y_w the chosen and y_l the rejected reply, r(y) = log p(y|x) - log p_ref(y|x),
z = r(y_w) - r(y_l), and s(y) = log p(y|x) / |y| (the mean over its tokens):

    Dpo "sigmoid"  -(1 - e) log sigmoid(b z) - e log sigmoid(-b z)           e: label smoothing
    Dpo "hinge"    max(0, 1 - b z)
    Dpo "ipo"      (r(y_w)/|y_w| - r(y_l)/|y_l| - 1/(2b))^2
    Orpo           -w log sigmoid(logodds(s(y_w)) - logodds(s(y_l))) - s(y_w)
    SimPo          -log sigmoid(b (s(y_w) - s(y_l)) - g)
    Kto            u (1 - sigmoid(b (r(y) - k)))  wanted,  v (1 - sigmoid(b (k - r(y))))  unwanted
                   k = max(0, mean of r over replies that belong to other prompts)

All are plain functions on arrays of a few numbers per pair; `preference_loss` brings the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Protocol

import mlx.core as mx

from mlx_companion.errors import ConfigError
from mlx_companion.training.loss_metrics import Noted, mean_of, mean_where

# A mean log-probability of 0 has infinite odds.
_CERTAIN = -1e-6


class Scores(NamedTuple):
    """What an objective is a function of.

    Attributes:
        policy: (2, P) summed log-probabilities: of chosen and rejected replies, or of judged
            replies and of mismatched ones.
        reference: the same under the reference model; None where no objective needs it.
        lengths: (2, P) tokens of the replies.
        desirable: (P,) float32, 1 where a judged reply is wanted; None for pairs.
    """

    policy: mx.array
    reference: mx.array | None
    lengths: mx.array
    desirable: mx.array | None = None

    @property
    def ratios(self) -> mx.array:
        """(2, P) log-ratios to the reference."""
        assert self.reference is not None
        return self.policy - self.reference


class Outcome(NamedTuple):
    """Losses (P,), and figures for people."""

    losses: mx.array
    metrics: Noted


class Objective(Protocol):
    """A preference objective: a function from scores to losses, and what it has to be given."""

    @property
    def needs_reference(self) -> bool:
        """It reads `Scores.reference`."""
        ...

    @property
    def judged(self) -> bool:
        """It takes judged replies, not pairs."""
        ...

    @property
    def sft_weight(self) -> float:
        """How much of the chosen replies' mean cross-entropy is added."""
        ...

    def __call__(self, scores: Scores) -> Outcome:
        """The losses of P pairs or judged replies."""
        ...


@dataclass(frozen=True)
class Dpo:
    """Direct preference optimization, with its conservative, hinge and IPO forms.

    Args:
        beta: how strongly the policy is held to the reference (IPO's tau).
        label_smoothing: share of pairs that are the wrong way round (cDPO); "sigmoid" only.
        form: "sigmoid", "hinge" (SLiC) or "ipo", which takes means over tokens.
        sft_weight: see `Objective`.

    Raises:
        ConfigError: a value out of range.

    Reference: Rafailov et al. 2023, equation 7; Mitchell 2023, "A note on DPO with noisy
    preferences"; Azar et al. 2023, equation 17; Zhao et al. 2023 (SLiC-HF).
    """

    beta: float = 0.1
    label_smoothing: float = 0.0
    form: Literal["sigmoid", "hinge", "ipo"] = "sigmoid"
    sft_weight: float = 0.0
    needs_reference: ClassVar[bool] = True
    judged: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_positive("beta", self.beta)
        _check_smoothing(self.label_smoothing)
        if self.form not in ("sigmoid", "hinge", "ipo"):
            raise ConfigError(f"form is {self.form!r}; expected 'sigmoid', 'hinge' or 'ipo'")
        if self.label_smoothing and self.form != "sigmoid":
            raise ConfigError(f"label_smoothing goes with form 'sigmoid', not {self.form!r}")

    def __call__(self, scores: Scores) -> Outcome:
        """See `Objective`."""
        ratios = scores.ratios
        if self.form == "ipo":
            chosen, rejected = ratios / scores.lengths
            losses = mx.square(chosen - rejected - 1 / (2 * self.beta))
        elif self.form == "hinge":
            losses = mx.maximum(1 - self.beta * (ratios[0] - ratios[1]), 0.0)
        else:
            losses = smoothed(self.beta * (ratios[0] - ratios[1]), self.label_smoothing)
        return Outcome(losses, pair_metrics(self.beta * ratios))


@dataclass(frozen=True)
class Orpo:
    """Odds-ratio preference optimization: fine-tuning and preference in one, without a reference.

    Args:
        weight: of the odds-ratio term (lambda).
        sft_weight: of the chosen replies' mean cross-entropy.

    Raises:
        ConfigError: a value out of range.

    Reference: Hong et al. 2024, equations 4, 6 and 7.
    """

    weight: float = 0.1
    sft_weight: float = 1.0
    needs_reference: ClassVar[bool] = False
    judged: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_positive("weight", self.weight)

    def __call__(self, scores: Scores) -> Outcome:
        """See `Objective`."""
        mean = scores.policy / scores.lengths
        odds = log_odds(mean)
        losses = self.weight * smoothed(odds[0] - odds[1])
        return Outcome(losses, pair_metrics(self.weight * mean))


@dataclass(frozen=True)
class SimPo:
    """Simple preference optimization: mean log-probabilities as rewards, with a margin.

    Args:
        beta: scale of the rewards.
        gamma: the margin that the chosen reply's reward should have.
        label_smoothing: share of pairs that are the wrong way round.
        sft_weight: see `Objective` (CPO-SimPO where it is over 0).

    Raises:
        ConfigError: a value out of range.

    Reference: Meng et al. 2024, equation 6.
    """

    beta: float = 2.0
    gamma: float = 1.0
    label_smoothing: float = 0.0
    sft_weight: float = 0.0
    needs_reference: ClassVar[bool] = False
    judged: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_positive("beta", self.beta)
        _check_smoothing(self.label_smoothing)

    def __call__(self, scores: Scores) -> Outcome:
        """See `Objective`."""
        rewards = self.beta * scores.policy / scores.lengths
        losses = smoothed(rewards[0] - rewards[1] - self.gamma, self.label_smoothing)
        return Outcome(losses, pair_metrics(rewards))


@dataclass(frozen=True)
class Kto:
    """Kahneman-Tversky optimization: judged replies, no pairs.

    Args:
        beta: how strongly the policy is held to the reference.
        desirable_weight, undesirable_weight: of wanted and unwanted replies; with n_w and n_u of
            them, the paper asks for desirable_weight n_w / (undesirable_weight n_u) in 1 to 4/3.

    Raises:
        ConfigError: a value out of range.

    Reference: Ethayarajh et al. 2024, equations 7 and 8.
    """

    beta: float = 0.1
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    needs_reference: ClassVar[bool] = True
    judged: ClassVar[bool] = True
    sft_weight: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        _check_positive("beta", self.beta)
        _check_positive("desirable_weight", self.desirable_weight)
        _check_positive("undesirable_weight", self.undesirable_weight)

    def __call__(self, scores: Scores) -> Outcome:
        """See `Objective`."""
        assert scores.desirable is not None
        wanted, unwanted = scores.desirable, 1 - scores.desirable
        ratio, elsewhere = scores.ratios
        divergence = mx.stop_gradient(mx.maximum(elsewhere.mean(), 0.0))
        side = wanted - unwanted
        value = mx.sigmoid(self.beta * side * (ratio - divergence))
        weight = self.desirable_weight * wanted + self.undesirable_weight * unwanted
        reward = self.beta * ratio
        metrics = {
            "reward_desirable": mean_where(reward, wanted),
            "reward_undesirable": mean_where(reward, unwanted),
            "kl": mean_of(divergence),
        }
        return Outcome(weight * (1 - value), metrics)


def smoothed(margin: mx.array, label_smoothing: float = 0.0) -> mx.array:
    """-(1 - e) log sigmoid(margin) - e log sigmoid(-margin)."""
    loss = mx.logaddexp(-margin, mx.array(0.0))
    return loss + label_smoothing * margin if label_smoothing else loss


def log_odds(logprob: mx.array) -> mx.array:
    """log(p / (1 - p)) of p = e^logprob, at most that of p = 1 - 1e-6."""
    below = mx.minimum(logprob, _CERTAIN)
    return below - mx.log(-mx.expm1(below))


def pair_metrics(rewards: mx.array) -> Noted:
    """Figures of (2, P) rewards of chosen and rejected replies."""
    chosen, rejected = rewards
    return {
        "reward_chosen": mean_of(chosen),
        "reward_rejected": mean_of(rejected),
        "margin": mean_of(chosen - rejected),
        "accuracy": mean_of(chosen > rejected),
    }


def _check_positive(name: str, value: float) -> None:
    if not value > 0:
        raise ConfigError(f"{name} is {value!r}; expected more than 0")


def _check_smoothing(value: float) -> None:
    if not 0 <= value < 0.5:
        raise ConfigError(f"label_smoothing is {value!r}; expected 0 up to, not including, 0.5")


OBJECTIVES: dict[str, Objective] = {
    "dpo": Dpo(),
    "ipo": Dpo(form="ipo"),
    "hinge": Dpo(form="hinge"),
    "orpo": Orpo(),
    "simpo": SimPo(),
    "kto": Kto(),
}
