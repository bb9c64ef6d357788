"""Every op called in every form that makes a kernel of its own, and the launches this makes.

`calls()` are the calls, to run with any `impl`; `recorded()` runs them without running a kernel and
keeps what each launch would have been given.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import mlx.core as mx

from mlx_companion import kernels
from mlx_companion.kernels.byte_entropy import byte_entropy
from mlx_companion.kernels.hash_embed import hash_embed
from mlx_companion.kernels.launch import Kernel, metal_by
from mlx_companion.kernels.linear_cross_entropy import linear_cross_entropy
from mlx_companion.kernels.lora_bgmv import lora_bgmv
from mlx_companion.kernels.matrix import Matrix
from mlx_companion.kernels.patch_cross_attention import patch_cross_attention
from mlx_companion.kernels.patch_pool import patch_pool

FLOATS = (mx.float32, mx.float16, mx.bfloat16)
Results = list[mx.array]


class Call(NamedTuple):
    """An op with its arguments, but for `impl`; results are values and gradients.

    Attributes:
        label: for people.
        dtype: of the floats.
        run: takes `impl`.
    """

    label: str
    dtype: mx.Dtype
    run: Callable[[Any], Results]


@dataclass(frozen=True)
class Launch:
    """What makes the text of a kernel around its body; two launches alike are one kernel.

    Attributes:
        name, header, source: of the kernel.
        inputs: per input its name, type and number of dimensions.
        outputs: per output its name and type.
        template: names and values.
    """

    name: str
    header: str
    source: str
    inputs: tuple[tuple[str, mx.Dtype, int], ...]
    outputs: tuple[tuple[str, mx.Dtype], ...]
    template: tuple[tuple[str, Any], ...]

    def __str__(self) -> str:
        values = [f"{k}={str(v).removeprefix('mlx.core.')}" for k, v in self.template]
        types = [str(t).removeprefix("mlx.core.") for _, t, _ in self.inputs]
        return f"{self.name}<{', '.join(values)}>({', '.join(types)})"


def all_kernels() -> dict[str, Kernel]:
    """Every `Kernel` in a module of an op, by name."""
    found = {}
    for package in pkgutil.walk_packages(kernels.__path__, "mlx_companion.kernels."):
        if package.name.startswith("mlx_companion.kernels.testing"):
            continue
        module = importlib.import_module(package.name)
        for value in vars(module).values():
            if isinstance(value, Kernel):
                found[value.name] = value
    return found


@cache
def recorded() -> tuple[Launch, ...]:
    """All launches of the calls, each form once."""
    launches: dict[Launch, None] = {}

    def maker(
        *,
        name: str,
        header: str,
        source: str,
        input_names: Sequence[str],
        output_names: Sequence[str],
        atomic_outputs: bool,
    ) -> Callable[..., Results]:
        def kernel(
            *,
            inputs: Results,
            template: list[tuple[str, Any]],
            output_shapes: list[tuple[int, ...]],
            output_dtypes: list[mx.Dtype],
            **grid: Any,
        ) -> Results:
            taken = tuple((n, x.dtype, x.ndim) for n, x in zip(input_names, inputs, strict=True))
            given = tuple(zip(output_names, output_dtypes, strict=True))
            launches[Launch(name, header, source, taken, given, tuple(template))] = None
            return [mx.zeros(s, d) for s, d in zip(output_shapes, output_dtypes, strict=True)]

        return kernel

    with metal_by(maker):
        for call in calls():
            call.run("metal")
    return tuple(launches)


def calls() -> list[Call]:
    """All of them, in all float types."""
    ops = (_byte_entropy, _hash_embed, _losses, _lora, _attention, _pool)
    return [Call(label, dtype, run) for dtype in FLOATS for op in ops for label, run in op(dtype)]


Runs = Iterator[tuple[str, Callable[[Any], Results]]]
_IDS = [[0, 0, 1, 1, 1, 2, 2], [0, 1, 1, 1, 1, 1, 3]]


def _drawn(shape: tuple[int, ...], dtype: mx.Dtype, seed: int = 0) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(seed)).astype(dtype)


def _with_gradients(function: Callable[..., mx.array], *arrays: mx.array) -> Results:
    """Its value, and the gradients of a weighed sum of it."""
    value = function(*arrays)
    weight = _drawn(value.shape, mx.float32, 9)
    total = mx.grad(
        lambda *x: (function(*x).astype(mx.float32) * weight).sum(), list(range(len(arrays)))
    )
    return [value, *total(*arrays)]


def _byte_entropy(dtype: mx.Dtype) -> Runs:
    logits = _drawn((2, 45, 260), dtype) * 3
    yield (
        "byte_entropy",
        lambda impl: _with_gradients(lambda x: byte_entropy(x, impl=impl).entropy, logits),
    )
    for rise in (None, 0.05):

        def decided(impl: Any, rise: float | None = rise) -> Results:
            entropy, over = byte_entropy(logits, threshold=2.0, rise=rise, impl=impl)
            return [entropy] if over is None else [entropy, over]

        yield f"byte_entropy, rise {rise}", decided


def _hash_embed(dtype: mx.Dtype) -> Runs:
    ids = mx.random.randint(0, 256, (2, 40), key=mx.random.key(1))
    documents = (mx.arange(80).reshape(2, 40) % 40 > 17).astype(mx.int32)
    how: dict[str, Any] = {
        "group_sizes": (3, 4),
        "primes": (1_000_000_007, 5_915_587_277),
        "vocabulary": 50,
    }
    weight = _drawn((200, 64), dtype)
    for apart in (None, documents):

        def plain(impl: Any, apart: mx.array | None = apart) -> Results:
            return _with_gradients(
                lambda x: hash_embed(ids, Matrix(x), documents=apart, impl=impl, **how), weight
            )

        yield f"hash_embed, documents {apart is not None}", plain
        for bits in (2, 4, 8):

            def packed(impl: Any, apart: mx.array | None = apart, bits: int = bits) -> Results:
                table = Matrix(*mx.quantize(weight, group_size=32, bits=bits), 32, bits)
                return [hash_embed(ids, table, documents=apart, impl=impl, **how)]

            yield f"hash_embed, documents {apart is not None}, {bits} bits", packed


def _losses(dtype: mx.Dtype) -> Runs:
    labels = mx.array([3, 0, 299, 7, 150])
    for V in (300, 5000):

        def losses(impl: Any, V: int = V) -> Results:
            return _with_gradients(
                lambda hidden, head: linear_cross_entropy(
                    hidden, Matrix(head), labels, head_gradient=True, impl=impl
                ),
                _drawn((5, 64), dtype),
                _drawn((V, 64), dtype, 1) / 8,
            )

        yield f"linear_cross_entropy, V {V}", losses


def _lora(dtype: mx.Dtype) -> Runs:
    weight = Matrix(_drawn((48, 64), dtype) / 8)
    index, scale = mx.array([0, 1, -1, 1]), mx.array([1.0, 2.0])
    a, b = _drawn((2, 64, 8), dtype, 1) / 8, _drawn((2, 8, 48), dtype, 2) / 2
    for tokens in (1, 3, 16):
        x = _drawn((4, tokens, 64), dtype, 3)
        yield (
            f"lora_bgmv, {tokens} tokens",
            lambda impl, x=x: [lora_bgmv(x, weight, a, b, index, scale, impl=impl)],
        )


def _attention(dtype: mx.Dtype) -> Runs:
    ids = mx.array(_IDS)
    for width in (32, 64):
        by_patch = _drawn((2, 4, 2, 4, width), dtype)
        by_byte = _drawn((2, 7, 4, width), dtype, 1)
        for side, q, k in (("encoder", by_patch, by_byte), ("decoder", by_byte, by_patch)):

            def attend(impl: Any, side: Any = side, q: Any = q, k: Any = k) -> Results:
                return _with_gradients(
                    lambda *x: patch_cross_attention(*x, ids, side=side, impl=impl), q, k, k * 0.5
                )

            yield f"patch_cross_attention, {side}, width {width}", attend


def _pool(dtype: mx.Dtype) -> Runs:
    ids, h = mx.array(_IDS), _drawn((2, 7, 48), dtype)
    for mode in ("max", "mean", "sum"):

        def pool(impl: Any, mode: Any = mode) -> Results:
            return _with_gradients(lambda x: patch_pool(x, ids, 4, mode, impl=impl), h)

        yield f"patch_pool, {mode}", pool
