"""What an adapter looks like: method, rank, strength and the layers it sits on; all defaults.

    LoraConfig(rank=16, scaling="rslora")
    LoraConfig(dora=True, targets=("q_proj", "v_proj", "lm_head"))
    LoraConfig(rank=8, rank_pattern={"down_proj": 32}, alpha_pattern={"down_proj": 64})

The fields are orthogonal: rsLoRA is a scaling, DoRA a decomposition, PiSSA a start, QLoRA what
happens on a quantized base, LoRA+ a choice of learning rates (`lora_plus`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeVar, get_args, get_type_hints

from mlx_companion.errors import ConfigError
from mlx_companion.runtime.config import load_config

Scaling = Literal["standard", "rslora"]
Start = Literal["kaiming", "pissa"]
TiedUse = Literal["both", "input", "output"]
AdapterDtype = Literal["float32", "bfloat16", "float16"]
T = TypeVar("T")

# The attention and MLP projections under the names that mlx-lm's models give them; `qkv_proj`
# and `gate_up_proj` are Phi-3's, `dense`, `fc1` and `fc2` Phi-2's.
DEFAULT_TARGETS = (
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "qkv_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
    "gate_up_proj",
    "dense",
    "fc1",
    "fc2",
)


@dataclass(frozen=True)
class LoraConfig:
    """The shape of an adapter.

    Args:
        rank: inner width r of the two matrices.
        alpha: strength; see `scaling`.
        dropout: share of an adapter's inputs zeroed while training, 0 <= dropout < 1.
        targets: patterns (`fnmatch`) of module paths, matched from any dot on: "q_proj",
            "self_attn.*", "model.layers.0.mlp.up_proj". Embeddings are adapted when a pattern
            names them ("embed_tokens"; "*" alone does not). "lm_head" on a model whose head is
            tied to its embedding means that shared matrix.
        layers: only the last so many transformer blocks; None for all.
        scaling: "standard" multiplies the update by alpha / r, "rslora" by alpha / sqrt(r), which
            keeps large ranks learning.
        dora: learn magnitude and direction apart: W' = m (W + dW) / ||W + dW||, with one m per
            output.
        init: "kaiming" starts from no change; "pissa" starts A and B at the principal singular
            vectors of W, with as much taken off W, so that the model starts the same.
        rank_pattern, alpha_pattern: values for some layers: regular expressions that the end of a
            path must match from a dot on; the first that does counts (PEFT's meaning).
        tied: of an embedding that is also the output head, which of the two uses is adapted.
            "both" keeps them tied.
        dtype: what A and B are kept in. The products run in the dtype of the activations anyway.

    Raises:
        ConfigError: a value outside its range.

    References: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models"; Kalajdzievski
    2023, "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA"; Liu et al. 2024, "DoRA:
    Weight-Decomposed Low-Rank Adaptation"; Meng et al. 2024, "PiSSA: Principal Singular Values and
    Singular Vectors Adaptation of Large Language Models".
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = DEFAULT_TARGETS
    layers: int | None = None
    scaling: Scaling = "standard"
    dora: bool = False
    init: Start = "kaiming"
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    tied: TiedUse = "both"
    dtype: AdapterDtype = "float32"

    def __post_init__(self) -> None:
        if isinstance(self.targets, str) or not isinstance(self.targets, Iterable):
            raise ConfigError(f"targets must be a list of patterns, got {self.targets!r}")
        # YAML and JSON give a list.
        object.__setattr__(self, "targets", tuple(self.targets))
        _check_rank("rank", self.rank)
        _check_alpha("alpha", self.alpha)
        if not _number(self.dropout) or not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout must be at least 0 and under 1, got {self.dropout!r}")
        if not self.targets or not all(isinstance(t, str) and t for t in self.targets):
            raise ConfigError(f"targets must name at least one pattern, got {self.targets!r}")
        if self.layers is not None and (not _whole(self.layers) or self.layers < 1):
            raise ConfigError(f"layers must be 1 or more, or None for all, got {self.layers!r}")
        if not isinstance(self.dora, bool):
            raise ConfigError(f"dora must be true or false, got {self.dora!r}")
        self._check_choices()
        self._check_patterns()

    @property
    def scale(self) -> float:
        """What the low-rank product is multiplied by where no pattern says otherwise."""
        return self._scale(self.rank, self.alpha)

    def rank_of(self, path: str) -> int:
        """The rank of the layer at a path."""
        return _first_match(self.rank_pattern, path, self.rank)

    def scale_of(self, path: str) -> float:
        """What the low-rank product of the layer at a path is multiplied by."""
        return self._scale(self.rank_of(path), _first_match(self.alpha_pattern, path, self.alpha))

    def _scale(self, rank: int, alpha: float) -> float:
        return alpha / (math.sqrt(rank) if self.scaling == "rslora" else rank)

    def _check_choices(self) -> None:
        hints = get_type_hints(type(self))
        for name in ("scaling", "init", "tied", "dtype"):
            known = get_args(hints[name])
            if getattr(self, name) not in known:
                listed = ", ".join(known)
                raise ConfigError(f"{name} must be one of {listed}, got {getattr(self, name)!r}")

    def _check_patterns(self) -> None:
        for name, check in (("rank_pattern", _check_rank), ("alpha_pattern", _check_alpha)):
            patterns = getattr(self, name)
            if not isinstance(patterns, Mapping):
                raise ConfigError(f"{name} must map patterns to values, got {patterns!r}")
            object.__setattr__(self, name, dict(patterns))
            for pattern, value in patterns.items():
                _check_regex(name, pattern)
                check(f"{name}[{pattern!r}]", value)


def config_from_dict(values: Mapping[str, Any]) -> LoraConfig:
    """A config from JSON or YAML values; keys that are left out have their defaults.

    Raises:
        ConfigError: an unknown key (names the nearest one), or a value of another type or range.
    """
    return load_config(LoraConfig, None, {str(key): value for key, value in values.items()})


def config_to_dict(config: LoraConfig) -> dict[str, Any]:
    """A config as plain values; reading them back gives an equal config."""
    return {f.name: getattr(config, f.name) for f in fields(config)}


def lora_plus(ratio: float = 16.0) -> dict[str, float]:
    """LoRA+ as the trainer takes it: `TrainConfig(lr_ratios=lora_plus(16))`.

    B (which starts at zero) learns `ratio` times as fast as A. On embeddings the matrix that
    starts at zero is A. The magnitudes of DoRA keep the plain rate.

    Reference: Hayou et al. 2024, "LoRA+: Efficient Low Rank Adaptation of Large Models".

    Raises:
        ConfigError: the ratio is not over 0.
    """
    _check_alpha("the ratio of LoRA+", ratio)
    return {
        "*embed*.lora_a": ratio,
        "*wte.lora_a": ratio,
        "*embed*.lora_b": 1.0,
        "*wte.lora_b": 1.0,
        "*.lora_b": ratio,
    }


def _first_match(patterns: Mapping[str, T], path: str, default: T) -> T:
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", path):
            return value
    return default


def _check_regex(name: str, pattern: object) -> None:
    try:
        if not isinstance(pattern, str) or not pattern:
            raise ConfigError(f"{name} must map texts to values, got the key {pattern!r}")
        re.compile(pattern)
    except re.error as error:
        raise ConfigError(
            f"{name}: {pattern!r} is not a regular expression ({error}); write e.g. 'down_proj' "
            r"or 'layers\.0\..*'"
        ) from error


def _check_rank(name: str, value: object) -> None:
    if not isinstance(value, int) or not _whole(value) or value < 1:
        raise ConfigError(f"{name} must be a whole number of 1 or more, got {value!r}")


def _check_alpha(name: str, value: object) -> None:
    if not isinstance(value, int | float) or not _number(value) or not 0 < value < float("inf"):
        raise ConfigError(f"{name} must be a number over 0, got {value!r}")


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
