"""The CUDA code that MLX makes of a kernel's body, and NVRTC to compile it without a GPU.

pip install "mlx-companion[cuda-check]"
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
from kernel_launches import Launch

from mlx_companion.kernels.cuda_dialect import around

INSTALL = 'pip install "mlx-companion[cuda-check]"'

# What bodies see of MLX's own header: its includes, and the types of shapes and strides.
MLX_UTILS = """
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda/std/array>
#include <cuda/std/complex>
#include <cuda/std/limits>
#include <cuda/std/tuple>
namespace mlx::core::cu {
using Shape = cuda::std::array<int32_t, 10>;
using Strides = cuda::std::array<int64_t, 10>;
}
"""
_UTILS_NAME = "mlx/backend/cuda/device/utils.cuh"
BEFORE = f'\n#include "{_UTILS_NAME}"\n\n#include <cooperative_groups.h>\n\n'
_TYPES = {
    mx.bool_: "bool",
    mx.float32: "float",
    mx.float16: "__half",
    mx.bfloat16: "__nv_bfloat16",
    **{t: f"{str(t).removeprefix('mlx.core.')}_t" for t in (mx.int8, mx.int16, mx.int32, mx.int64)},
    **{
        t: f"{str(t).removeprefix('mlx.core.')}_t"
        for t in (mx.uint8, mx.uint16, mx.uint32, mx.uint64)
    },
}


def programs(launches: Iterable[Launch]) -> Iterator[tuple[str, list[Launch]]]:
    """Sources and what they hold: kernels that share a header make one program."""
    by_header: dict[str, list[Launch]] = {}
    for launch in launches:
        by_header.setdefault(launch.header, []).append(launch)
    for header, together in by_header.items():
        functions = [function(launch, f"k{i}") for i, launch in enumerate(together)]
        yield BEFORE + around(header) + "\n".join(functions), together


def function(launch: Launch, name: str) -> str:
    """A kernel's `__global__` function, put together as MLX does."""
    parameters = []
    for label, dtype, ndim in launch.inputs:
        parameters.append(f"const {_TYPES[dtype]}* {label}")
        kinds = {"shape": "Shape", "strides": "Strides", "ndim": "int"}
        parameters += [
            f"const __grid_constant__ {kind} {label}_{suffix}"
            for suffix, kind in kinds.items()
            if ndim and f"{label}_{suffix}" in launch.source
        ]
    parameters += [f"{_TYPES[dtype]}* {label}" for label, dtype in launch.outputs]
    constants = [f"  {_constant(*item)}" for item in launch.template]
    return "\n".join(
        [
            "namespace mlx::core::cu {\nnamespace cg = cooperative_groups;",
            f"// {launch}",
            f"__global__ void {name}(",
            ",\n".join(parameters) + ") {",
            *constants,
            launch.source,
            "}\n}  // namespace mlx::core::cu",
        ]
    )


def _constant(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"constexpr bool {name} = {str(value).lower()};"
    if isinstance(value, int):
        return f"constexpr int {name} = {value};"
    return f"using {name} = {_TYPES[value]};"


@cache
def nvrtc() -> tuple[Any, tuple[str, ...]] | None:
    """The library and the folders of CUDA's headers; None where they are not installed."""
    for root in _roots():
        libraries = sorted(root.glob("lib*/libnvrtc.so.*"))
        headers = [root / "include" / "cccl", root / "include"]
        if libraries and all(folder.is_dir() for folder in headers):
            return ctypes.CDLL(str(libraries[-1])), tuple(map(str, headers))
    return None


def _roots() -> Iterator[Path]:
    wheels = importlib.util.find_spec("nvidia")
    for folder in (wheels.submodule_search_locations or []) if wheels else []:
        yield from sorted(Path(folder).glob("cu[0-9]*"), reverse=True)
    yield Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))


def compiled(source: str, architecture: str) -> tuple[str | None, str]:
    """PTX (None when there are errors) and the compiler's messages; code for the chip, too."""
    found = nvrtc()
    assert found is not None
    library, folders = found
    program = ctypes.c_void_p()
    texts, names = ((ctypes.c_char_p * 1)(x.encode()) for x in (MLX_UTILS, _UTILS_NAME))
    made = library.nvrtcCreateProgram(
        ctypes.byref(program), source.encode(), b"kernels.cu", 1, texts, names
    )
    assert made == 0
    options = [f"--gpu-architecture={architecture}", *(f"--include-path={x}" for x in folders)]
    encoded = (ctypes.c_char_p * len(options))(*(x.encode() for x in options))
    failed = library.nvrtcCompileProgram(program, len(options), encoded)
    log = _text(library, program, "ProgramLog")
    ptx = None if failed else _text(library, program, "PTX")
    library.nvrtcDestroyProgram(ctypes.byref(program))
    return ptx, log


def entries(ptx: str) -> list[str]:
    """The code of each kernel."""
    return re.split(r"^\.visible \.entry ", ptx, flags=re.MULTILINE)[1:]


def shared_bytes(code: str) -> int:
    """Memory that a threadgroup of the kernel shares."""
    return sum(map(int, re.findall(r"^\s*\.shared [^\n]*\[(\d+)\];", code, re.MULTILINE)))


def _text(library: Any, program: ctypes.c_void_p, what: str) -> str:
    size = ctypes.c_size_t()
    getattr(library, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    getattr(library, f"nvrtcGet{what}")(program, text)
    return text.value.decode()
