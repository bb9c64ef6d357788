"""How a training run goes: the one place where its defaults live."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from mlx_companion.errors import ConfigError

Schedule = Literal[
    "cosine",
    "linear",
    "constant",
    "trapezoid",
    "onecycle",
    "polynomial",
    "cyclic",
    "chained",
]
Shape = Literal["constant", "linear", "cosine", "exponential"]
OptimizerName = Literal["adamw", "adamw8bit", "muon"]
Sharding = Literal["none", "full"]


@dataclass(frozen=True)
class Phase:
    """One part of a chained schedule: from one share of the peak learning rate to another.

    Args:
        share: of the way behind the warm-up, as a weight beside those of the other phases.
        start, end: shares of the peak.
        shape: how it goes from one to the other; "constant" stays at `start`.

    Raises:
        ConfigError: a value outside its range.
    """

    share: float
    start: float = 1.0
    end: float = 1.0
    shape: Shape = "linear"

    def __post_init__(self) -> None:
        if not self.share > 0:
            raise ConfigError(f"a phase's share is {self.share!r}; expected a number over 0")
        if self.shape not in get_args(Shape):
            raise ConfigError(
                f"a phase's shape is {self.shape!r}; expected one of {', '.join(get_args(Shape))}"
            )
        least = min(self.start, self.end)
        if least < 0 or (self.shape == "exponential" and least == 0):
            raise ConfigError(
                f"a phase goes from {self.start!r} to {self.end!r}; expected shares of 0 or more, "
                "and over 0 for an exponential"
            )

    def at(self, t: float) -> float:
        """The share of the peak at t, from 0 to 1 through the phase."""
        if self.shape == "constant":
            return self.start
        if self.shape == "exponential":
            return self.start * (self.end / self.start) ** t
        gone = (1 - math.cos(math.pi * t)) / 2 if self.shape == "cosine" else t
        return self.start + (self.end - self.start) * gone


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run.

    Args:
        epochs: passes over the data.
        max_steps: stop after so many optimizer steps, if that is fewer.
        max_flops: stop after so many floating-point operations of training, as the trainer's
            `flops` counts them; `epochs` then is not read, and the learning rate follows the
            share of them that is done.
        batch_tokens: most tokens in a micro-batch, rows x padded length.
        max_rows: most rows in a micro-batch; None for no limit.
        accumulate: micro-batches per optimizer step; their gradients weigh by target tokens.
        max_tokens: longest row, in tokens.
        optimizer: "adamw" for everything; "adamw8bit", the same with a quarter of the state; or
            "muon" for hidden matrices, with AdamW for embeddings, output heads and vectors, and
            row-wise RMSProp for hash tables; see `training.optimizers`.
        lr: highest learning rate.
        lr_ratios: learning rates of some parameters as shares of `lr`: glob patterns of their
            names, of which the first that matches counts.
        schedule: how it goes on after the warm-up; see `training.schedule.decay`.
        warmup_ratio: share of all steps in which it rises from near 0.
        warmup_steps: the same as a number of steps; overrides `warmup_ratio`.
        decay_ratio: share of what comes after the warm-up in which a trapezoid falls.
        initial_lr_ratio: what the warm-up rises from, as a share of `lr`.
        final_lr_ratio: what it falls to, as a share of `lr`.
        power: of a polynomial schedule.
        cycles: falls of a cosine schedule (more than one are warm restarts), triangles of a cyclic
            one.
        phases: of a chained schedule.
        weight_decay: of matrices and tables, decoupled; vectors do not decay.
        betas, eps: of AdamW, with bias correction.
        momentum: of Muon.
        clip_norm: gradients of a larger global norm are scaled down to it; None never.
        gradient_checkpointing: compute layers again in the backward pass instead of keeping what
            they computed; about a third more time for a fraction of the memory.
        share_prefix: run the tokens that all rows of a micro-batch start with (a system prompt)
            once instead of once per row; the result is the same.
        eval_every: steps between held-out losses; None for one at the end of each epoch.
        save_every: steps between checkpoints; one is also written at the end and when stopped.
        keep_last: how many checkpoints stay on the disk.
        keep_best: end with the weights of the lowest held-out loss instead of the last ones.
        patience: stop after so many evaluations in a row without a gain; None never.
        min_delta: what counts as a gain, in nats per target token.
        max_bad_steps: steps in a row with a loss or gradient that is not finite (each of them is
            skipped) before the run gives up.
        seed: decides order, dropout and the adapter's initial values.
        dtype: number type a model is loaded in; "auto" is float32 on CPU, else the files' own.
        compile: fuse the step with `mx.compile`. Every new shape is traced again, on a CPU with
            a C++ compiler at that, so it pays only where few shapes occur.
        pad_to: row lengths are rounded up to a multiple of this, so that fewer shapes occur;
            None for 1, or 32 where steps are compiled.
        packing: samples one after the other in rows of up to `batch_tokens`, without padding,
            instead of batches of like length; see `docs/data.md`. An architecture that cannot do
            it gets those batches, and a warning.
        stream: encode a data file to the disk once and read batches from there; None for data of
            64 MB and more. What is computed is the same.
        sharding: what several ranks (`training.distributed`) hold: "none", all of the model each;
            or "full", a part of every block's matrices, gradients and optimizer state each.

    Raises:
        ConfigError: a value outside its range.

    Reference: Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization".
    """

    epochs: int = 3
    max_steps: int | None = None
    max_flops: float | None = None
    batch_tokens: int = 1024
    max_rows: int | None = None
    accumulate: int = 1
    max_tokens: int = 1024
    optimizer: OptimizerName = "adamw"
    lr: float = 3e-4
    lr_ratios: dict[str, float] = field(default_factory=dict)
    schedule: Schedule = "cosine"
    warmup_ratio: float = 0.05
    warmup_steps: int | None = None
    decay_ratio: float = 0.3
    initial_lr_ratio: float = 0.0
    final_lr_ratio: float = 0.1
    power: float = 2.0
    cycles: int = 1
    phases: tuple[Phase, ...] = ()
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    momentum: float = 0.95
    clip_norm: float | None = 1.0
    gradient_checkpointing: bool = False
    share_prefix: bool = True
    eval_every: int | None = None
    save_every: int = 50
    keep_last: int = 2
    keep_best: bool = True
    patience: int | None = None
    min_delta: float = 0.0
    max_bad_steps: int = 5
    seed: int = 0
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    compile: bool = False
    pad_to: int | None = None
    packing: bool = False
    stream: bool | None = None
    sharding: Sharding = "none"

    def __post_init__(self) -> None:
        # YAML and JSON give a list.
        object.__setattr__(self, "betas", tuple(self.betas))
        object.__setattr__(self, "phases", tuple(self.phases))
        for name in ("epochs", "batch_tokens", "accumulate", "save_every", "keep_last", "cycles"):
            self._check(name, getattr(self, name) >= 1, "1 or more")
        for name in ("max_steps", "max_rows", "eval_every", "patience", "pad_to"):
            value = getattr(self, name)
            self._check(name, value is None or value >= 1, "1 or more, or None")
        self._check("max_bad_steps", self.max_bad_steps >= 1, "1 or more")
        self._check("max_tokens", self.max_tokens >= 2, "2 or more")
        self._check("lr", 0 < self.lr < 1, "between 0 and 1")
        # Every packed row has a shape of its own.
        fits = not (self.packing and self.compile)
        self._check("packing", fits, "false where steps are compiled")
        self._check("eps", self.eps > 0, "over 0")
        for name in ("warmup_ratio", "initial_lr_ratio", "final_lr_ratio"):
            self._check(name, 0 <= getattr(self, name) <= 1, "from 0 to 1")
        for name in ("weight_decay", "min_delta"):
            self._check(name, getattr(self, name) >= 0, "0 or more")
        self._check("warmup_steps", (self.warmup_steps or 0) >= 0, "0 or more, or None")
        self._check("clip_norm", self.clip_norm is None or self.clip_norm > 0, "over 0, or None")
        fits = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        self._check("betas", fits, "two numbers from 0 up to, not including, 1")
        self._check("max_flops", self.max_flops is None or self.max_flops > 0, "over 0, or None")
        self._check("momentum", 0 <= self.momentum < 1, "from 0 up to, not including, 1")
        self._check("decay_ratio", 0 < self.decay_ratio <= 1, "over 0, up to 1")
        positive = all(ratio > 0 for ratio in self.lr_ratios.values())
        self._check("lr_ratios", positive, "ratios over 0")
        self._check("power", self.power > 0, "over 0")
        chained = self.schedule == "chained"
        self._check("phases", chained == bool(self.phases), 'some with schedule "chained" only')
        named = {"schedule": Schedule, "optimizer": OptimizerName, "sharding": Sharding}
        for name, choices in named.items():
            known = get_args(choices)
            self._check(name, getattr(self, name) in known, f"one of {', '.join(known)}")
        # Muon needs whole matrices; gathers cannot be compiled.
        whole = self.sharding == "none"
        self._check("optimizer", whole or self.optimizer != "muon", "AdamW where sharding is full")
        self._check("compile", whole or not self.compile, "false where sharding is full")

    def _check(self, name: str, fits: bool, expected: str) -> None:
        if not fits:
            raise ConfigError(f"{name} is {getattr(self, name)!r}; expected {expected}")
