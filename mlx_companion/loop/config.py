"""All settings of the self-improvement loop, with their defaults, in one place.

A YAML file (`mlx-companion improve --config my.yaml`) or dotted overrides
(`--set gate.alpha=0.01`) replace values; an unknown key is an error.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mlx_companion.errors import ConfigError
from mlx_companion.lora import LoraConfig
from mlx_companion.models.registry import DEFAULT_ENCODER, DEFAULT_MODEL
from mlx_companion.runtime.monitor import ResourceLimits
from mlx_companion.training import TrainConfig

__all__ = [
    "CollectConfig",
    "GateConfig",
    "GenerateConfig",
    "JudgeConfig",
    "LoopConfig",
    "ReplayConfig",
    "ServeConfig",
]


@dataclass(frozen=True)
class ServeConfig:
    """How the companion answers, in chat and at the gate alike.

    Args:
        temperature, top_k: sampling of served replies.
        max_tokens: the length at which a reply is cut off (tokens).
    """

    temperature: float = 0.5
    top_k: int = 40
    max_tokens: int = 80


@dataclass(frozen=True)
class CollectConfig:
    """Where a round's prompts come from.

    Args:
        least_prompts: with fewer distinct prompts of the person's own in the store, the
            packaged prompts are used as well.
        gate_percent: share of the person's own prompts that is kept for the gate (percent).
        gate_items: prompts in the gate set; the person's own come first, packaged ones fill up.
        gate_block: the person's gate prompts join the gate set in blocks of this many, so
            that the set, and with it the error ledger, does not change with every message.
        max_prompts: the most training prompts in one round.
        max_prompt_chars: longer prompts are left out of training and gate (characters).
    """

    least_prompts: int = 100
    gate_percent: int = 25
    gate_items: int = 160
    gate_block: int = 40
    max_prompts: int = 280
    max_prompt_chars: int = 2000


@dataclass(frozen=True)
class GenerateConfig:
    """How training samples are made from the active version.

    Args:
        samples_per_prompt: samples for each training prompt.
        temperature, top_k: sampling; warmer than serving, because distinct samples teach.
        max_rows: prompts decoded together.
    """

    samples_per_prompt: int = 3
    temperature: float = 0.6
    top_k: int = 50
    max_rows: int = 64


@dataclass(frozen=True)
class JudgeConfig:
    """What counts as a good reply, besides the rules of the profile.

    Args:
        encoder: the sentence encoder that measures relevance.
        least_new_words: content words a reply must have that its prompt has not.
        train_new_words: the same for training samples, where more is asked: a version that
            learns from replies close to their prompts ends up saying prompts back.
        least_kept: the relevance thresholds keep at least this share of real pairs.
        relevance_threshold, likelihood_threshold: None measures them on written pairs.
        fluency_quantile: a reply less fluent than this share of the written answers is
            refused (perplexity under the base).
        near_duplicate: samples of one prompt with a higher cosine count as the same.
    """

    encoder: str = DEFAULT_ENCODER
    least_new_words: int = 2
    train_new_words: int = 5
    least_kept: float = 0.9
    relevance_threshold: float | None = None
    likelihood_threshold: float | None = None
    fluency_quantile: float = 0.98
    near_duplicate: float = 0.95


@dataclass(frozen=True)
class ReplayConfig:
    """What the round trains on.

    Args:
        per_prompt: the most distinct samples kept for one prompt.
        max_rows: the most training rows.
        synthetic_ceiling: the most that generated rows may make of all rows.
        general_percent: rows of the base's own answers to general prompts, replayed against
            forgetting (percent of all rows).
    """

    per_prompt: int = 2
    max_rows: int = 400
    synthetic_ceiling: float = 0.8
    general_percent: int = 8


@dataclass(frozen=True)
class GateConfig:
    """When a new version may replace the old one.

    Args:
        alpha: total chance of a false deployment over all rounds judged on one gate set.
        relevance_margin: mean relevance may fall by at most this (cosine).
        variety_margin: distinct replies may become fewer by at most this share.
        perplexity_margin: perplexity of the frozen general text may rise by at most this share.
        divergence_limit: mean KL divergence from the base on its own answers (nats per token).
        least_scale: the smallest scale tried for an adapter that breaks a margin.
        scale_steps: bisection steps of the scale.
        general_chars: how much of the frozen general text is read (characters).
    """

    alpha: float = 0.05
    relevance_margin: float = 0.03
    variety_margin: float = 0.05
    perplexity_margin: float = 0.10
    divergence_limit: float = 0.5
    least_scale: float = 0.1
    scale_steps: int = 3
    general_chars: int = 8000


# What a round cannot do without even one of.
_COUNTS = (
    ("serve", "max_tokens"),
    ("collect", "gate_items"),
    ("collect", "gate_block"),
    ("collect", "max_prompts"),
    ("generate", "samples_per_prompt"),
    ("generate", "max_rows"),
    ("replay", "per_prompt"),
    ("replay", "max_rows"),
    ("gate", "general_chars"),
)


def _train() -> TrainConfig:
    return TrainConfig(epochs=2, max_tokens=512)


@dataclass(frozen=True)
class LoopConfig:
    """One self-improvement loop.

    Args:
        model: the base model, as `mc.load` takes it.
        profile: a packaged profile's name or a YAML file.
        mode: "auto" deploys what passes the gate; "review" leaves it for
            `mlx-companion promote`; "dry-run" decides and changes nothing.
        rounds: the most rounds in one call.
        max_rounds: the most rounds in the life of the database; 0 is no limit.
        cooldown_minutes: the least time between two rounds; 0 is none.
        seed: makes a round repeatable.
    """

    model: str = DEFAULT_MODEL
    profile: str = "default"
    mode: Literal["auto", "review", "dry-run"] = "auto"
    rounds: int = 1
    max_rounds: int = 0
    cooldown_minutes: float = 0.0
    seed: int = 0
    serve: ServeConfig = field(default_factory=ServeConfig)
    collect: CollectConfig = field(default_factory=CollectConfig)
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    train: TrainConfig = field(default_factory=_train)
    gate: GateConfig = field(default_factory=GateConfig)
    limits: ResourceLimits = field(default_factory=ResourceLimits)

    def __post_init__(self) -> None:
        _require(self.rounds >= 1, "rounds", self.rounds, "1 or more")
        _require(self.max_rounds >= 0, "max_rounds", self.max_rounds, "0 (no limit) or more")
        _require(self.cooldown_minutes >= 0, "cooldown_minutes", self.cooldown_minutes, "0 or more")
        for part, name in _COUNTS:
            value = getattr(getattr(self, part), name)
            _require(value >= 1, f"{part}.{name}", value, "1 or more")
        ceiling = self.replay.synthetic_ceiling
        _require(0 < ceiling <= 1, "replay.synthetic_ceiling", ceiling, "more than 0, at most 1")
        _require(0 < self.gate.alpha < 1, "gate.alpha", self.gate.alpha, "between 0 and 1")
        scale = self.gate.least_scale
        _require(0 < scale <= 1, "gate.least_scale", scale, "more than 0, at most 1")


def _require(holds: bool, key: str, given: object, expected: str) -> None:
    if not holds:
        raise ConfigError(f"{key}={given!r} cannot be used: give {expected}")
