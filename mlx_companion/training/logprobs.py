"""Log-probabilities of target tokens, with a gradient and without full logits.

Preference, reinforcement and distillation losses are all functions of a few numbers per target
token. Here they come from the hidden states of the target positions, a slice of logits at a time:

    rows = target_rows(batch)                      # in a loss's `prepare`
    each = token_logprobs(model, rows.targets)     # (N,), all targets of all rows one after another
    sums = rows.sums(each)                         # (B,)

`rowwise` does for any function of (hidden state, further values) to one number per row what
`kernels.linear_cross_entropy` does for the cross-entropy: it computes the number AND its slope in
the hidden state while the slice's logits exist, and keeps the slope (N, D) only. The output matrix
runs forward once and backward once, and all logits never exist.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from mlx_companion.errors import TrainingError
from mlx_companion.kernels.linear_cross_entropy import chunk_rows, linear_cross_entropy
from mlx_companion.kernels.linear_cross_entropy.sizes import ACCELERATOR_ELEMENTS, CPU_ELEMENTS
from mlx_companion.lora import adapter_parameters, get_multiplier, is_attached, set_multiplier
from mlx_companion.models.heads import head_trains, output_head, split_head
from mlx_companion.models.prefix import can_share, run_prefixed
from mlx_companion.text.batches import Batch
from mlx_companion.training.losses import SftLoss, Targets

RowFunction = Callable[..., mx.array]


class TargetRows(NamedTuple):
    """The targets of a batch, and which of them belong to which row.

    Attributes:
        targets: as the cross-entropy takes them, N targets, row after row.
        at: (B, T) int32, indices among the N; 0 where a row has no more.
        mask: (B, T) float32, 1 where there is one.
    """

    targets: Targets
    at: mx.array
    mask: mx.array

    @property
    def lengths(self) -> mx.array:
        """(B,) float32, targets of each row; at least 1."""
        return mx.maximum(self.mask.sum(axis=1), 1.0)

    def grid(self, each: mx.array) -> mx.array:
        """(N,) to (B, T), 0 where a row has no more."""
        return each[self.at] * self.mask

    def sums(self, each: mx.array) -> mx.array:
        """(N,) to (B,): summed over each row's targets."""
        # Gathered, not scattered: additions in a fixed order give the same bits on every device.
        return self.grid(each).sum(axis=1)


def target_rows(batch: Batch, share_prefix: bool = True) -> TargetRows:
    """Find the targets of a batch and the rows they belong to.

    Args:
        batch: (B, L) tokens and targets; a row may be without any, the batch not.
        share_prefix: run the tokens that all rows start with once; only for models that
            `models.prefix.can_share` accepts.

    Raises:
        DataError: the batch has no target.
    """
    counts = np.array(batch.targets)[:, 1:].sum(axis=1)
    width = max(1, int(counts.max(initial=0)))
    columns = np.arange(width)[None]
    inside = columns < counts[:, None]
    first = (np.cumsum(counts) - counts)[:, None]
    return TargetRows(
        SftLoss(share_prefix=share_prefix).prepare(batch),
        mx.array(np.where(inside, first + columns, 0).astype(np.int32)),
        mx.array(inside.astype(np.float32)),
    )


def target_hidden(model: nn.Module, targets: Targets) -> mx.array:
    """Hidden states (N, D) that predict the targets; (N, V) logits of a model without a cut."""
    backbone, _ = split_head(model)
    if targets.prefix:
        hidden = run_prefixed(model, targets.tokens, targets.prefix)
    else:
        hidden = backbone(targets.tokens)
    return hidden.reshape(-1, hidden.shape[-1])[targets.positions]


def token_logprobs(
    model: nn.Module, targets: Targets, *, temperature: float = 1.0, gradient: bool = True
) -> mx.array:
    """Log-probability of each target.

    Args:
        model: an mlx-lm model, with or without adapters.
        targets: N of them.
        temperature: logits are divided by it.
        gradient: False where none is wanted, which saves half of the work.

    Returns:
        (N,) float32, nats.
    """
    head = output_head(model)
    return -linear_cross_entropy(
        target_hidden(model, targets),
        head,
        targets.labels,
        temperature=temperature,
        head_gradient=gradient and head_trains(head),
        gradient=gradient,
    )


