"""The learning rate of each step: a linear warm-up, then a fall to a share of the peak.

A pure function of the step, so that a resumed run needs no state for it.
"""

from __future__ import annotations

import math

from mlx_companion.training.config import TrainConfig


def warmup_steps(total: int, config: TrainConfig) -> int:
    """Steps of warm-up in a run of `total` steps; at least one step stays after it."""
    wanted = config.warmup_steps
    if wanted is None:
        wanted = math.ceil(config.warmup_ratio * total)
    return max(0, min(wanted, total - 1))


def learning_rate(step: int, total: int, config: TrainConfig) -> float:
    """Learning rate of one step.

    Warm-up of w steps: lr * (step + 1) / (w + 1). After it, with t from 0 at step w to 1 at the
    last step and f the final share: lr * (f + (1 - f) * (1 + cos(pi t)) / 2) for "cosine",
    lr * (f + (1 - f) * (1 - t)) for "linear", lr for "constant".

    Args:
        step: counted from 0.
        total: steps of the whole run.
        config: `lr`, `schedule`, warm-up and `final_lr_ratio` are read.

    Reference: Loshchilov & Hutter 2017, "SGDR: Stochastic Gradient Descent with Warm Restarts".
    """
    warmup = warmup_steps(total, config)
    if step < warmup:
        return config.lr * (step + 1) / (warmup + 1)
    if config.schedule == "constant":
        return config.lr
    t = min(1.0, (step - warmup) / max(1, total - 1 - warmup))
    left = 1 - t if config.schedule == "linear" else (1 + math.cos(math.pi * t)) / 2
    return config.lr * (config.final_lr_ratio + (1 - config.final_lr_ratio) * left)
