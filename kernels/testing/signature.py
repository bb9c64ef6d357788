"""The function that MLX generates around a kernel's body, generated again and compared.

MLX chooses each parameter from what the kernel is called with: arrays of fewer than eight elements
are in constant memory, scalars are references, `x_shape`, `x_strides` and `x_ndim` and the thread
attributes come only when the source names them. `recorded` asks MLX for its own text, which it
gives on any machine (a graph is recorded, not run).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from mlx_companion.errors import ConfigError, KernelError

# MLX puts arrays with fewer elements than this in constant memory.
CONSTANT_BELOW = 8
TYPES: dict[mx.Dtype, str] = {
    mx.bool_: "bool",
    mx.uint8: "uint8_t",
    mx.uint16: "uint16_t",
    mx.uint32: "uint32_t",
    mx.uint64: "uint64_t",
    mx.int8: "int8_t",
    mx.int16: "int16_t",
    mx.int32: "int32_t",
    mx.int64: "int64_t",
    mx.float16: "float16_t",
    mx.float32: "float",
    mx.bfloat16: "bfloat16_t",
}
# Each thread attribute's type in Metal and its value in the bench's `mb_thread`.
ATTRIBUTES: dict[str, tuple[str, str]] = {
    "dispatch_quadgroups_per_threadgroup": ("uint", "full_simdgroups * 8"),
    "dispatch_simdgroups_per_threadgroup": ("uint", "full_simdgroups"),
    "dispatch_threads_per_threadgroup": ("uint3", "full_group_size"),
    "grid_origin": ("uint3", ""),
    "grid_size": ("uint3", "grid_size"),
    "quadgroup_index_in_threadgroup": ("uint", "index / 4"),
    "quadgroups_per_threadgroup": ("uint", "simdgroups * 8"),
    "simdgroup_index_in_threadgroup": ("uint", "simdgroup"),
    "simdgroups_per_threadgroup": ("uint", "simdgroups"),
    "thread_execution_width": ("uint", "32"),
    "thread_index_in_quadgroup": ("uint", "index % 4"),
    "thread_index_in_simdgroup": ("uint", "lane"),
    "thread_index_in_threadgroup": ("uint", "index"),
    "thread_position_in_grid": ("uint3", "grid_position"),
    "thread_position_in_threadgroup": ("uint3", "group_position"),
    "threadgroup_position_in_grid": ("uint3", "group_place"),
    "threadgroups_per_grid": ("uint3", "groups"),
    "threads_per_grid": ("uint3", "grid_size"),
    "threads_per_simdgroup": ("uint", "32"),
    "threads_per_threadgroup": ("uint3", "group_size"),
}
Template = Sequence[tuple[str, Any]]


@dataclass(frozen=True)
class Parameter:
    """A buffer of the generated function.

    Attributes:
        name: `x`, or `x_shape` and the like.
        space: "device" or "constant".
        type: of an element, in Metal.
        scalar: a reference to one element.
        const: the kernel may not write it.
        source: which input or output it belongs to.
        what: "data", "shape", "strides" or "ndim".
        atomic: elements are atomic.
    """

    name: str
    space: str
    type: str
    scalar: bool
    const: bool
    source: int
    what: str = "data"
    atomic: bool = False

    @property
    def text(self) -> str:
        """As MLX writes it."""
        kind = f"atomic<{self.type}>" if self.atomic else self.type
        qualifiers = f"const {self.space}" if self.const else self.space
        return f"{qualifiers} {kind}{'&' if self.scalar else '*'} {self.name}"


def type_name(dtype: mx.Dtype) -> str:
    """The Metal type of a dtype.

    Raises:
        ConfigError: the bench has no such type.
    """
    if dtype not in TYPES:
        raise ConfigError(f"the Metal bench has no {dtype}; it knows {', '.join(TYPES.values())}")
    return TYPES[dtype]


def parameters(
    source: str,
    input_names: Sequence[str],
    inputs: Sequence[tuple[tuple[int, ...], mx.Dtype]],
    output_names: Sequence[str],
    output_dtypes: Sequence[mx.Dtype],
    atomic_outputs: bool = False,
) -> list[Parameter]:
    """The buffers of the generated function, in order.

    Args:
        source: the kernel's body, searched as MLX searches it: text, comments included.
        input_names, output_names: of the arrays.
        inputs: shape and dtype of each.
        output_dtypes: of the outputs.
        atomic_outputs: outputs are atomic.
    """
    found = []
    for i, (name, (shape, dtype)) in enumerate(zip(input_names, inputs, strict=True)):
        size = 1
        for n in shape:
            size *= n
        space = "constant" if size < CONSTANT_BELOW else "device"
        found.append(Parameter(name, space, type_name(dtype), not shape, True, i))
        for what, kind in (("shape", "int"), ("strides", "int64_t"), ("ndim", "int")):
            if shape and f"{name}_{what}" in source:
                scalar = what == "ndim"
                found.append(Parameter(f"{name}_{what}", "constant", kind, scalar, True, i, what))
    for i, (name, dtype) in enumerate(zip(output_names, output_dtypes, strict=True)):
        kind = type_name(dtype)
        found.append(Parameter(name, "device", kind, False, False, i, atomic=atomic_outputs))
    return found


def attributes(source: str) -> list[str]:
    """The thread attributes that the source names, in MLX's order."""
    return [name for name in ATTRIBUTES if name in source]


def template_text(template: Template) -> tuple[str, str]:
    """The template's parameters and its arguments, as MLX writes them; ("", "") for none."""
    kinds, values = [], []
    for name, value in template:
        if isinstance(value, bool):
            kinds.append(f"bool {name}")
            values.append(str(int(value)))
        elif isinstance(value, int):
            kinds.append(f"int {name}")
            values.append(str(value))
        else:
            kinds.append(f"typename {name}")
            values.append(type_name(value))
    return ", ".join(kinds), ", ".join(values)


def recorded(call: Callable[..., Any], inputs: Sequence[mx.array]) -> str:
    """What MLX generates when `call(*inputs)` runs a `mx.fast.metal_kernel` with `stream=mx.gpu`.

    Raises:
        KernelError: nothing was recorded.
    """
    texts: list[str] = []

    def keep(entry: dict[str, Any]) -> None:
        if entry.get("name") == "CustomKernel":
            texts.append(str(entry["arguments"][1]))

    mx.export_function(keep, call, *inputs)
    if not texts:
        raise KernelError("MLX recorded no kernel; the function must run exactly one")
    return texts[0]


def parse(generated: str) -> tuple[str, list[str], list[str], str]:
    """The template's parameters, the buffers, the attributes and the template's arguments."""
    head = re.search(
        r"(?:template <(?P<kinds>[^>]*)>\s*)?\[\[kernel\]\] void (?P<name>\w+)\((?P<list>.*?)\) \{",
        generated,
        re.DOTALL,
    )
    if head is None:
        raise KernelError("MLX's generated source has no kernel in it")
    lines = [line.strip() for line in head["list"].split(",\n")]
    buffers = [re.sub(r" \[\[buffer\(\d+\)\]\]$", "", x) for x in lines if "[[buffer(" in x]
    threads = [x.split(" [[")[0] for x in lines if "[[buffer(" not in x]
    arguments = re.findall(rf"{head['name']}<([^>]*)>", generated)
    return head["kinds"] or "", buffers, threads, arguments[-1] if arguments else ""
