"""Each launch's signature held to the one that MLX generates for it.

    testing.check_signatures(lambda: patch_pool(h, ids, 12, impl="metal"))

MLX records a graph with a Metal kernel on any machine, generated source included, so that a kernel
that the bench runs under another signature than MLX's is found without a Mac.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from mlx_companion.errors import KernelError
from mlx_companion.kernels import launch
from mlx_companion.kernels.testing.bench import MetalKernel, metal_kernel
from mlx_companion.kernels.testing.signature import (
    ATTRIBUTES,
    attributes,
    parameters,
    parse,
    recorded,
    template_text,
)


def check_signatures(call: Callable[[], Any]) -> int:
    """Run `call` on the bench, and compare the signature of each kernel in it with MLX's.

    Args:
        call: runs ops with `impl="metal"`.

    Returns:
        How many launches were compared.

    Raises:
        KernelError: a signature differs, or nothing was launched.
    """
    launches: list[tuple[MetalKernel, dict[str, Any]]] = []

    def make(*args: Any, **given: Any) -> Callable[..., list[mx.array]]:
        kernel = metal_kernel(*args, **given)

        def run(**call: Any) -> list[mx.array]:
            launches.append((kernel, call))
            return kernel(**call)

        return run

    with launch.metal_by(make):
        mx.eval(call())
    if not launches:
        raise KernelError('no kernel was launched; the call must use impl="metal"')
    for kernel, given in launches:
        compare(kernel, given)
    return len(launches)


def compare(kernel: MetalKernel, call: dict[str, Any]) -> None:
    """Compare a kernel's signature, as the bench makes it for a call, with MLX's.

    Args:
        kernel: on the bench.
        call: the arguments of its call.

    Raises:
        KernelError: they differ.
    """
    inputs = [x if isinstance(x, mx.array) else mx.array(x) for x in call["inputs"]]
    theirs = parse(_generated(kernel, inputs, call))
    buffers = parameters(
        kernel.source,
        kernel.input_names,
        [(tuple(x.shape), x.dtype) for x in inputs],
        kernel.output_names,
        call["output_dtypes"],
        kernel.atomic_outputs,
    )
    threads = [f"{ATTRIBUTES[a][0]} {a}" for a in attributes(kernel.source)]
    kinds, values = template_text(call.get("template") or ())
    ours = (kinds, [p.text for p in buffers], threads, values)
    for what, a, b in zip(
        ("template", "buffers", "attributes", "arguments"), ours, theirs, strict=True
    ):
        if a != b:
            raise KernelError(f"{kernel.name}: {what} are {a} on the bench, and MLX has {b}")


def _generated(kernel: MetalKernel, inputs: list[mx.array], call: dict[str, Any]) -> str:
    real: Any = mx.fast.metal_kernel(
        name=kernel.name,
        input_names=kernel.input_names,
        output_names=kernel.output_names,
        source=kernel.source,
        header=kernel.header,
        ensure_row_contiguous=kernel.ensure_row_contiguous,
        atomic_outputs=kernel.atomic_outputs,
    )
    settings = {k: v for k, v in call.items() if k not in ("inputs", "stream", "verbose")}
    settings["template"] = list(settings.get("template") or ())
    stand_ins = [mx.zeros(x.shape, x.dtype) for x in inputs]

    def run(*arrays: mx.array) -> Any:
        return real(inputs=list(arrays), stream=mx.gpu, **settings)

    return recorded(run, stand_ins)
