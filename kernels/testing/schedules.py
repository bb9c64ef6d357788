"""Running whatever asks for Metal on the bench, under one schedule or under all.

    with testing.emulated("lockstep"):
        y = patch_pool(h, ids, 12, impl="metal")

    y = testing.check(lambda: patch_pool(h, ids, 12, impl="metal"))

A schedule is an order in which threads run: `forward` and `reverse` run one thread (one SIMD group,
where lanes must meet) as far as it goes, `lockstep` changes threads at every access to memory that
they share, `random:SEED` at random ones. A correct kernel gives the same under all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_companion.errors import KernelRaceError
from mlx_companion.kernels import launch
from mlx_companion.kernels.testing.bench import MetalKernel, maker
from mlx_companion.kernels.testing.request import Options

SCHEDULES: tuple[str, ...] = ("forward", "reverse", "lockstep", "random:1")


@contextmanager
def emulated(schedule: str = "forward", **options: Any) -> Iterator[None]:
    """Inside the block `impl="metal"` runs on the bench.

    Args:
        schedule: the order of threads.
        options: further ones of `Options`.

    Raises:
        ConfigError: there is no such schedule or option.
    """
    with launch.metal_by(_maker(Options(schedule=schedule, **options))):
        yield


def check(call: Callable[[], Any], schedules: Sequence[str] = SCHEDULES, **options: Any) -> Any:
    """Call under every schedule and compare: all give the same bits, or it is an error.

    Args:
        call: runs ops with `impl="metal"` and returns an array, or a list or tuple of arrays.
        schedules: which.
        options: further ones of `Options`.

    Returns:
        What the first schedule gave.

    Raises:
        KernelRaceError: two schedules give different values.
    """
    first: Any = None
    for k, schedule in enumerate(schedules):
        with emulated(schedule, **options):
            got = call()
        if k == 0:
            first = got
        else:
            _same(first, got, schedules[0], schedule)
    return first


def run_all_schedules(
    kernel: MetalKernel, schedules: Sequence[str] = SCHEDULES, **call: Any
) -> list[mx.array]:
    """A kernel of the bench called under every schedule, the results compared bit by bit.

    Args:
        kernel: made by `metal_kernel`.
        schedules: which.
        call: the arguments of its call.

    Raises:
        KernelRaceError: two schedules give different values.
    """

    def under(schedule: str) -> list[mx.array]:
        options = replace(kernel.options, schedule=schedule)
        return replace(kernel, options=options)(**call)

    first = under(schedules[0])
    for schedule in schedules[1:]:
        _same(first, under(schedule), schedules[0], schedule)
    return first


@lru_cache(maxsize=64)
def _maker(options: Options) -> Callable[..., MetalKernel]:
    return maker(options)


def _same(first: Any, other: Any, name: str, other_name: str) -> None:
    for k, (a, b) in enumerate(zip(_arrays(first), _arrays(other), strict=True)):
        x, y = (np.array(v.astype(mx.float32)) for v in (a, b))
        if not np.array_equal(x, y, equal_nan=True):
            place = np.argwhere(~((x == y) | (np.isnan(x) & np.isnan(y))))[0]
            index = tuple(int(i) for i in place)
            raise KernelRaceError(
                f"output {k} depends on the order of threads: at {index} it is {x[index]} under "
                f"{name} and {y[index]} under {other_name}"
            )


def _arrays(value: Any) -> list[mx.array]:
    return list(value) if isinstance(value, list | tuple) else [value]
