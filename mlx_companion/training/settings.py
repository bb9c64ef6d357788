"""All settings of a fine-tuning run in one object, for a YAML file and for command lines.

config = load_config(FinetuneConfig, "tune.yaml", {"train.lr": 1e-4, "lora.rank": 16})
finetune(model, data, out, lora=config.lora, train=config.train)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import mlx.core as mx

from mlx_companion.lora import LoraConfig
from mlx_companion.models.load import LanguageModel, load
from mlx_companion.runtime.monitor import ResourceLimits
from mlx_companion.training.config import TrainConfig


@dataclass(frozen=True)
class FinetuneConfig:
    """Settings of a fine-tuning run.

    Args:
        lora: the adapter's shape.
        train: how it is trained.
        limits: what the run may take from the machine.
    """

    lora: LoraConfig = field(default_factory=LoraConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    limits: ResourceLimits = field(default_factory=ResourceLimits)


def load_for(
    model: str | Path, train: TrainConfig, *, dequantize: bool | None = None
) -> LanguageModel:
    """A model in the number type that the settings of a run ask for; see `models.load`."""
    dtype = None if train.dtype == "auto" else getattr(mx, train.dtype)
    return load(model, dtype=dtype, dequantize=dequantize)
