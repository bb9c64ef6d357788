"""Launching a kernel: the one place where a body meets the machine.

A `Kernel` holds one body. Metal compiles it as it is; CUDA compiles the same body behind a header
that gives Metal's names their CUDA meaning (`cuda_dialect`). Tests put a bench in Metal's place,
which runs the body on the CPU (`kernels.testing`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from typing import Any

import mlx.core as mx

from mlx_companion.errors import ConfigError

Maker = Callable[..., Callable[..., list[mx.array]]]
_SMALL = 8
# Stands in for `mx.fast.metal_kernel`; None for MLX's own.
_maker: ContextVar[Maker | None] = ContextVar("maker", default=None)


@dataclass(frozen=True)
class Kernel:
    """A kernel's body and the names in its signature, which MLX generates around it.

    Attributes:
        name: of the function.
        inputs, outputs: names of the buffers.
        source: the body, in the Metal Shading Language.
        header: functions that the body calls.
        atomic_outputs: outputs are atomic, in Metal `device atomic<float>*`.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    source: str
    header: str = ""
    atomic_outputs: bool = False

    def __call__(
        self,
        inputs: Sequence[mx.array],
        *,
        impl: str,
        template: Sequence[tuple[str, Any]] = (),
        grid: tuple[int, int, int],
        threadgroup: tuple[int, int, int],
        shapes: Sequence[tuple[int, ...]],
        dtypes: Sequence[mx.Dtype],
        init_value: float | None = None,
    ) -> list[mx.array]:
        """Run it.

        Args:
            inputs: one array per input name, none of them without dimensions.
            impl: "metal" or "cuda".
            template: names and values (dtypes, integers, booleans) known to the body at compile
                time.
            grid: threads in x, y and z. Make each a multiple of the threadgroup's: Metal cuts the
                last threadgroup off, CUDA does not, so bodies check bounds themselves.
            threadgroup: threads of a threadgroup in x, y and z.
            shapes, dtypes: of the outputs.
            init_value: what outputs hold at first; needed where the body adds to them.

        Returns:
            The outputs.

        Raises:
            ConfigError: an input has no dimensions.
        """
        self._check(inputs)
        options: dict[str, Any] = {} if init_value is None else {"init_value": init_value}
        maker = _maker.get() if impl == "metal" else None
        return _made(self, impl, maker, "" if maker else _signature(inputs, dtypes))(
            inputs=list(inputs),
            template=list(template),
            grid=grid,
            threadgroup=threadgroup,
            output_shapes=list(shapes),
            output_dtypes=list(dtypes),
            **options,
        )

    def _check(self, inputs: Sequence[mx.array]) -> None:
        """Such an input would be a reference in Metal and a pointer in CUDA."""
        for name, array in zip(self.inputs, inputs, strict=True):
            if not array.ndim:
                raise ConfigError(
                    f"kernel {self.name}: input '{name}' has no dimensions; pass it as (1,)"
                )


def emulated() -> bool:
    """Whether something stands in for Metal."""
    return _maker.get() is not None


@contextmanager
def metal_by(maker: Maker) -> Iterator[None]:
    """Inside the block `impl="metal"` runs what `maker` makes, called as `mx.fast.metal_kernel`."""
    token = _maker.set(maker)
    try:
        yield
    finally:
        _maker.reset(token)


def _signature(inputs: Sequence[mx.array], outputs: Sequence[mx.Dtype]) -> str:
    """What the signature that MLX generates depends on.

    MLX keeps one compiled kernel under a name: where the same name comes with other types, or with
    an array of fewer than 8 elements (which Metal gets in another address space), CUDA would run
    the old one and Metal would compile it anew at every change.
    """
    given = [f"{array.dtype}{'c' * (array.size < _SMALL)}" for array in inputs]
    return "_".join(name.removeprefix("mlx.core.") for name in [*given, *map(str, outputs)])


@lru_cache(maxsize=256)
def _made(
    kernel: Kernel, impl: str, maker: Maker | None, signature: str
) -> Callable[..., list[mx.array]]:
    names: dict[str, Any] = {"input_names": kernel.inputs, "output_names": kernel.outputs}
    if impl == "cuda":
        from mlx_companion.kernels.cuda_dialect import around

        header = around(kernel.header)
        # MLX's CUDA backend keeps compiled kernels, on disk as well, by nothing but name and
        # template: a changed source or other types under an old name would run the old code.
        text = sha256(f"{header}{kernel.source}".encode()).hexdigest()[:12]
        return mx.fast.cuda_kernel(  # type: ignore[return-value]
            name=f"{kernel.name}_{text}_{signature}", header=header, source=kernel.source, **names
        )
    return (maker or mx.fast.metal_kernel)(  # type: ignore[return-value]
        name=f"{kernel.name}_{signature}" if signature else kernel.name,
        header=kernel.header,
        source=kernel.source,
        atomic_outputs=kernel.atomic_outputs,
        **names,
    )
