"""The planner: does a model fit, how fast is it, what can be trained; before anything is fetched.

    found = plan("llama3.1-8b", "m4-pro-48", bits=4, context=8192)
    found.fits, found.total, found.speed.generation
    found = plan("qwen2.5-3b", "m4-pro-48", bits=4, lora=LoraPlan(rank=16, batch=4))
    found.training.speed

    runs_at("llama3.1-8b", 35, "m4-pro-48", bits=4)             # True
    largest_model("m4-pro-48", "lora")                           # its plan
    context_cost("llama3.1-8b", "m4-pro-48", contexts=(8192, 32768))

Memory follows from the model's configuration, speed from that and the machine's table
(`machines.json`); `docs/plan.md` derives both and compares them with measurements.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from mlx_companion.errors import ConfigError
from mlx_companion.quant.levels import parse_level
from mlx_companion.quant.plan_machines import THIS, Machine, machine
from mlx_companion.quant.plan_memory import (
    LoraPlan,
    cache_bytes,
    generation_bytes,
    training_bytes,
)
from mlx_companion.quant.plan_shapes import ModelShape, Quantization
from mlx_companion.quant.plan_source import describe, known_models
from mlx_companion.quant.plan_speed import Speed, generation_speed, training_speed

__all__ = ["LoraPlan", "Plan", "Training", "context_cost", "largest_model", "plan", "runs_at"]

Source = str | Path | Mapping[str, Any] | ModelShape
Task = Literal["generate", "lora"]
BITS = ("2", "3", "4", "5", "6", "8", "16", "32", "mxfp4", "mxfp8", "nvfp4")


@dataclass(frozen=True)
class Training:
    """A LoRA run.

    Attributes:
        lora: what was asked for.
        trainable: numbers in the adapters.
        speed: expected positions per second.
        ceiling: the same if products of matrices ran at the machine's published rate.
    """

    lora: LoraPlan
    trainable: int
    speed: float
    ceiling: float


@dataclass(frozen=True)
class Plan:
    """What a model takes on a machine.

    Attributes:
        shape: of the model.
        machine: where.
        quantization: how weights are kept.
        context: positions in the cache.
        kv_bits: of the cache.
        parts: bytes by part, in the order in which they are drawn.
        speed: of generation; None for an encoder, and for a training run.
        training: of a LoRA run; None otherwise.
        loading: bytes while the model is loaded; more than its weights where packed files are
            turned into plain numbers.
        notes: what to know about it.
    """

    shape: ModelShape
    machine: Machine
    quantization: Quantization
    context: int
    kv_bits: int
    parts: dict[str, int]
    speed: Speed | None
    training: Training | None = None
    loading: int = 0
    notes: tuple[str, ...] = field(default=())

    @property
    def total(self) -> int:
        """Bytes at the peak."""
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        """Whether the peak is within what the machine lets a program use."""
        return max(self.total, self.loading) <= self.machine.usable

    def to_json(self) -> dict[str, Any]:
        """Plain values: bytes, seconds, positions per second."""
        own = self.speed
        return {
            "model": self.shape.name,
            "family": self.shape.family,
            "unit": self.shape.unit,
            "parameters": self.shape.parameters,
            "active_parameters": self.shape.active_parameters,
            "weights": self.quantization.name,
            "bits_per_weight": self.shape.bits_per_weight(self.quantization),
            "context": self.context,
            "kv_bits": self.kv_bits,
            "machine": self.machine.name,
            "memory": self.machine.memory,
            "usable": self.machine.usable,
            "parts": dict(self.parts),
            "total": self.total,
            "loading": self.loading,
            "fits": self.fits,
            "speed": None if own is None else vars(own) | {},
            "training": None if self.training is None else _training_json(self.training),
            "notes": list(self.notes),
        }


def plan(
    model: Source,
    on: str | Machine = THIS,
    *,
    bits: int | str | None = None,
    group: int = 64,
    context: int | None = None,
    kv_bits: int | None = None,
    lora: LoraPlan | None = None,
) -> Plan:
    """Plan for generation, or for LoRA training where `lora` is given.

    Args:
        model: see `plan_source.describe`; or a shape.
        on: a machine or its name; by default this one.
        bits: per weight, a format's name, or such as "4.5bpw"; by default what the configuration
            says, or 16 (32 where MLX runs on a CPU).
        group: weights per scale.
        context: positions in the cache; by default 4,096, or the model's own if that is less.
        kv_bits: of the cache; by default that of plain numbers.
        lora: a training run.

    Raises:
        ModelNotFoundError: nothing is called that, or it is not on this disk.
        WeightsError: a file is damaged.
        ConfigError: a value outside its range, or a model that is not understood.
    """
    shape, stored = (model, None) if isinstance(model, ModelShape) else describe(model)
    place = machine(on) if isinstance(on, str) else on
    kept = _quantization(bits, group, stored, place)
    length = min(4096, shape.context or 4096) if context is None else context
    if length < 1:
        raise ConfigError(f"context is {context!r}; expected 1 or more")
    cached = kv_bits or 8 * kept.dtype_bytes
    parts = {"weights": shape.weight_bytes(kept)}
    if lora is not None:
        parts |= training_bytes(shape, lora, place, kept.dtype_bytes)
        training, speed = _training(shape, lora, place, kept, parts["adapters"] // 4), None
    else:
        training, speed = None, None
        if shape.generates:
            parts["cache"] = cache_bytes(shape, length, cached)
            speed = generation_speed(shape, kept, place, length, cached)
        fused = place.gpu
        parts["working"] = generation_bytes(shape, length, kept.dtype_bytes, fused=fused)
    notes = _notes(shape, place, kept, length, lora)
    loading = parts["weights"]
    if stored is not None and stored.packs and not kept.packs:
        loading += shape.weight_bytes(stored)
    return Plan(shape, place, kept, length, cached, parts, speed, training, loading, notes)


def runs_at(model: Source, least: float, on: str | Machine = THIS, **options: Any) -> bool:
    """Whether a model fits and is expected to generate at least so many positions per second.

    Args:
        model, on: as of `plan`.
        least: positions per second.
        options: as of `plan`.
    """
    found = plan(model, on, **options)
    return found.fits and found.speed is not None and found.speed.generation >= least


def largest_model(
    on: str | Machine = THIS,
    task: Task = "generate",
    *,
    least: float = 0.0,
    among: Iterable[str] | None = None,
    lora: LoraPlan | None = None,
    **options: Any,
) -> Plan | None:
    """The model with the most parameters that fits; None if none does.

    Args:
        on: as of `plan`.
        task: "generate", or "lora" for training.
        least: positions per second that it has to reach.
        among: names; by default all known models.
        lora: the run; by default 4 rows of 512 at rank 8, with checkpointing.
        options: as of `plan`; `bits` is 4 by default.
    """
    if task not in ("generate", "lora"):
        raise ConfigError(f"task is {task!r}; expected 'generate' or 'lora'")
    place = machine(on) if isinstance(on, str) else on
    options = {"bits": 4} | options
    if task == "lora":
        options["lora"] = lora or LoraPlan(checkpoint=True)
    fitting = []
    for name in among or known_models():
        shape, _ = describe(name)
        if not shape.generates:
            continue
        found = plan(shape, place, **options)
        speed = found.training.speed if found.training else found.speed and found.speed.generation
        if found.fits and (speed or 0.0) >= least:
            fitting.append(found)
    return max(fitting, key=lambda found: found.shape.parameters, default=None)


def context_cost(
    model: Source,
    on: str | Machine = THIS,
    contexts: Sequence[int] = (2048, 8192, 32768, 131072),
    **options: Any,
) -> list[Plan]:
    """The plan for each context length: what the cache takes, and what reading it costs.

    Args:
        model, on: as of `plan`.
        contexts: positions.
        options: as of `plan`.
    """
    shape, stored = (model, None) if isinstance(model, ModelShape) else describe(model)
    place = machine(on) if isinstance(on, str) else on
    if options.get("bits") is None and stored is not None:
        options = options | {"bits": stored.bits, "group": stored.group}
    return [plan(shape, place, context=length, **options) for length in contexts]


def _quantization(
    bits: int | str | None, group: int, stored: Quantization | None, place: Machine
) -> Quantization:
    dtype = 2 if place.gpu else 4
    if bits is None:
        if stored is not None and place.gpu:
            return replace(stored, dtype_bytes=dtype)
        return Quantization(8 * dtype)
    text = str(bits).lower()
    if text.endswith("bpw"):
        return Quantization(dtype_bytes=dtype, budget=parse_level(text).budget)
    if text not in BITS:
        raise ConfigError(f"bits is {bits!r}; expected one of {', '.join(BITS)}, or such as 4.5bpw")
    if text.isdigit():
        return Quantization(int(text), group, dtype_bytes=dtype)
    mode: Any = text
    return Quantization(mode=mode, dtype_bytes=dtype)


def _training(
    shape: ModelShape, lora: LoraPlan, place: Machine, kept: Quantization, trainable: int
) -> Training:
    ceiling, expected = training_speed(shape, lora, place, kept.dtype_bytes)
    return Training(lora, trainable, expected, ceiling)


def _notes(
    shape: ModelShape,
    place: Machine,
    kept: Quantization,
    context: int,
    lora: LoraPlan | None,
) -> tuple[str, ...]:
    notes = []
    if not place.gpu and kept.bits != 32:
        notes.append("MLX computes with float32 only at this speed on a CPU; the rest is slower")
    if lora is None and shape.context is not None and context > shape.context:
        notes.append(
            f"a context of {context:,} is over the {shape.context:,} that the model was made for"
        )
    if place.gpu and lora is not None and not lora.checkpoint:
        notes.append("checkpoint=true takes less memory and half as much time again")
    return tuple(notes)


def _training_json(training: Training) -> dict[str, Any]:
    own = {k: v for k, v in vars(training).items() if k != "lora"}
    return own | vars(training.lora)
