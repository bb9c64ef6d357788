"""`linear_cross_entropy` beside all logits at once, `nn.losses.cross_entropy` and MLX's gradient.

Byte models train their output layer with the rest; fine-tuning keeps it as it is; evaluation takes
no gradient. 49,152 and 151,936 are the vocabularies of SmolLM2 and Qwen2.5.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import mlx.core as mx
import mlx.nn as nn

from mlx_companion.kernels.linear_cross_entropy import linear_cross_entropy
from mlx_companion.kernels.matrix import Matrix

from .case import Case

Losses = Callable[[mx.array, Matrix, mx.array, str], mx.array]

# A quarter of the rows are padding or prompt, and do not count.
_COUNTED = 0.75


@dataclass(frozen=True)
class Size:
    """N rows of width D over a vocabulary of V.

    `use` is "tuning" (gradient in the hidden states), "training" (in the matrix too) or
    "evaluation" (none).
    """

    N: int
    D: int
    V: int
    use: str = "tuning"
    bits: int | None = None
    memory_aim: float | None = None

    @property
    def label(self) -> str:
        form = "" if self.bits is None else f", {self.bits}-bit"
        return f"N {self.N}, D {self.D}, V {self.V}{form}, {self.use}"


QUICK = [
    Size(512, 96, 260, "training"),
    Size(8192, 96, 260, "training"),
    Size(8192, 96, 260, "evaluation"),
    Size(512, 576, 49152),
    Size(512, 576, 49152, "evaluation"),
    Size(16, 576, 49152, bits=4),
]
FULL = [
    *QUICK,
    Size(4096, 160, 260, "training"),
    Size(4096, 512, 260, "training"),
    Size(1024, 160, 4096, "training"),
    Size(16, 576, 49152),
    Size(64, 576, 49152, "training"),
    Size(512, 576, 49152, "training"),
    Size(4096, 576, 49152, memory_aim=3.0),
    Size(4096, 576, 49152, "training", memory_aim=3.0),
    Size(4096, 576, 49152, "evaluation", memory_aim=3.0),
    Size(64, 576, 49152, bits=8),
    Size(512, 2048, 49152),
    Size(512, 896, 151936),
]


def cases(quick: bool) -> list[Case]:
    """One per size."""
    return [_case(size) for size in (QUICK if quick else FULL)]


def _case(size: Size) -> Case:
    return Case(
        "linear_cross_entropy",
        size.label,
        naive=lambda: _run(size, _naive),
        ours=lambda: _run(size, _ours),
        memory_aim=size.memory_aim,
    )


# Made when a case first runs: the runner lists all cases to run one.
@lru_cache(maxsize=1)
def _inputs(size: Size) -> tuple[mx.array, Matrix, mx.array, mx.array]:
    """Hidden states, matrix, labels and weights."""
    keys = mx.random.split(mx.random.key(0), 4)
    hidden = mx.random.normal((size.N, size.D), key=keys[0])
    weight = mx.random.normal((size.V, size.D), key=keys[1]) * size.D**-0.5
    labels = mx.random.randint(0, size.V, (size.N,), key=keys[2])
    weights = mx.random.bernoulli(_COUNTED, (size.N,), key=keys[3]).astype(mx.float32)
    matrix = Matrix(weight)
    if size.bits is not None:
        matrix = Matrix(*mx.quantize(weight, group_size=64, bits=size.bits), bits=size.bits)
    mx.eval(hidden, labels, weights, matrix.arrays)
    return hidden, matrix, labels, weights


def _run(size: Size, losses: Losses) -> list[mx.array]:
    """The weighed sum, and the gradients that the use asks for."""
    hidden, matrix, labels, weights = _inputs(size)

    def total(hidden: mx.array, weight: mx.array = matrix.weight) -> mx.array:
        own = matrix._replace(weight=weight)
        return (losses(hidden, own, labels, size.use) * weights).sum()

    if size.use == "evaluation":
        return [total(hidden)]
    trained = [matrix.weight] if size.use == "training" else []
    value, slopes = mx.value_and_grad(total, argnums=list(range(1 + len(trained))))(
        hidden, *trained
    )
    return [value, *slopes]


def _naive(hidden: mx.array, matrix: Matrix, labels: mx.array, use: str) -> mx.array:
    return nn.losses.cross_entropy(matrix.apply(hidden), labels)


def _ours(hidden: mx.array, matrix: Matrix, labels: mx.array, use: str) -> mx.array:
    return linear_cross_entropy(
        hidden,
        matrix,
        labels,
        head_gradient=use == "training",
        gradient=use != "evaluation",
    )
