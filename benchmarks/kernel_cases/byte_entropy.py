"""Entropies of byte predictions, with the decisions of the "combined" rule.

Two compositions are what people write; the softmax form is the faster one, except for a row or two
on some machines, where the other is (`logsumexp` in a label).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import mlx.core as mx

from benchmarks.kernel_cases.case import Case
from mlx_companion.kernels.byte_entropy import byte_entropy

V = 260
THRESHOLD, RISE = 1.2, 0.3


@dataclass
class _Inputs:
    """One size; arrays are made when they are first used."""

    rows: int
    length: int

    @cached_property
    def logits(self) -> mx.array:
        drawn = 4 * mx.random.normal((self.rows, self.length, V), key=mx.random.key(0))
        mx.eval(drawn)
        return drawn

    @cached_property
    def slope(self) -> mx.array:
        drawn = mx.random.normal((self.rows, self.length), key=mx.random.key(1))
        mx.eval(drawn)
        return drawn


def cases(quick: bool) -> list[Case]:
    """A byte that is generated, eight of a batch, texts of the presets' lengths, a long one."""
    sizes = (
        [(1, 1), (8, 1), (1, 4096)] if quick else [(1, 1), (8, 1), (1, 512), (1, 4096), (4, 4096)]
    )
    found = [_values(_Inputs(*size)) for size in sizes]
    found.append(_values(_Inputs(1, 4096), by_logsumexp=True))
    if not quick:
        found.append(_values(_Inputs(1, 65_536)))
    found += [_decisions(_Inputs(1, 4096)), _gradients(_Inputs(1, 4096))]
    return found


def _values(inputs: _Inputs, by_logsumexp: bool = False) -> Case:
    naive = _by_logsumexp if by_logsumexp else _by_softmax
    return Case(
        op="byte_entropy",
        label=_label(inputs, "logsumexp" if by_logsumexp else ""),
        naive=lambda: [naive(inputs.logits)],
        ours=lambda: [byte_entropy(inputs.logits).entropy],
        tolerance=1e-5,
    )


def _decisions(inputs: _Inputs) -> Case:
    def naive() -> Sequence[mx.array]:
        entropy = _by_softmax(inputs.logits)
        rise = mx.pad(entropy[:, 1:] - entropy[:, :-1], [(0, 0), (1, 0)], constant_values=-1)
        return [entropy, (entropy > THRESHOLD) & (rise > RISE)]

    def ours() -> Sequence[mx.array]:
        entropy, over = byte_entropy(inputs.logits, threshold=THRESHOLD, rise=RISE)
        assert over is not None
        return [entropy, over]

    return Case("byte_entropy", _label(inputs, "decisions"), naive, ours, tolerance=1e-5)


def _gradients(inputs: _Inputs) -> Case:
    def naive(logits: mx.array) -> mx.array:
        return (_by_softmax(logits) * inputs.slope).sum()

    def ours(logits: mx.array) -> mx.array:
        return (byte_entropy(logits).entropy * inputs.slope).sum()

    return Case(
        op="byte_entropy",
        label=_label(inputs, "gradient"),
        naive=lambda: [mx.grad(naive)(inputs.logits)],
        ours=lambda: [mx.grad(ours)(inputs.logits)],
        tolerance=1e-5,
    )


def _by_softmax(logits: mx.array) -> mx.array:
    p = mx.softmax(logits, axis=-1)
    return -(p * mx.log(p)).sum(axis=-1)


def _by_logsumexp(logits: mx.array) -> mx.array:
    log_p = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    return -(mx.exp(log_p) * log_p).sum(axis=-1)


def _label(inputs: _Inputs, what: str) -> str:
    size = f"B {inputs.rows}, N {inputs.length}, V {V}"
    return f"{size}, {what}" if what else size