def rowwise(
    model: nn.Module,
    function: RowFunction,
    hidden: mx.array,
    others: Sequence[mx.array] = (),
    *,
    gradient: bool = True,
    arrays: int = 1,
) -> mx.array:
    """Apply a function of single rows slice by slice, keeping slopes instead of logits.

    Args:
        model: what `hidden` comes from; its head's width decides how long a slice is.
        function: (hidden (n, D), *others (n, ...)) -> (n,) float32; row i of the result may
            depend on row i of the arguments only.
        hidden: (N, D); it alone gets a gradient, unless the head is trained itself.
        others: arrays of N rows.
        gradient: False where none is wanted.
        arrays: arrays of logits that the function holds at once; slices are shorter by it.

    Returns:
        (N,) float32.
    """
    on_cpu = mx.default_device().type == mx.DeviceType.cpu
    elements = CPU_ELEMENTS if on_cpu else ACCELERATOR_ELEMENTS
    size = chunk_rows(arrays * _vocabulary(model, hidden), len(hidden), elements)
    if gradient and not head_trains(output_head(model)):
        result: Any = _with_slopes(function, size)(hidden, *others)
        return result[0]
    found: list[mx.array] = []
    for start in range(0, len(hidden), size):
        parts = [values[start : start + size] for values in (hidden, *others)]
        if found:
            parts[0] = _after(parts[0], found[-1])
        found.append(function(*parts))
    return mx.concatenate(found)


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """The model as it was before its adapters, inside the block: the reference for nothing.

    Raises:
        TrainingError: there are no adapters, or more than adapters is trained, so that switching
            them off would not give the model back that training started from.
    """
    check_reference(model)
    strength = get_multiplier(model)
    set_multiplier(model, 0.0)
    try:
        yield
    finally:
        set_multiplier(model, strength)


def check_reference(model: nn.Module) -> None:
    """Raises TrainingError unless `without_adapters` gives the model that training starts from."""
    ask = "compute the reference's log-probabilities before training (training.reference)"
    if not is_attached(model):
        raise TrainingError(f"the model carries no adapter to switch off for the reference; {ask}")
    more = dict(tree_flatten(model.trainable_parameters())).keys() - adapter_parameters(model)
    if more:
        raise TrainingError(
            f"{sorted(more)[0]} is trained beside the adapters, so switching them off does not "
            f"give the reference; {ask}"
        )


def shares_prefix(model: nn.Module) -> bool:
    """Whether rows may run the tokens that they all start with once; probes the model once.

    Call it in a loss's `ready`: outside of what MLX traces.
    """
    return can_share(model, split_head(model).backbone)


def _with_slopes(function: RowFunction, size: int) -> Any:
    """(hidden, *others) to (values (N,), their slopes (N, D)), in slices of `size` rows."""

    @mx.custom_function
    def values(hidden: mx.array, *others: mx.array) -> tuple[mx.array, mx.array]:
        found: list[mx.array] = []
        slopes: list[mx.array] = []
        for start in range(0, len(hidden), size):
            own, *rest = (part[start : start + size] for part in (hidden, *others))
            if slopes:
                own = _after(own, slopes[-1])
            ones = mx.ones(len(own))
            (value,), (slope,) = mx.vjp(lambda h, rest=rest: function(h, *rest), [own], [ones])
            found.append(value)
            slopes.append(slope)
        return mx.concatenate(found), mx.concatenate(slopes)

    @values.vjp
    def values_vjp(primals: Any, cotangents: Any, outputs: Any) -> Any:
        slope = (cotangents[0][:, None] * outputs[1]).astype(primals[0].dtype)
        return slope, *(mx.zeros_like(other) for other in primals[1:])

    return values


def _after(value: mx.array, earlier: mx.array) -> mx.array:
    """`value`, computed after `earlier`: all slices at once would be all logits at once."""
    return mx.depends([value], [earlier])[0]


def _vocabulary(model: nn.Module, hidden: mx.array) -> int:
    known = getattr(model, "_companion_vocabulary", None)
    if known is None:
        # Shapes are known without computing anything.
        head = split_head(model).head
        known = model._companion_vocabulary = head(mx.zeros((1, hidden.shape[-1]))).shape[-1]
    return known
