"""Tokens per second, from what a token has to read and to compute.

Generation reads every weight that a token meets, and the cache, once per token; and each layer
takes some time that does not depend on its size, since its small operations wait for each other:

    seconds per token = (weights read + cache read) / bandwidth + layers x layer_seconds

`layer_seconds` is the planner's one fitted constant. Reading a prompt and training are limited by
arithmetic instead: 2 operations per parameter and token forward, 2 more back to the inputs (a
frozen matrix has no gradient of its own), and another 2 where layers are computed again.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from mlx_companion.quant.plan_machines import Machine
from mlx_companion.quant.plan_memory import LoraPlan, kv_value_bytes
from mlx_companion.quant.plan_shapes import ModelShape, Quantization


@dataclass(frozen=True)
class Speed:
    """Speeds of generation.

    Attributes:
        ceiling: positions per second if memory bandwidth were all.
        generation: expected positions per second, one text at a time.
        prefill: expected positions per second of a prompt.
        first_seconds: until the first token behind a prompt that fills the context.
        read_bytes: of weights and cache, per position.
    """

    ceiling: float
    generation: float
    prefill: float
    first_seconds: float
    read_bytes: int


def generation_speed(
    shape: ModelShape,
    quantization: Quantization,
    machine: Machine,
    context: int,
    kv_bits: int = 16,
) -> Speed:
    """How fast a model generates with so many positions in the cache."""
    read = shape.read_bytes(quantization) + read_cache(shape, context, kv_bits)
    seconds = read / machine.bandwidth + shape.layers * machine.layer_seconds
    rate = machine.flops16 if quantization.dtype_bytes == 2 else machine.flops32
    prefill = rate * machine.product_share / forward_flops(shape, context)
    return Speed(machine.bandwidth / read, 1 / seconds, prefill, context / prefill, read)


def read_cache(shape: ModelShape, context: int, kv_bits: int = 16) -> int:
    """Bytes of the cache that one token reads."""
    kept = sum(a.positions(context) * a.cached for a in shape.attention)
    return round(kept * kv_value_bytes(kv_bits))


def forward_flops(shape: ModelShape, length: int) -> float:
    """Operations per position of a text of `length`: products of matrices and attention's two."""
    matrices = 2.0 * shape.active_parameters
    seen = [(a, min(length / 2, a.positions(length))) for a in shape.attention]
    return matrices + sum(2 * a.heads * (a.key_width + a.value_width) * n for a, n in seen)


def training_speed(
    shape: ModelShape, lora: LoraPlan, machine: Machine, dtype_bytes: int = 2
) -> tuple[float, float]:
    """Positions per second of LoRA training: at the arithmetic's ceiling, and expected."""
    passes = 3 if lora.checkpoint else 2
    rate = machine.flops16 if dtype_bytes == 2 else machine.flops32
    ceiling = rate / (passes * forward_flops(shape, lora.length))
    step = (
        lora.tokens / (ceiling * machine.product_share)
        + passes * shape.layers * machine.layer_seconds
    )
    return ceiling, lora.tokens / step


def fitted_layer_seconds(
    measured: Iterable[tuple[ModelShape, float]],
    quantization: Quantization,
    machine: Machine,
    context: int = 256,
) -> float:
    """The constant that measured generation speeds imply: the median over them.

    Args:
        measured: models, and positions per second.
        quantization: of all of them.
        machine: its bandwidth counts.
        context: positions in the cache meanwhile.
    """
    found = []
    for shape, speed in measured:
        read = shape.read_bytes(quantization) + read_cache(shape, context)
        found.append((1 / speed - read / machine.bandwidth) / shape.layers)
    return statistics.median(found)
