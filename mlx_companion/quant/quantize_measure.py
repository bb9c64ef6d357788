"""What packing does to a model's predictions, measured on text against the model before.

    reference = Reference(subject, windows)
    found = reference.compare(changed_model)       # Measure(divergence=0.012, agreement=0.97, ...)

The model's own hidden states are kept and not its logits, which would be a hundred times as large;
logits are made of them again in pieces. Layers are compared on unpacked weights, which gives the
same numbers as packed ones (codes times scales are what a packed product multiplies), because
packed products of many tokens are ten times slower on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_companion.kernels.fast_math import exp
from mlx_companion.models.fast_cpu import fast_cpu
from mlx_companion.quant.quantize_layers import blocks_of
from mlx_companion.quant.quantize_subjects import Subject
from mlx_companion.runtime.stop import NEVER, StopSwitch

_ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class Measure:
    """How a changed model differs from the one before.

    Attributes:
        divergence: mean KL divergence (nats per prediction) from the model before; of an encoder
            1 - cosine, its mean.
        agreement: share of predictions whose most likely token is the same; of an encoder the
            share of texts whose nearest other text is the same.
        perplexity: of the changed model on the text; None for encoders.
        count: predictions (or texts).
    """

    divergence: float
    agreement: float
    perplexity: float | None
    count: int


class Reference:
    """Predictions of a model on some windows, to compare others with.

    Args:
        subject: the model.
        windows: (N, L) int.
        rows: windows in one forward pass.
        keep_logits: hold its probabilities too; for small sets that are compared with often.
        switch: consulted between passes.
    """

    def __init__(
        self,
        subject: Subject,
        windows: mx.array,
        *,
        rows: int = 2,
        keep_logits: bool = False,
        switch: StopSwitch = NEVER,
    ) -> None:
        self.subject, self.switch = subject, switch
        self.batches = [windows[i : i + rows] for i in range(0, len(windows), rows)]
        self.hidden: list[mx.array] = []
        self.kept: list[tuple[mx.array, mx.array]] = []
        model = subject.model
        with fast_cpu(model):
            for batch in self.batches:
                switch.check()
                hidden = subject.hidden(model, batch)
                mx.eval(hidden)
                self.hidden.append(hidden)
                if keep_logits and subject.predicts:
                    logits = subject.head(model)(_predicting(hidden))
                    self.kept.append(_normalized(logits.astype(mx.float32)))
                    mx.eval(self.kept[-1])

    def compare(self, model: nn.Module) -> Measure:
        """Measure a model of the same shape with the same number types."""
        total = mx.zeros(3)
        count = 0
        with fast_cpu(model):
            for number, batch in enumerate(self.batches):
                self.switch.check()
                hidden = self.subject.hidden(model, batch)
                found, own = self._compare(model, number, hidden)
                total, count = total + found, count + own
                mx.eval(total)
        kl, same, loss = (float(value) / count for value in np.array(total))
        perplexity = math.exp(min(loss, 700.0)) if self.subject.predicts else None
        return Measure(max(kl, 0.0), same, perplexity, count)

    def baseline(self) -> Measure:
        """The model compared with itself: its own perplexity."""
        return self.compare(self.subject.model)

    def _compare(self, model: nn.Module, number: int, hidden: mx.array) -> tuple[mx.array, int]:
        if not self.subject.predicts:
            return compare_vectors(self.hidden[number], hidden)
        targets = self.batches[number][:, 1:].reshape(-1)
        before, after = _predicting(self.hidden[number]), _predicting(hidden)
        total = mx.zeros(3)
        for start in range(0, targets.size, _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            if self.kept:
                old = (self.kept[number][0][part], self.kept[number][1][part])
            else:
                logits = self.subject.head(self.subject.model)(before[part])
                old = _normalized(logits.astype(mx.float32))
            new = self.subject.head(model)(after[part]).astype(mx.float32)
            total = total + compare_predictions(*old, new, targets[part])
            # Otherwise the logits of all parts would exist at once.
            mx.eval(total)
        return total, int(targets.size)


def _predicting(hidden: mx.array) -> mx.array:
    """States (N, D) of the positions that have a next token in their window."""
    return hidden[:, :-1].reshape(-1, hidden.shape[-1])


def compare_predictions(
    log_old: mx.array, old: mx.array, logits: mx.array, targets: mx.array
) -> mx.array:
    """Sums over predictions of KL(old || new), equal choices, and -log p(target) under `new`.

    Args:
        log_old, old: (N, V) log-probabilities and probabilities.
        logits: (N, V) of the new model.
        targets: (N,) int.

    Returns:
        (3,) float32.
    """
    log_new, _ = _normalized(logits)
    kl = (old * (log_old - log_new)).sum()
    same = (log_old.argmax(axis=-1) == log_new.argmax(axis=-1)).sum()
    loss = -mx.take_along_axis(log_new, targets[:, None], axis=-1).sum()
    return mx.stack([kl, same.astype(mx.float32), loss])


def _normalized(logits: mx.array) -> tuple[mx.array, mx.array]:
    """Log-probabilities and probabilities."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    powers = exp(shifted)
    total = powers.sum(axis=-1, keepdims=True)
    return shifted - mx.log(total), powers / total


def compare_vectors(old: mx.array, new: mx.array) -> tuple[mx.array, int]:
    """Summed 1 - cosine, texts with the same nearest neighbour, and 0; of unit vectors (N, D)."""
    distance = (1 - (old * new).sum(axis=-1)).sum()
    others = mx.eye(len(old)) * 4
    nearest = [(v @ v.T - others).argmax(axis=-1) for v in (old, new)]
    same = (nearest[0] == nearest[1]).sum().astype(mx.float32)
    return mx.stack([distance, same, mx.zeros(())]), len(old)


@contextmanager
def starting_at(model: nn.Module, record: list[Any], block: int) -> Iterator[None]:
    """Run a model from one of its blocks on, with what a run before gave up to there.

    Args:
        model: with a stack of blocks.
        record: what each block gave, of `recorded`.
        block: the first one that runs.
    """
    swapped: list[tuple[nn.Module, type]] = []
    try:
        for number, own in enumerate(blocks_of(model)[:block]):
            swapped.append((own, type(own)))
            own.__class__ = _replaying(type(own), record[number])
        yield
    finally:
        for own, kind in swapped:
            own.__class__ = kind


def recorded(model: nn.Module, run: Callable[[], mx.array]) -> list[Any]:
    """What each block of a model gives while `run` runs."""
    record: list[Any] = []
    blocks = [(block, type(block)) for block in blocks_of(model)]
    try:
        for block, kind in blocks:
            block.__class__ = _recording(kind, record)
        mx.eval(run())
    finally:
        for block, kind in blocks:
            block.__class__ = kind
    mx.eval(record)
    return record


def _replaying(kind: type, output: Any) -> type:
    return type(kind.__name__, (kind,), {"__call__": lambda self, *args, **kwargs: output})


def _recording(kind: type, record: list[Any]) -> type:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = kind.__call__(self, *args, **kwargs)
        record.append(found)
        return found

    return type(kind.__name__, (kind,), {"__call__": call})
