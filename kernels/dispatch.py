"""Which implementation of an op runs: one rule for all ops.

    impl="auto"       Metal or CUDA where MLX's default device is one, the plain form elsewhere
    impl="reference"  plain MLX, slow and obvious; what the others are tested against
    impl="plain"      plain MLX, as fast and as small as it can be made; what CPUs run
    impl="metal"      the kernel on Apple's GPUs
    impl="cuda"       the kernel on NVIDIA's

Asking for a kernel that the machine cannot run is an error, never another path in silence.
"""

from __future__ import annotations

from typing import Literal, get_args

import mlx.core as mx

from mlx_companion.errors import ConfigError
from mlx_companion.kernels import launch
from mlx_companion.runtime.device import require

Impl = Literal["auto", "reference", "plain", "metal", "cuda"]
Chosen = Literal["reference", "plain", "metal", "cuda"]
IMPLS: tuple[str, ...] = get_args(Impl)


def choose(impl: str, op: str, kernels: tuple[Chosen, ...] = ("metal", "cuda")) -> Chosen:
    """The implementation to run.

    Args:
        impl: what was asked for.
        op: the op's name, for messages.
        kernels: the accelerators that "auto" may choose; the others of the op pay only when asked
            for by name.

    Raises:
        ConfigError: there is no such implementation.
        HardwareError: a kernel was asked for that this machine cannot run.
    """
    if impl not in IMPLS:
        raise ConfigError(f"{op} has no implementation '{impl}'; choose one of {', '.join(IMPLS)}")
    if impl == "auto":
        device = default_accelerator()
        return device if device in kernels else "plain"
    if impl == "metal" and not launch.emulated():
        require("metal")
    elif impl == "cuda":
        require("cuda")
    return impl  # type: ignore[return-value]


def default_accelerator() -> Chosen | None:
    """The kind of MLX's default device, None for a CPU."""
    if mx.default_device().type != mx.DeviceType.gpu:
        return None
    return "metal" if mx.metal.is_available() else "cuda"
