"""What MLX can use here, and the record of machine and versions that every run keeps."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any, Literal

from mlx_companion.errors import HardwareError

_PACKAGES = ("mlx", "mlx-lm", "numpy", "transformers", "tokenizers", "safetensors", "scipy")


@dataclass(frozen=True)
class DeviceFacts:
    """MLX's view of the machine.

    Attributes:
        kind: the default device.
        name: the device's name, e.g. "Apple M4 Pro".
        metal: the Metal backend is there.
        cuda: the CUDA backend is there.
        memory_mb: memory that the device reports (MB), None where MLX does not say.
        working_set_mb: Metal's recommended working set (MB), None elsewhere.
        active_mb: MLX's live buffers (MB).
        peak_mb: the most that MLX's buffers have held (MB).
    """

    kind: Literal["cpu", "gpu"]
    name: str
    metal: bool
    cuda: bool
    memory_mb: float | None
    working_set_mb: float | None
    active_mb: float
    peak_mb: float


def device_facts() -> DeviceFacts:
    """Ask MLX about the default device."""
    import mlx.core as mx

    info = mx.device_info()
    memory = info.get("memory_size") or info.get("total_memory")
    working_set = info.get("max_recommended_working_set_size")
    return DeviceFacts(
        kind=_kind(),
        name=str(info.get("device_name", platform.machine())),
        metal=mx.metal.is_available(),
        cuda=mx.cuda.is_available(),
        memory_mb=None if memory is None else float(memory) / 1e6,
        working_set_mb=None if working_set is None else float(working_set) / 1e6,
        active_mb=mx.get_active_memory() / 1e6,
        peak_mb=mx.get_peak_memory() / 1e6,
    )


def is_cpu() -> bool:
    """True when MLX's default device is the CPU, where everything is to be float32."""
    return _kind() == "cpu"


def require(backend: Literal["metal", "cuda"]) -> None:
    """Return when MLX has the backend.

    Raises:
        HardwareError: it does not; there is no silent fallback.
    """
    import mlx.core as mx

    available = {"metal": mx.metal.is_available, "cuda": mx.cuda.is_available}
    if not available[backend]():
        raise HardwareError(
            f"the {backend} backend was asked for, but MLX {version('mlx')} on this machine "
            f"({platform.system()} {platform.machine()}) does not have it; use the plain path"
        )


def version(package: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def environment() -> dict[str, Any]:
    """What a run records about where it ran: versions, system, device. JSON-ready."""
    from mlx_companion import __version__

    return {
        "mlx_companion": __version__,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in _PACKAGES},
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "logical_cpus": os.cpu_count(),
        "device": asdict(device_facts()),
    }


def _kind() -> Literal["cpu", "gpu"]:
    import mlx.core as mx

    return "gpu" if mx.default_device().type == mx.DeviceType.gpu else "cpu"
