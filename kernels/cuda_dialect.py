"""Metal's names in CUDA, so that one kernel body serves both.

`mx.fast.cuda_kernel` wraps a body in a `__global__` function of namespace `mlx::core::cu`, with
plain pointers as buffers and the template as `constexpr int` and `using`. `cuda_dialect.h` stands
in front of it and gives the words of the Metal Shading Language their meaning there.

    mx.fast.cuda_kernel(..., header=around(kernel.header), source=kernel.source)

What a body may not do, because the two languages read it differently (`violations` finds what a
look at the text can find, `launch` refuses the first, a compiler's word is needed for the rest):

- Inputs of no dimensions: a reference in Metal, a pointer in CUDA.
- `device` pointers to inputs: Metal puts inputs of fewer than 8 elements into its `constant`
  address space, where such a pointer does not compile. Write `auto row = x + ...;`.
- `threadgroup` before anything but an array or a variable: in CUDA a pointer so declared would
  itself be shared.
- Literals without `f`: float in Metal, double in CUDA.
- Vectors (`float4`): CUDA's have no operators.
- Collectives of a SIMD group that not all 32 threads reach; threadgroups are multiples of 32.
- Functions in a kernel's header without METAL_FUNC before them, which makes them `__device__`.
"""

from __future__ import annotations

import re
from pathlib import Path

# CUDA's `__device__` is a macro around an attribute `device`, so that behind these macros nothing
# can be declared with it: they come last, and a kernel's own header is freed of the words instead.
ADDRESS_SPACES = """
#define device
#define constant
#define thread
"""
_WORDS = re.compile(r"\b(?:device|constant|thread)\b")
_COMMENTS = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_FORBIDDEN = tuple(
    (re.compile(pattern), reason)
    for pattern, reason in (
        (
            r"\bthreadgroup\s+[\w:<>]+\s*[*&]",
            "CUDA would share the pointer itself; index the array instead",
        ),
        (
            r"(?<![\w.])(?:\d+\.\d*|\.\d+)(?:e[+-]?\d+)?(?![\w.])|(?<![\w.])\d+e[+-]?\d+(?![\w.])",
            "a double in CUDA; put an f behind it",
        ),
        (
            r"\b(?:bool|half|bfloat|float|u?int|u?short|u?char|u?long)[234]\s*\(",
            "vectors have no operators in CUDA; use single numbers",
        ),
        (
            r"\bsimd_(?:ballot|vote\w*|active\w*|\w+_and_fill_\w+|\w+_rotate_\w+)",
            "not in the dialect; use sums, maxima, broadcasts or plain shuffles",
        ),
    )
)

FUNCTIONS = Path(__file__).with_suffix(".h").read_text(encoding="utf-8")


def around(header: str = "") -> str:
    """The header of a CUDA kernel: the dialect, and in it the kernel's own header.

    Args:
        header: functions that the body calls, in the Metal Shading Language.
    """
    own = f"\nnamespace mlx::core::cu {{\n{_WORDS.sub('', header)}\n}}\n" if header else ""
    return FUNCTIONS + own + ADDRESS_SPACES


def violations(source: str) -> list[str]:
    """What in a body or header CUDA reads differently from Metal: one sentence each."""
    code = _COMMENTS.sub(" ", source)
    return [
        f"'{' '.join(found.group().split())}': {reason}"
        for pattern, reason in _FORBIDDEN
        for found in pattern.finditer(code)
    ]


HEADER = around()
