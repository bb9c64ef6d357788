"""`metal_kernel`: called as `mx.fast.metal_kernel`, runs the body on the CPU, under watch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_companion.errors import ConfigError, KernelError
from mlx_companion.kernels.testing import build
from mlx_companion.kernels.testing.arrays import Held, from_bytes, hold, poisoned
from mlx_companion.kernels.testing.request import Options, run
from mlx_companion.kernels.testing.signature import (
    ATTRIBUTES,
    Parameter,
    Template,
    attributes,
    parameters,
    template_text,
)
from mlx_companion.kernels.testing.source import translate

_SMALL = {mx.float16, mx.bfloat16}
MAX_THREADS = 1024
MAX_BUFFERS = 31


@dataclass(frozen=True)
class MetalKernel:
    """A kernel on the bench; made by `metal_kernel`."""

    name: str
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    source: str
    header: str = ""
    ensure_row_contiguous: bool = True
    atomic_outputs: bool = False
    options: Options = field(default_factory=Options)

    def __call__(
        self,
        *,
        inputs: Sequence[Any],
        output_shapes: Sequence[Sequence[int]],
        output_dtypes: Sequence[mx.Dtype],
        grid: tuple[int, int, int],
        threadgroup: tuple[int, int, int],
        template: Template | None = None,
        init_value: float | None = None,
        verbose: bool = False,
        stream: Any = None,
    ) -> list[mx.array]:
        """Run the kernel; the arguments are those of MLX's own.

        Returns:
            The outputs. What the kernel did not write of them is NaN (all bits set).

        Raises:
            ConfigError: the call itself is wrong.
            KernelBuildError: the source does not compile.
            KernelError: one of its sub-classes, for what the kernel did wrong.
        """
        del stream
        self._check(inputs, output_shapes, output_dtypes, grid, threadgroup)
        arrays = [x if isinstance(x, mx.array) else mx.array(x) for x in inputs]
        held = [hold(x, self.ensure_row_contiguous) for x in _evaluated(arrays, self.name)]
        buffers = parameters(
            self.source,
            self.input_names,
            [(h.shape, h.dtype) for h in held],
            self.output_names,
            output_dtypes,
            self.atomic_outputs,
        )
        if len(buffers) > MAX_BUFFERS:
            raise ConfigError(
                f"Metal has {MAX_BUFFERS} buffers, and {self.name} takes {len(buffers)}"
            )
        text = self.program(buffers, template or ())
        if verbose:
            print(text)
        outputs = [
            poisoned(tuple(shape), dtype, init_value)
            for shape, dtype in zip(output_shapes, output_dtypes, strict=True)
        ]
        path = build.build(text)
        memory = [_memory(p, held, outputs, init_value is not None) for p in buffers]
        run(self.name, path, memory, grid, threadgroup, self.options)
        return [from_bytes(o, d) for o, d in zip(outputs, output_dtypes, strict=True)]

    def program(self, buffers: Sequence[Parameter], template: Template) -> str:
        """The C++ that is compiled: MLX's signature around the body, and a door into it."""
        kinds, values = template_text(template)
        small = any(p.type in ("float16_t", "bfloat16_t") for p in buffers) or any(
            word in self.source + self.header + values for word in ("half", "float16", "bfloat")
        )
        threads = attributes(self.source)
        signature = [p.text for p in buffers] + [f"{ATTRIBUTES[a][0]} {a}" for a in threads]
        body = translate(self.source, small_floats=small)
        header = translate(self.header, small_floats=small, first_id=1 << 16)
        return "\n".join(
            [
                '#include "metal.h"',
                '#line 1 "header"',
                header,
                f"template <{kinds}>" if kinds else "static",
                f"void mb_body_{self.name}({', '.join(signature)}) {{",
                '#line 1 "kernel"',
                body,
                "}",
                '#line 1 "door"',
                'extern "C" MB_OWN void mb_kernel(void* const* b, const mb_thread* t) {',
                f"  mb_body_{self.name}{f'<{values}>' if kinds else ''}(",
                ",\n".join(_argument(i, p) for i, p in enumerate(buffers))
                + "".join(",\n" + _attribute(a) for a in threads),
                ");",
                "}\n",
            ]
        )

    def _check(
        self,
        inputs: Sequence[Any],
        shapes: Sequence[Sequence[int]],
        dtypes: Sequence[mx.Dtype],
        grid: Sequence[int],
        threadgroup: Sequence[int],
    ) -> None:
        if len(inputs) != len(self.input_names):
            raise ConfigError(
                f"{self.name} takes {len(self.input_names)} inputs and was given {len(inputs)}"
            )
        if not len(shapes) == len(dtypes) == len(self.output_names):
            raise ConfigError(
                f"{self.name} has {len(self.output_names)} outputs and was given "
                f"{len(shapes)} shapes and {len(dtypes)} dtypes"
            )
        for what, value in (("grid", grid), ("threadgroup", threadgroup)):
            if len(value) != 3 or any(n < 1 for n in value):
                raise ConfigError(f"{what} must be three positive numbers, not {tuple(value)}")
        group = [min(t, g) for t, g in zip(threadgroup, grid, strict=True)]
        if group[0] * group[1] * group[2] > MAX_THREADS:
            raise ConfigError(
                f"a threadgroup has at most {MAX_THREADS} threads, and {tuple(threadgroup)} more"
            )


