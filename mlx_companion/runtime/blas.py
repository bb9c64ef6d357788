"""A fast BLAS for MLX on Linux without a GPU: 31 times the float32 matmul speed.

MLX's Linux wheel links the reference BLAS, which multiplies at about 8 GFLOP/s on two cores. The
dynamic loader takes `cblas_sgemm` from the first library in the process that offers it to
everyone, so an OpenBLAS loaded with `RTLD_GLOBAL` before `mlx.core` takes its place (245 GFLOP/s
on the same two cores). `mlx_companion/__init__.py` calls `load_blas()` for this reason.

Looked for, in this order: `$MLX_COMPANION_BLAS` (a library's path, or `off`), the system's
libopenblas, one inside an installed wheel (faiss-cpu carries one whose symbols have their plain
names; NumPy's and SciPy's are renamed and cannot serve). Where MLX has another backend (Metal,
CUDA) nothing is loaded.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mlx_companion.errors import ConfigError
from mlx_companion.runtime.cores import available_cores

VARIABLE = "MLX_COMPANION_BLAS"
_SYSTEM_NAMES = ("libopenblas.so.0", "libopenblas.so")
# In the order in which they need each other.
_COMPANIONS = ("libquadmath", "libgfortran", "libgomp")
_THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")
_WAIT_VARIABLE = "OMP_WAIT_POLICY"
_CORE_VARIABLE = "OPENBLAS_CORETYPE"
_SPIN_VARIABLE, _SPIN = "OPENBLAS_THREAD_TIMEOUT", "20"
# OpenBLAS's kernels by what a processor must offer for them, best first.
_KERNELS = (
    ("SKYLAKEX", {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"}),
    ("HASWELL", {"avx2", "fma"}),
)
_CPUINFO = Path("/proc/cpuinfo")

Status = Literal["loaded", "not-needed", "off", "late", "missing"]


@dataclass(frozen=True)
class BlasInfo:
    """What the loader did.

    Attributes:
        status: `loaded`; `not-needed` (macOS, or an MLX with CUDA); `off` (switched off by the
            environment); `late` (`mlx.core` was imported first); `missing` (none was found).
        path: the library that was loaded.
        message: one sentence for people, with what to do when something is wrong.
    """

    status: Status
    path: str | None
    message: str


_info: BlasInfo | None = None


def load_blas() -> BlasInfo:
    """Load an OpenBLAS for MLX to use, once per process; later calls return the first result.

    Warns (RuntimeWarning, once) when MLX will be slow: none was found, or it is too late.

    Raises:
        ConfigError: `$MLX_COMPANION_BLAS` names something that is no BLAS library.
    """
    global _info
    if _info is None:
        _info = _find_and_load()
        if _info.status in {"late", "missing"}:
            warnings.warn(_info.message, RuntimeWarning, stacklevel=3)
    return _info


def measure_gflops(n: int = 1024, repeats: int = 3) -> float:
    """Float32 matmul speed of MLX's default device.

    Args:
        n: rows and columns of the two matrices.
        repeats: timed products; the fastest counts.

    Returns:
        10^9 floating-point operations per second, a product counting as 2 n^3.
    """
    import mlx.core as mx

    a = mx.random.normal((n, n))
    mx.eval(a, a @ a)
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        mx.eval(a @ a)
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best / 1e9


def _find_and_load() -> BlasInfo:
    wanted = os.environ.get(VARIABLE, "")
    if not sys.platform.startswith("linux"):
        return BlasInfo("not-needed", None, "MLX brings its own BLAS on this system")
    if wanted.lower() == "off":
        return BlasInfo("off", None, f"switched off by {VARIABLE}=off")
    folders = _site_folders()
    if any(_cuda_backends(folders)):
        return BlasInfo("not-needed", None, "MLX runs on CUDA here")
    if _already_global():
        _set_threads(ctypes.CDLL(None))
        return BlasInfo("loaded", None, "an OpenBLAS was already loaded into this process")
    if "mlx.core" in sys.modules:
        return BlasInfo("late", None, _LATE)
    if wanted:
        return _load_named(wanted)
    return _load_first([*_system_candidates(), *_wheel_candidates(folders)])


_LATE = (
    "mlx.core was imported before mlx_companion, so MLX keeps its slow reference BLAS (float32 "
    "matmul about 30 times slower); import mlx_companion first"
)
_MISSING = (
    "no OpenBLAS was found, so MLX uses its reference BLAS and float32 matmul is about 30 times "
    'slower; run: pip install "mlx-companion[blas]" (or install your system\'s OpenBLAS package, '
    f"on Debian and Ubuntu libopenblas0-pthread); {VARIABLE}=off silences this"
)


def _load_named(path: str) -> BlasInfo:
    if not _load(path):
        raise ConfigError(
            f"{VARIABLE}={path} is not a library that exports cblas_sgemm; "
            "expected the path of an OpenBLAS, or 'off'"
        )
    return BlasInfo("loaded", path, f"loaded {path}")


def _load_first(candidates: Iterable[str]) -> BlasInfo:
    for path in candidates:
        if _load(path):
            return BlasInfo("loaded", path, f"loaded {path}")
    return BlasInfo("missing", None, _MISSING)


def _load(path: str) -> bool:
    """Load one library for everyone; False when it is absent or offers no plain cblas_sgemm."""
    # NumPy's OpenBLAS, which reads this when NumPy is imported, spins for 2^26 cycles after a
    # product, which is most of what MLX's needs the core for: a query of the research classifier
    # took 40 ms, one in ten 99; with 2^20 cycles it takes 32 and 41.
    os.environ.setdefault(_SPIN_VARIABLE, _SPIN)
    try:
        _load_companions(Path(path).parent)
        with _widest_kernels():
            library = ctypes.CDLL(path)
        if not hasattr(library, "cblas_sgemm"):
            return False
        _set_threads(ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL))
    except OSError:
        return False
    return True


@contextmanager
def _widest_kernels() -> Iterator[None]:
    """Have OpenBLAS take the widest kernels that the processor can run, while it is loaded.

    It chooses them by processor model, and for models newer than itself it falls back to SSE3:
    OpenBLAS 0.3.15 on a Zen 5 gave 38 GFLOP/s on two cores, 138 a core with AVX2 and 273 with
    AVX-512. A choice made in the environment is left alone.
    """
    wanted = None if os.environ.get(_CORE_VARIABLE) else kernels_for(_cpu_flags())
    if wanted is None:
        yield
        return
    os.environ[_CORE_VARIABLE] = wanted
    try:
        yield
    finally:
        del os.environ[_CORE_VARIABLE]


def kernels_for(flags: set[str]) -> str | None:
    """OpenBLAS's name for the widest kernels that run with these processor flags, if any."""
    return next((name for name, needed in _KERNELS if needed <= flags), None)


