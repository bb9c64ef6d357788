"""The learning rate of each step: a warm-up, then a schedule between the peak and a share of it.

A pure function of how far the run is (in steps or in FLOPs), so that a resumed run needs no state
for it. `curve` gives the numbers of a whole run, to look at before it starts.
"""

from __future__ import annotations

import math

from mlx_companion.training.config import Phase, TrainConfig


def warmup_steps(total: int, config: TrainConfig) -> int:
    """Steps of warm-up in a run of `total` steps; at least one step stays after it."""
    wanted = config.warmup_steps
    if wanted is None:
        wanted = math.ceil(config.warmup_ratio * total)
    return max(0, min(wanted, total - 1))


def learning_rate(step: int, total: int, config: TrainConfig) -> float:
    """Learning rate of one step.

    Warm-up of w steps: lr * rise((step + 1) / (w + 1)). After it lr * decay(t), with t from 0 at
    step w to 1 at the last step.

    Args:
        step: counted from 0.
        total: steps of the whole run.
        config: `lr`, `schedule` and what it reads.
    """
    warmup = warmup_steps(total, config)
    if step < warmup:
        return config.lr * rise((step + 1) / (warmup + 1), config)
    return config.lr * decay((step - warmup) / max(1, total - 1 - warmup), config)


def learning_rate_at(progress: float, step: int, config: TrainConfig) -> float:
    """Learning rate of a step in a run whose end is not known in steps.

    Args:
        progress: share of the whole run (of `max_flops`) that will be done after the step.
        step: counted from 0; read where the warm-up is given in steps.
        config: as in `learning_rate`.
    """
    if config.warmup_steps is not None:
        rising = rise(min(1.0, (step + 1) / (config.warmup_steps + 1)), config)
        return config.lr * rising * decay(progress, config)
    ratio = config.warmup_ratio
    if progress < ratio:
        return config.lr * rise(progress / ratio, config)
    return config.lr * decay((progress - ratio) / max(1 - ratio, 1e-9), config)


def curve(total: int, config: TrainConfig) -> list[float]:
    """The learning rates of all steps of a run."""
    return [learning_rate(step, total, config) for step in range(total)]


def rise(t: float, config: TrainConfig) -> float:
    """The share of the peak at t, from 0 to 1 through the warm-up.

    With i the initial share: i + (1 - i) * t, or i + (1 - i) * (1 - cos(pi t)) / 2 for "onecycle".
    """
    risen = (1 - math.cos(math.pi * t)) / 2 if config.schedule == "onecycle" else t
    return config.initial_lr_ratio + (1 - config.initial_lr_ratio) * risen


def decay(t: float, config: TrainConfig) -> float:
    """The share of the peak at t, from 0 at the end of the warm-up to 1 at the end of the run.

    With f the final share, f + (1 - f) * left(t):

    =========== ===================================================================================
    constant    1, whatever f is
    linear      left = 1 - t
    cosine      left = (1 + cos(pi t)) / 2; with `cycles` n, n such falls one after the other
    onecycle    as cosine, behind a warm-up that rises by half a cosine
    polynomial  left = (1 - t)^power
    trapezoid   left = 1 until the last `decay_ratio` of the way, then linear; a run can be
                extended from any checkpoint before that
    cyclic      triangles: n times from 1 down to 0 and up again
    chained     the `phases`, one after the other
    =========== ===================================================================================

    References: Loshchilov & Hutter 2017, "SGDR: Stochastic Gradient Descent with Warm Restarts";
    Smith 2017, "Cyclical Learning Rates for Training Neural Networks"; Smith & Topin 2018,
    "Super-Convergence" (one cycle); Hägele et al. 2024, "Scaling Laws and Compute-Optimal Training
    Beyond Fixed Training Durations" (the trapezoid).
    """
    t = min(1.0, t)
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "chained":
        return _chained(t, config.phases)
    f = config.final_lr_ratio
    return f + (1 - f) * _left(config.schedule, t, config)


def _left(shape: str, t: float, config: TrainConfig) -> float:
    if shape == "linear":
        return 1 - t
    if shape == "polynomial":
        return (1 - t) ** config.power
    if shape == "trapezoid":
        return min(1.0, (1 - t) / config.decay_ratio)
    within = t * config.cycles % 1.0 if t < 1 else 1.0
    if shape == "cyclic":
        return abs(2 * within - 1)
    return (1 + math.cos(math.pi * within)) / 2


def _chained(t: float, phases: tuple[Phase, ...]) -> float:
    """The share of the peak at t; phases take their shares of the way."""
    whole = sum(phase.share for phase in phases)
    begin = 0.0
    for phase in phases[:-1]:
        end = begin + phase.share / whole
        if t < end:
            return phase.at((t - begin) / (end - begin))
        begin = end
    return phases[-1].at(min(1.0, (t - begin) / (1 - begin)))
