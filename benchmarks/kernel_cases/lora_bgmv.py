"""`lora_bgmv` beside the two forms that people write: copied adapters, and a loop with masks.

Decoding: a row is one token. Prefill and training: rows of tokens, with gradients in x, A and B.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import mlx.core as mx

from mlx_companion.kernels.lora_bgmv import lora_bgmv
from mlx_companion.kernels.matrix import Matrix

from .case import Case

Form = Callable[..., mx.array]


@dataclass(frozen=True)
class Size:
    """B rows of L tokens; `rows` says which of n adapters each takes."""

    B: int
    L: int
    dims: tuple[int, int]
    r: int
    n: int
    rows: str = "mixed"
    bits: int | None = None
    training: bool = False

    @property
    def label(self) -> str:
        base = "" if self.bits is None else f", {self.bits}-bit base"
        step = ", gradients" if self.training else ""
        return (
            f"B {self.B}, L {self.L}, {self.dims[0]} to {self.dims[1]}, r {self.r}, "
            f"{self.n} adapters, {self.rows}{base}{step}"
        )


# 576 and 1536 are SmolLM2-135M's widths, 2048 and 4096 those of models of 1 and 8 billion.
QUICK = [
    Size(8, 1, (576, 1536), 8, 4),
    Size(32, 1, (576, 576), 16, 1, "shared"),
    Size(4, 256, (576, 576), 8, 4, training=True),
]
FULL = [
    *QUICK,
    Size(1, 1, (576, 576), 8, 1, "shared"),
    Size(32, 1, (576, 1536), 16, 8, "some without"),
    Size(32, 1, (2048, 2048), 16, 64),
    Size(8, 1, (4096, 4096), 64, 8),
    Size(8, 1, (576, 576), 8, 4, bits=4),
    Size(8, 512, (576, 1536), 8, 4),
    Size(4, 1024, (576, 576), 64, 4, training=True),
    Size(8, 256, (576, 1536), 8, 1, "shared", training=True),
    Size(4, 256, (2048, 2048), 16, 4, training=True),
]


def cases(quick: bool) -> list[Case]:
    """Against copies, and where adapters are few against the loop, too."""
    made = []
    for size in QUICK if quick else FULL:
        made.append(_case(size, "copied", _copied))
        if size.n <= 4:
            made.append(_case(size, "loop", _loop))
    return made


def _case(size: Size, name: str, naive: Form) -> Case:
    run = _gradients if size.training else _value
    return Case(
        "lora_bgmv",
        f"{size.label} (naive: {name})",
        naive=lambda: run(naive, *_inputs(size)),
        ours=lambda: run(lora_bgmv, *_inputs(size)),
    )


# Made when a case first runs: the runner lists all cases to run one.
@lru_cache(maxsize=1)
def _inputs(size: Size) -> tuple[Any, ...]:
    """x, weight, a, b, index, scale, and what the gradient is pulled with."""
    k, m = size.dims
    keys = mx.random.split(mx.random.key(0), 6)
    x = mx.random.normal((size.B, size.L, k), key=keys[0])
    w = mx.random.normal((m, k), key=keys[1]) * k**-0.5
    weight = Matrix(w)
    if size.bits is not None:
        weight = Matrix(*mx.quantize(w, group_size=64, bits=size.bits), bits=size.bits)
    a = mx.random.normal((size.n, k, size.r), key=keys[2]) * k**-0.5
    b = mx.random.normal((size.n, size.r, m), key=keys[3])
    index = mx.random.randint(0, size.n, (size.B,), key=keys[4])
    if size.rows == "some without":
        index = mx.where(mx.arange(size.B) % 4 == 0, -1, index)
    scale = mx.full((size.n,), 2.0)
    pull = mx.random.normal((size.B, size.L, m), key=keys[5])
    mx.eval(x, weight.arrays, a, b, index, scale, pull)
    return x, weight, a, b, index, scale, pull


def _value(form: Form, *given: Any) -> list[mx.array]:
    return [form(*given[:-1])]


def _gradients(
    form: Form,
    x: mx.array,
    weight: Matrix,
    a: mx.array,
    b: mx.array,
    index: mx.array,
    scale: mx.array,
    pull: mx.array,
) -> list[mx.array]:
    def of(x: mx.array, a: mx.array, b: mx.array) -> mx.array:
        return form(x, weight, a, b, index, scale)

    values, gradients = mx.vjp(of, [x, a, b], [pull])
    return [*values, *gradients]


def _copied(
    x: mx.array, weight: Matrix, a: mx.array, b: mx.array, index: mx.array, scale: mx.array
) -> mx.array:
    strength = mx.where(index < 0, 0.0, scale[index])[:, None, None]
    return weight.apply(x) + strength * (x @ a[index] @ b[index])


def _loop(
    x: mx.array, weight: Matrix, a: mx.array, b: mx.array, index: mx.array, scale: mx.array
) -> mx.array:
    y = weight.apply(x)
    for i in range(a.shape[0]):
        mine = (index == i)[:, None, None]
        y = y + mx.where(mine, scale[i] * (x @ a[i] @ b[i]), 0.0)
    return y
