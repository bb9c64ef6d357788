"""Compiles kernels: finds a compiler, keeps what it made, and explains what it said.

The compiler is `$CXX`, else clang++ or g++ on the PATH. Objects live in the cache folder under the
SHA-256 of everything that went into them, so another process finds them and none is ever stale.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import threading
from functools import cache, lru_cache
from pathlib import Path

from mlx_companion.errors import HardwareError, KernelBuildError
from mlx_companion.runtime.paths import cache_dir

HEADERS = Path(__file__).parent / "metal"
_COMMON = ["-std=gnu++20", "-fPIC", "-g1", "-fno-exceptions", "-fno-rtti", "-ffp-contract=off"]
RUNTIME_FLAGS = [*_COMMON, "-O2"]
KERNEL_FLAGS = [*_COMMON, "-O1", "-fno-strict-aliasing", "-fwrapv", "-fno-finite-loops"]
# Bytes of the private variables of a thread; the runtime's stacks hold a little more.
PRIVATE_LIMIT = 192 * 1024
# Thread checks are compiled in but not linked: the runtime takes their calls. The coverage calls
# count steps, and the index and division checks catch what would take the process down.
GCC_CHECKS = [
    f"-Werror=frame-larger-than={PRIVATE_LIMIT}",
    "-fsanitize=thread,bounds,integer-divide-by-zero",
    "-fsanitize-coverage=trace-pc",
]
# Clang's `bounds` has a part that traps, and some builds of it trap at every finding. A read before
# a write of the same element is no race of its own, so it leaves it out unless told otherwise.
CLANG_CHECKS = [
    f"-Wframe-larger-than={PRIVATE_LIMIT}",
    "-Werror=frame-larger-than",
    "-fsanitize=thread,array-bounds,integer-divide-by-zero",
    "-fno-sanitize-trap=all",
    "-mllvm",
    "-tsan-instrument-read-before-write=1",
    "-fsanitize-coverage=trace-pc,no-prune",
]
_lock = threading.Lock()
_folder: Path | None = None


def keep_in(folder: Path | None) -> None:
    """Keep compiled kernels there from now on; None for the cache folder."""
    global _folder
    _folder = folder


def compiler() -> str:
    """The C++ compiler.

    Raises:
        HardwareError: there is none.
    """
    given = os.environ.get("CXX")
    names = [given] if given else ["g++", "clang++", "c++"]
    for name in names:
        path = shutil.which(name)
        if path:
            return path
    raise HardwareError(
        f"the Metal bench needs a C++ compiler and found none of {', '.join(names)}; "
        "install g++ or clang++, or name one in CXX"
    )


def build(source: str) -> Path:
    """The path of the kernel's shared object, compiled unless some process did before.

    Raises:
        KernelBuildError: the source does not compile.
        HardwareError: there is no compiler.
    """
    tool = compiler()
    flags = [*KERNEL_FLAGS, *_checks(tool)]
    folder = _folder or cache_dir() / "kernel-bench"
    key = _key(tool, source, *flags)
    target = folder / f"{key}.so"
    with _lock:
        if not target.exists():
            runtime = _runtime(tool, folder)
            _produce(tool, flags, source, target, [str(runtime), "-shared", "-lm"])
    return target


def _checks(tool: str) -> list[str]:
    return CLANG_CHECKS if "clang" in _version(tool) else GCC_CHECKS


def _runtime(tool: str, folder: Path) -> Path:
    source = (HEADERS / "runtime.cpp").read_text()
    target = folder / f"runtime-{_key(tool, source, *RUNTIME_FLAGS)}.o"
    if not target.exists():
        _produce(tool, RUNTIME_FLAGS, source, target, None)
    return target


def _produce(
    tool: str, flags: list[str], source: str, target: Path, link: list[str] | None
) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        text, made = Path(scratch, "kernel.cpp"), Path(scratch, "made")
        text.write_text(source)
        compiled = made if link is None else Path(scratch, "kernel.o")
        _run([tool, *flags, f"-I{HEADERS}", "-c", str(text), "-o", str(compiled)])
        if link is not None:
            _run([tool, str(compiled), "-o", str(made), *link])
        os.replace(made, target)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise KernelBuildError(_explain(done.stderr, command[0]))


def _explain(output: str, tool: str) -> str:
    lines = [line for line in output.splitlines() if line.strip()]
    if any("-fsanitize" in line and "error" in line for line in lines):
        checks = " ".join(_checks(tool))
        return f"{tool} has not the checks that the bench needs ({checks}): {lines[0]}"
    private = re.search(r"error: .*frame size (?:of )?\(?(\d+)", output)
    if private:
        return (
            f"a thread's private variables take {private[1]} bytes, and the bench has "
            f"{PRIVATE_LIMIT}; a GPU has far fewer, so use smaller arrays"
        )
    errors = [k for k, line in enumerate(lines) if re.search(r"\berror:", line)]
    start = errors[0] if errors else 0
    shown = "\n".join(lines[start : start + 8])
    return f"the kernel does not compile (lines are those of its source or header):\n{shown}"


def _key(tool: str, *parts: str) -> str:
    digest = hashlib.sha256()
    for part in (_version(tool), _headers(), *parts):
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()


@cache
def _version(tool: str) -> str:
    done = subprocess.run([tool, "--version"], capture_output=True, text=True, check=False)
    return done.stdout


@cache
def _headers() -> str:
    files = sorted(HEADERS.iterdir())
    return "".join(p.name + p.read_text() for p in files if p.suffix in (".h", ".cpp"))


@lru_cache(maxsize=1024)
def load(path: Path) -> ctypes.CDLL:
    """The shared object, loaded once."""
    return ctypes.CDLL(str(path))


def line_of(path: Path, address: int) -> str:
    """Where in the kernel the code at an address comes from: "(line 12)", "" when unknown."""
    tool = shutil.which("addr2line")
    if tool is None:
        return ""
    command = [tool, "-i", "-e", str(path), hex(address)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        found = re.search(r"(?:^|/)(kernel|header):(\d+)", line)
        if found:
            return f"({'header line' if found[1] == 'header' else 'line'} {found[2]})"
    return ""