def _cpu_flags() -> set[str]:
    try:
        lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    return set(next((line for line in lines if line.startswith("flags")), "").split())


def _load_companions(folder: Path) -> None:
    """Load the Fortran and OpenMP libraries that a wheel ships beside its OpenBLAS."""
    if not folder.name.endswith(".libs"):
        return
    # OpenMP's threads spin while they wait for work and take the core from MLX's own thread: on a
    # busy 2-core machine a decoding step took 607 ms spinning and 340 ms sleeping.
    os.environ.setdefault(_WAIT_VARIABLE, "PASSIVE")
    for name in _COMPANIONS:
        for path in sorted(folder.glob(f"{name}*.so*")):
            ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)


def limit_threads(number: int) -> bool:
    """Let matrix products of this process use `number` threads.

    Returns:
        Whether there is a BLAS here that can be told so.
    """
    set_threads = getattr(ctypes.CDLL(None), "openblas_set_num_threads", None)
    if set_threads is None:
        return False
    set_threads(ctypes.c_int(number))
    return True


def _set_threads(library: ctypes.CDLL) -> None:
    """One thread per usable core, unless the person chose a number in the environment."""
    if any(os.environ.get(name) for name in _THREAD_VARIABLES):
        return
    set_threads = getattr(library, "openblas_set_num_threads", None)
    if set_threads is not None:
        set_threads(ctypes.c_int(available_cores()))


def _already_global() -> bool:
    """True when the process already offers an OpenBLAS to everyone (LD_PRELOAD, for instance)."""
    process = ctypes.CDLL(None)
    return hasattr(process, "cblas_sgemm") and hasattr(process, "openblas_get_config")


def _site_folders() -> list[Path]:
    return [Path(entry) for entry in sys.path if entry and os.path.isdir(entry)]


def _cuda_backends(folders: list[Path]) -> Iterator[Path]:
    for folder in folders:
        yield from folder.glob("mlx_cuda*.dist-info")


def _system_candidates() -> list[str]:
    # A conda environment's own library folder is not on the loader's path.
    own = [str(Path(sys.prefix) / "lib" / name) for name in _SYSTEM_NAMES]
    return [*_SYSTEM_NAMES, *(path for path in own if os.path.exists(path))]


def _wheel_candidates(folders: list[Path]) -> Iterator[str]:
    for folder in folders:
        for libraries in sorted(folder.glob("*.libs")):
            yield from (str(path) for path in sorted(libraries.glob("libopenblas*.so*")))
