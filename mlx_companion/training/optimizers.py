"""Optimizers of a run: AdamW (in 8 bits if asked), or Muon for hidden matrices.

    optimizer = optimizer_for(config, model)
    optimizer.init(model.trainable_parameters())
    optimizer.learning_rate = 3e-4            # of every group, each times its own ratio
    optimizer.update(model, gradients)

Parameters are put in groups of one rule, one ratio of learning rates (`TrainConfig.lr_ratios`) and
one weight decay. Only arrays of two and more dimensions decay: norms and biases do not. A run with
a single group is that optimizer itself; with more of them the state holds a list of theirs, which
a checkpoint keeps like any other.

Updates run as plain operations. Of a table of 100,000 x 128 on two cores (MLX 0.32), AdamW takes
40 ms so and 150 ms fused with `mx.compile`, whose CPU code is not vectorized; an update of only
the rows that have a gradient takes 26 ms, which was not worth another rule of updates.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.optimizers import AdamW, MultiOptimizer, Optimizer
from mlx.utils import tree_flatten

from mlx_companion.training.config import TrainConfig
from mlx_companion.training.low_bit import AdamW8bit
from mlx_companion.training.sharding import plain_name

# Tables and heads, by the names that models give them: their rows are independent of each other,
# so that there is nothing to orthogonalize.
TABLES = ("*embed_tokens.*", "*_embedding.*", "*embeddings.*", "*lm_head.*", "*wte.*", "*wpe.*")
# Hash tables are most of a model's parameters: one moment per row instead of two per value.
HASH_TABLES = ("*hash_tok_embedding.*",)
# Makes the mean square of an orthogonal update that of a typical AdamW update.
_RMS = 0.2
# Rows that never had a gradient divide 0 by its root.
_TINY = 1e-20


class Group(NamedTuple):
    """What parameters that are updated alike have in common.

    Attributes:
        rule: "adamw", "adamw8bit", "muon" or "rows".
        ratio: their learning rate as a share of the run's.
        decays: whether weights decay.
    """

    rule: str
    ratio: float
    decays: bool


class Muon(optim.Muon):
    """Muon with AdamW's scale of updates and AdamW's decoupled weight decay.

    With M the Nesterov momentum of the gradients of a matrix W (n x m), O = NewtonSchulz5(M) its
    nearest (roughly) orthogonal matrix: W <- W - lr * (0.2 * sqrt(max(n, m)) * O + decay * W). The
    factor makes the root mean square of an update about 0.2, as AdamW's, so one learning rate and
    one weight decay serve both. (`mlx.optimizers.Muon` adds the decay to the gradient, where the
    orthogonalization scales it away, and scales by sqrt(max(1, n/m)), which wants a learning rate
    of its own.)

    References: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; Liu
    et al. 2025, "Muon is Scalable for LLM Training" (scale and decay).
    """

    def __init__(self, learning_rate: float, momentum: float, weight_decay: float) -> None:
        super().__init__(learning_rate, momentum=momentum, weight_decay=0.0)
        self.decay = weight_decay
        self.streams: Sequence[mx.Stream] = ()
        self._updates = 0

    def apply_single(self, gradient: mx.array, parameter: mx.array, state: dict) -> mx.array:
        """One matrix's update."""
        if not self.streams:
            return self._update(gradient, parameter, state)
        self._updates += 1
        with mx.stream(self.streams[self._updates % len(self.streams)]):
            return self._update(gradient, parameter, state)

    def _update(self, gradient: mx.array, parameter: mx.array, state: dict) -> mx.array:
        state["v"] = self.momentum * state["v"] + (1 - self.momentum) * gradient
        mixed = (1 - self.momentum) * gradient + self.momentum * state["v"]
        update = self._zeropower_via_newtonschulz5(mixed, steps=self.ns_steps)
        lr = self.learning_rate.astype(gradient.dtype)
        scale = _RMS * max(parameter.shape) ** 0.5
        return parameter * (1 - lr * self.decay) - lr * scale * update


