"""What an adapter looks like: its rank, its strength and the layers it sits on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mlx_companion.errors import ConfigError

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
        alpha: strength; the update is multiplied by alpha / rank.
        dropout: share of an adapter's inputs zeroed while training, 0 <= dropout < 1.
        targets: patterns (`fnmatch`) of module paths, matched from any dot on: "q_proj",
            "self_attn.*", "model.layers.0.mlp.up_proj".
        layers: only the last so many transformer blocks; None for all.

    Raises:
        ConfigError: a value outside its range.

    Reference: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models".
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = DEFAULT_TARGETS
    layers: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.targets, str) or not isinstance(self.targets, Iterable):
            raise ConfigError(f"targets must be a list of patterns, got {self.targets!r}")
        # YAML and JSON give a list.
        object.__setattr__(self, "targets", tuple(self.targets))
        if not _whole(self.rank) or self.rank < 1:
            raise ConfigError(f"rank must be a whole number of 1 or more, got {self.rank!r}")
        if not _number(self.alpha) or not 0 < self.alpha < float("inf"):
            raise ConfigError(f"alpha must be a number over 0, got {self.alpha!r}")
        if not _number(self.dropout) or not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout must be at least 0 and under 1, got {self.dropout!r}")
        if not self.targets or not all(isinstance(t, str) and t for t in self.targets):
            raise ConfigError(f"targets must name at least one pattern, got {self.targets!r}")
        if self.layers is not None and (not _whole(self.layers) or self.layers < 1):
            raise ConfigError(f"layers must be 1 or more, or None for all, got {self.layers!r}")

    @property
    def scale(self) -> float:
        """What the low-rank product is multiplied by: alpha / rank."""
        return self.alpha / self.rank


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