def metal_kernel(
    name: str,
    input_names: Sequence[str],
    output_names: Sequence[str],
    source: str,
    header: str = "",
    ensure_row_contiguous: bool = True,
    atomic_outputs: bool = False,
    compile_options: object | None = None,
    *,
    schedule: str = "forward",
    **options: Any,
) -> MetalKernel:
    """A kernel that runs on the bench: a drop-in for `mx.fast.metal_kernel`.

    Args:
        name, input_names, output_names, source, header, ensure_row_contiguous, atomic_outputs:
            as MLX takes them.
        compile_options: accepted and without effect: the bench computes as "safe" does.
        schedule: the order in which threads run, see `schedules`.
        options: further ones of `Options`.

    Returns:
        What is called as MLX's kernel is.
    """
    del compile_options
    if not output_names:
        raise ConfigError(f"{name} needs at least one output")
    return MetalKernel(
        name,
        tuple(input_names),
        tuple(output_names),
        source,
        header,
        ensure_row_contiguous,
        atomic_outputs,
        Options(schedule=schedule, **options),
    )


def maker(options: Options) -> Callable[..., MetalKernel]:
    """`metal_kernel` with the options given, one function per set of options."""

    def make(*args: Any, **given: Any) -> MetalKernel:
        return replace(metal_kernel(*args, **given), options=options)

    return make


def _evaluated(arrays: list[mx.array], name: str) -> list[mx.array]:
    try:
        mx.eval(arrays)
    except ValueError as error:
        raise KernelError(
            f"{name} runs on the bench, which needs values, and mx.compile and mx.vmap have none; "
            "call the op outside of them (or after mx.disable_compile())"
        ) from error
    return arrays


def _memory(p: Parameter, held: list[Held], outputs: list[np.ndarray], filled: bool) -> Any:
    if not p.const:
        return (p.name, outputs[p.source], 0, outputs[p.source].itemsize, 2 if filled else 1)
    h = held[p.source]
    if p.what == "data":
        return (p.name, h.bytes, h.lead, h.item, 0)
    values = {"shape": h.shape, "strides": h.strides, "ndim": (len(h.shape),)}[p.what]
    array = np.array(values, dtype=np.int64 if p.what == "strides" else np.int32)
    return (p.name, array, 0, array.itemsize, 0)


def _argument(i: int, p: Parameter) -> str:
    kind = f"atomic<{p.type}>" if p.atomic else p.type
    pointer = f"({'const ' if p.const else ''}{kind}*)b[{i}]"
    return f"*{pointer}" if p.scalar else pointer


def _attribute(name: str) -> str:
    kind, value = ATTRIBUTES[name]
    if kind == "uint":
        return value if value.isdigit() else f"t->{value}"
    return f"uint3(t->{value}[0], t->{value}[1], t->{value}[2])" if value else "uint3(0, 0, 0)"