class RowwiseRMS(Optimizer):
    """RMSProp with one second moment per row, for tables of which a step touches few rows.

    With g a row of the gradient: v <- beta * v + (1 - beta) * mean(g^2), and
    w <- w - lr * (g / sqrt(v / (1 - beta^t)) + decay * w). A table of n x m costs n numbers of
    state instead of AdamW's 2 n m.

    References: Mudigere et al. 2022, "Software-Hardware Co-design for Fast and Scalable Training
    of Deep Learning Recommendation Models" (row-wise moments); Tieleman & Hinton 2012 (RMSProp).
    """

    def __init__(self, learning_rate: float, beta: float, weight_decay: float) -> None:
        super().__init__()
        self._maybe_schedule("learning_rate", learning_rate)
        self.beta, self.decay = beta, weight_decay

    def init_single(self, parameter: mx.array, state: dict) -> None:
        """One moment per row."""
        state["v"] = mx.zeros((parameter.shape[0], 1))

    def apply_single(self, gradient: mx.array, parameter: mx.array, state: dict) -> mx.array:
        """One table's update."""
        moment = mx.square(gradient).mean(axis=-1, keepdims=True)
        state["v"] = self.beta * state["v"] + (1 - self.beta) * moment
        corrected = state["v"] / (1 - self.beta ** self.step.astype(mx.float32))
        if self.decay:
            parameter = parameter * (1 - self.learning_rate * self.decay)
        return parameter - gradient * (self.learning_rate * mx.rsqrt(corrected + _TINY))


class GroupedOptimizer(MultiOptimizer):
    """Several optimizers, one per group of parameters, which follow one learning rate.

    Args:
        groups: what the optimizers are for.
        optimizers: one per group.
        members: the group of each parameter, by its name.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        optimizers: Sequence[Optimizer],
        members: dict[str, Group],
    ) -> None:
        filters = [_belongs(members, group) for group in groups[:-1]]
        super().__init__(list(optimizers), filters)
        self.groups = tuple(groups)

    @property
    def learning_rate(self) -> mx.array:
        """Of a parameter of ratio 1."""
        return self.optimizers[0].learning_rate / self.groups[0].ratio

    @learning_rate.setter
    def learning_rate(self, value: float | mx.array) -> None:
        for group, optimizer in zip(self.groups, self.optimizers, strict=True):
            optimizer.learning_rate = value * group.ratio


def optimizer_for(config: TrainConfig, model: nn.Module) -> Optimizer:
    """The optimizer that a run's settings ask for.

    Args:
        config: `optimizer`, `lr`, `lr_ratios`, `weight_decay`, `betas`, `eps` and `momentum` are
            read.
        model: its trainable parameters are looked at.
    """
    members = parameter_groups(config, model)
    groups = sorted(set(members.values()))
    optimizers = [_optimizer(group, config) for group in groups]
    if len(groups) == 1 and groups[0].ratio == 1:
        return optimizers[0]
    return GroupedOptimizer(groups, optimizers, members)


def use_streams(optimizer: Optimizer, streams: Sequence[mx.Stream]) -> None:
    """Let Muon, which is all matrix products, update matrices side by side."""
    for one in getattr(optimizer, "optimizers", [optimizer]):
        if isinstance(one, Muon):
            one.streams = streams


def parameter_groups(config: TrainConfig, model: nn.Module) -> dict[str, Group]:
    """The group of every trainable parameter, by name. See `optimizer_for`."""
    tables = {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, nn.Embedding)}
    parameters: dict[str, mx.array] = dict(tree_flatten(model.trainable_parameters()))
    found = {}
    for name, value in parameters.items():
        hidden = value.ndim == 2 and name not in tables and not _matches(name, TABLES)
        rule = "adamw8bit" if config.optimizer == "adamw8bit" else "adamw"
        if config.optimizer == "muon":
            rule = "rows" if _matches(name, HASH_TABLES) else "muon" if hidden else "adamw"
        ratios = [ratio for glob, ratio in config.lr_ratios.items() if fnmatchcase(name, glob)]
        found[name] = Group(rule, ratios[0] if ratios else 1.0, value.ndim >= 2)
    return found


def _optimizer(group: Group, config: TrainConfig) -> Optimizer:
    lr, decay = config.lr * group.ratio, config.weight_decay if group.decays else 0.0
    if group.rule == "muon":
        return Muon(lr, config.momentum, decay)
    if group.rule == "rows":
        return RowwiseRMS(lr, config.betas[1], decay)
    betas = list(config.betas)
    if group.rule == "adamw8bit":
        return AdamW8bit(lr, betas, config.eps, decay, config.seed)
    return AdamW(lr, betas=betas, eps=config.eps, weight_decay=decay, bias_correction=True)


def _matches(name: str, globs: Sequence[str]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)


def _belongs(members: dict[str, Group], group: Group) -> Any:
    return lambda name, _: members[plain_name(name)] == group
