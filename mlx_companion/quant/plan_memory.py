"""Bytes of a run: what stays, and what comes on top of it for a moment.

    weights       as they are kept, scales of quantized ones included
    cache         keys and values of every position, in steps of 256 as mlx-lm allocates it
    generation    a chunk of the prompt on its way through one layer, and logits
    training      adapters, gradients, optimizer states, what the backward pass needs of each
                  layer, one layer's backward pass, and chunks of logits

Training is that of this package's trainer: a frozen base, LoRA on all projections or those that
are named, cross-entropy in chunks (`kernels.linear_cross_entropy`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mlx_companion.errors import ConfigError
from mlx_companion.kernels.linear_cross_entropy import chunk_rows
from mlx_companion.quant.plan_machines import Machine
from mlx_companion.quant.plan_shapes import Attention, Matrix, ModelShape

OptimizerName = Literal["adamw", "adamw8bit"]

CACHE_STEP = 256
PREFILL_CHUNK = 2048
KV_GROUP = 64
# What the default targets of `LoraConfig` name.
_TARGETS = (
    "q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "gate_proj", "up_proj", "down_proj",
    "gate_up_proj", "dense", "fc1", "fc2",
)  # fmt: skip
_STATE_BYTES = {"adamw": 8.0, "adamw8bit": 2.2}
_ACCELERATOR_LOGITS = 2**25
# Arrays of the size of attention's scores that exist at a time where an exponential is a
# polynomial of plain operations (`kernels.fast_math`); counted on a CPU.
_SCORES_FORWARD, _SCORES_BACKWARD = 7, 9


@dataclass(frozen=True)
class LoraPlan:
    """A LoRA run, as far as memory and time depend on it.

    Args:
        rank: of all adapters.
        batch: rows of a micro-batch.
        length: tokens of a row.
        layers: only the last so many; None for all.
        targets: names of the adapted layers.
        checkpoint: layers are computed again in the backward pass.
        optimizer: "adamw", or "adamw8bit" with a quarter of the state.

    Raises:
        ConfigError: a value outside its range.
    """

    rank: int = 8
    batch: int = 4
    length: int = 512
    layers: int | None = None
    targets: tuple[str, ...] = _TARGETS
    checkpoint: bool = False
    optimizer: OptimizerName = "adamw"

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", tuple(self.targets))
        for name in ("rank", "batch", "length", "layers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value!r}; expected 1 or more")
        if self.optimizer not in _STATE_BYTES:
            known = ", ".join(_STATE_BYTES)
            raise ConfigError(f"optimizer is {self.optimizer!r}; expected one of {known}")

    @property
    def tokens(self) -> int:
        """Of a micro-batch."""
        return self.batch * self.length


def cache_bytes(shape: ModelShape, context: int, kv_bits: int = 16, rows: int = 1) -> int:
    """Bytes of the key-value cache.

    Args:
        shape: of the model.
        context: positions in it.
        kv_bits: of keys and values: 16 or 32, or 8 or 4 in groups of 64 with 16-bit scales.
        rows: texts at a time.

    Raises:
        ConfigError: other bits.
    """
    return round(sum(_layer_cache(a, context, kv_bits) for a in shape.attention) * rows)


def _layer_cache(attention: Attention, context: int, kv_bits: int) -> float:
    steps = -(-context // CACHE_STEP) * CACHE_STEP
    positions = steps if attention.window is None else min(steps, attention.window)
    return positions * attention.cached * kv_value_bytes(kv_bits)


def kv_value_bytes(bits: int) -> float:
    """Bytes of one cached number. Raises ConfigError for bits that no cache has."""
    if bits in (16, 32):
        return bits / 8
    if bits in (2, 3, 4, 6, 8):
        return bits / 8 + 4 / KV_GROUP
    raise ConfigError(f"kv bits is {bits!r}; expected 2, 3, 4, 6, 8, 16 or 32")


def generation_bytes(shape: ModelShape, context: int, value: int, *, fused: bool) -> int:
    """What reading a prompt needs for a moment, over weights and cache.

    Args:
        shape: of the model.
        context: tokens of the prompt.
        value: bytes of a number.
        fused: attention does without a matrix of scores, as on Apple's GPUs.
    """
    chunk = min(context, PREFILL_CHUNK)
    first = shape.attention[0]
    narrow = first.kv_heads * (first.key_width + first.value_width)
    mixing = 2 * first.heads * first.key_width + narrow + 2 * shape.width
    feeding = (3 if shape.gated else 2) * max(shape.hidden) + 2 * shape.width
    if not fused:
        mixing += _SCORES_FORWARD * first.heads * first.positions(context)
    grown = narrow * first.positions(context)
    return value * (chunk * max(mixing, feeding) + grown + 2 * shape.vocabulary)


def adapter_values(shape: ModelShape, lora: LoraPlan) -> int:
    """Numbers in the adapters."""
    return sum(lora.rank * (m.rows + m.columns) for m in _targets(shape, lora))


def _targets(shape: ModelShape, lora: LoraPlan) -> list[Matrix]:
    first = shape.layers - min(lora.layers or shape.layers, shape.layers)
    found = [
        m
        for m in shape.matrices
        if m.role == "linear" and m.name in lora.targets and _layer_of(m.path) >= first
    ]
    if not found:
        named = ", ".join(lora.targets)
        raise ConfigError(f"{shape.name} has no linear layer called {named}; nothing to adapt")
    return found


def _layer_of(path: str) -> int:
    return next((int(part) for part in path.split(".") if part.isdigit()), -1)


def training_bytes(
    shape: ModelShape, lora: LoraPlan, machine: Machine, value: int
) -> dict[str, int]:
    """What LoRA training needs over the weights, part by part.

    Args:
        shape: of the model.
        lora: the run.
        machine: decides how attention is computed.
        value: bytes of an activation.
    """
    adapters = adapter_values(shape, lora)
    first = shape.layers - min(lora.layers or shape.layers, shape.layers)
    kept = [_kept(shape, i, lora, machine) for i in range(first, shape.layers)]
    again = len(kept) * shape.width * lora.tokens + max(kept)
    stored = again if lora.checkpoint else sum(kept)
    return {
        "adapters": 4 * adapters,
        "gradients": 4 * adapters,
        "optimizer": round(adapters * _STATE_BYTES[lora.optimizer]),
        "activations": value * stored,
        "backward": value * _passing(shape, lora, machine),
        "logits": _logit_bytes(shape, lora, machine),
    }


def _kept(shape: ModelShape, i: int, lora: LoraPlan, machine: Machine) -> int:
    """Numbers that the backward pass needs of one layer."""
    own = shape.attention[i]
    wide, narrow = own.heads * own.key_width, own.kv_heads * (own.key_width + own.value_width)
    # Both norms' inputs and outputs; q, k, v; attention's output by heads and by positions.
    mixing = 4 * shape.width + 3 * wide + narrow
    feeding = (3 if shape.gated else 2) * shape.hidden[i]
    scores = own.heads * lora.batch * lora.length**2 if machine.gpu else 0
    return lora.tokens * (mixing + feeding) + scores


def _passing(shape: ModelShape, lora: LoraPlan, machine: Machine) -> int:
    """Numbers that one layer's backward pass needs for a moment."""
    own = shape.attention[-1]
    feeding = lora.tokens * (4 * max(shape.hidden) + 2 * shape.width)
    each = 4 if machine.gpu else _SCORES_BACKWARD
    return max(feeding, each * own.heads * lora.batch * lora.length**2)


def _logit_bytes(shape: ModelShape, lora: LoraPlan, machine: Machine) -> int:
    rows = lora.tokens
    chunk = chunk_rows(shape.vocabulary, rows, *([_ACCELERATOR_LOGITS] if machine.gpu else []))
    # Logits of a chunk, their powers, and a gradient of all hidden states.
    return 4 * (2 * chunk * shape.vocabulary + rows * shape.width)
