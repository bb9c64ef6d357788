"""Hash n-gram embeddings, the memory of which the composition spends on gathered rows.

The dense gradient of a table is an output of both ways and as large as the table; the aim for
memory is therefore held where no gradient is computed, and both peaks are shown with one. The
README of the op says where it is slower: between the sizes of these models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import mlx.core as mx
import numpy as np

from benchmarks.kernel_cases.case import Case
from mlx_companion.kernels.hash_embed import PRIMES, hash_embed
from mlx_companion.kernels.matrix import Matrix

SIZES = (3, 4, 5, 6, 7, 8)


@dataclass
class _Inputs:
    """One size; arrays are made when they are first used."""

    rows: int
    length: int
    width: int
    vocabulary: int
    bits: int | None = None
    functions: int = 1

    @cached_property
    def ids(self) -> mx.array:
        drawn = np.random.default_rng(0).integers(4, 260, (self.rows, self.length))
        return mx.array(drawn.astype(np.int32))

    @cached_property
    def table(self) -> Matrix:
        height = self.functions * len(SIZES) * self.vocabulary
        weight = mx.random.normal((height, self.width), key=mx.random.key(1))
        if self.bits is None:
            table = Matrix(weight)
        else:
            table = Matrix(*mx.quantize(weight, 32, self.bits), group_size=32, bits=self.bits)
        mx.eval(self.ids, table.arrays)
        return table

    @cached_property
    def cotangent(self) -> mx.array:
        shape = (self.rows, self.length, self.width)
        return mx.random.normal(shape, key=mx.random.key(2))

    @property
    def primes(self) -> tuple[int, ...]:
        return PRIMES[: self.functions]


def cases(quick: bool) -> list[Case]:
    """The sizes of `blt.presets` ("small" has D 96, "base" D 512), and those of the 1B model."""
    if quick:
        return [_forward(1, 512, 96, 1024), _trained(2, 256, 96, 1024)]
    aim = 3.0
    return [
        _forward(1, 1, 96, 16384),
        _forward(4, 1, 1024, 49152),
        _forward(1, 64, 256, 49152),
        _forward(1, 512, 96, 16384),
        _forward(1, 1000, 256, 49152),
        _forward(8, 1024, 96, 16384),
        _forward(1, 4096, 512, 49152, aim=aim),
        _forward(8, 4096, 512, 49152, aim=aim),
        _forward(1, 4096, 1024, 49152, aim=aim),
        _forward(1, 4096, 512, 49152, bits=8, aim=aim),
        _forward(1, 4096, 512, 49152, bits=4, aim=aim),
        _forward(1, 4096, 256, 49152, functions=3, aim=aim),
        _trained(8, 1024, 96, 16384),
        _trained(1, 4096, 512, 49152),
    ]


def _forward(
    rows: int,
    length: int,
    width: int,
    vocabulary: int,
    *,
    bits: int | None = None,
    functions: int = 1,
    aim: float | None = None,
) -> Case:
    inputs = _Inputs(rows, length, width, vocabulary, bits, functions)
    return Case(
        "hash_embed",
        _label(inputs),
        naive=lambda: [_naive(inputs, inputs.table)],
        ours=lambda: [_ours(inputs, inputs.table)],
        tolerance=1e-5,
        memory_aim=aim,
    )


def _trained(rows: int, length: int, width: int, vocabulary: int) -> Case:
    inputs = _Inputs(rows, length, width, vocabulary)

    def work(embed: Callable[[_Inputs, Matrix], mx.array]) -> Sequence[mx.array]:
        def loss(weight: mx.array) -> mx.array:
            return (embed(inputs, Matrix(weight)) * inputs.cotangent).sum()

        return mx.value_and_grad(loss)(inputs.table.weight)

    return Case(
        "hash_embed",
        f"{_label(inputs)}, gradient",
        naive=lambda: work(_naive),
        ours=lambda: work(_ours),
        tolerance=1e-4,
    )


def _label(inputs: _Inputs) -> str:
    tables = inputs.functions * len(SIZES)
    bits = "" if inputs.bits is None else f", {inputs.bits} bits"
    return (
        f"B {inputs.rows}, N {inputs.length}, D {inputs.width}, "
        f"{tables} tables of {inputs.vocabulary}{bits}"
    )


def _ours(inputs: _Inputs, table: Matrix) -> mx.array:
    return hash_embed(
        inputs.ids,
        table,
        group_sizes=SIZES,
        primes=inputs.primes,
        vocabulary=inputs.vocabulary,
    )


def _naive(inputs: _Inputs, table: Matrix) -> mx.array:
    """Windows times powers, all rows gathered, then summed."""
    rows, ids = [], inputs.ids.astype(mx.int64)
    for prime in inputs.primes:
        for size in SIZES:
            padded = mx.pad(ids, [(0, 0), (size - 1, 0)])
            windows = mx.stack([padded[:, i : i + ids.shape[1]] for i in range(size)], axis=-1)
            powers = mx.array(np.cumprod([1] + [prime] * (size - 1), dtype=np.int64))
            within = (windows * powers).sum(axis=-1) % inputs.vocabulary
            rows.append(within + len(rows) * inputs.vocabulary)
    return table.rows(mx.stack(rows)).sum(axis=0)
