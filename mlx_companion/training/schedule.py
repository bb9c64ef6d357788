"""The learning rate of each step: a linear warm-up, then a fall to a share of the peak.

A pure function of how far the run is (in steps or in FLOPs), so that a resumed run needs no state
for it.
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

    Warm-up of w steps: lr * (step + 1) / (w + 1). After it `config.lr * decay(t)`, with t from 0
    at step w to 1 at the last step.

    Args:
        step: counted from 0.
        total: steps of the whole run.
        config: `lr`, `schedule`, warm-up, `decay_ratio` and `final_lr_ratio` are read.
    """
    warmup = warmup_steps(total, config)
    if step < warmup:
        return config.lr * (step + 1) / (warmup + 1)
    return config.lr * decay((step - warmup) / max(1, total - 1 - warmup), config)


def learning_rate_at(progress: float, step: int, config: TrainConfig) -> float:
    """Learning rate of a step in a run whose end is not known in steps.

    Args:
        progress: share of the whole run (of `max_flops`) that will be done after the step.
        step: counted from 0; read where the warm-up is given in steps.
        config: as in `learning_rate`.
    """
    if config.warmup_steps is not None:
        rising = (step + 1) / (config.warmup_steps + 1)
        return config.lr * min(1.0, rising) * decay(progress, config)
    ratio = config.warmup_ratio
    if progress < ratio:
        return config.lr * progress / ratio
    return config.lr * decay((progress - ratio) / max(1 - ratio, 1e-9), config)


def decay(t: float, config: TrainConfig) -> float:
    """The share of the peak at t, from 0 at the end of the warm-up to 1 at the end of the run.

    With f the final share: f + (1 - f) * (1 + cos(pi t)) / 2 for "cosine", f + (1 - f) * (1 - t)
    for "linear", 1 for "constant". "trapezoid" stays at 1 until the last `decay_ratio` of the way
    and falls linearly to f in it; a run can be extended from any checkpoint before that.

    References: Loshchilov & Hutter 2017, "SGDR: Stochastic Gradient Descent with Warm Restarts";
    Hägele et al. 2024, "Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations"
    (the trapezoid).
    """
    t = min(1.0, t)
    if config.schedule == "constant":
        return 1.0
    left = (1 + math.cos(math.pi * t)) / 2
    if config.schedule == "linear":
        left = 1 - t
    elif config.schedule == "trapezoid":
        left = min(1.0, (1 - t) / config.decay_ratio)
    return config.final_lr_ratio + (1 - config.final_lr_ratio) * left
