"""What a model is made of, as the planner sees it: matrices, vectors and attention, no weights.

A `ModelShape` comes from a configuration (`plan_families`) or from a module of mlx-lm whose arrays
are never computed (`plan_modules`). Everything that the planner says follows from it:

    shape = shape_of(config)
    shape.parameters, shape.weight_bytes(FLOAT16), shape.weight_bytes(Quantization(4))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mlx_companion.errors import ConfigError

Role = Literal["linear", "embedding", "head", "experts", "table"]
Mode = Literal["affine", "mxfp4", "mxfp8", "nvfp4"]

# Bits, values per group, and bytes of scale per group; affine groups have a bias as well.
_FLOAT_MODES: dict[str, tuple[int, int]] = {"mxfp4": (4, 32), "mxfp8": (8, 32), "nvfp4": (4, 16)}
AFFINE_BITS = (2, 3, 4, 5, 6, 8)
AFFINE_GROUPS = (32, 64, 128)
_FLOAT_BYTES = {16: 2, 32: 4}


@dataclass(frozen=True)
class Quantization:
    """How matrices are kept.

    Args:
        bits: per weight: 2, 3, 4, 5, 6 or 8, or 16 and 32 for plain numbers.
        group: weights that share a scale.
        mode: MLX's name of the format; its bits and groups are fixed unless "affine".
        dtype_bytes: of scales, and of what is not quantized (2 for 16 bits, 4 for 32).
        layers: other settings of some layers by their paths, as mlx-lm writes them into
            `config.json`; False for a layer that is left alone.
        budget: mean bits per weight, scales included, where `quantize` deals them out; `bits` and
            `group` then mean nothing.

    Raises:
        ConfigError: a format that MLX does not have.
    """

    bits: int = 4
    group: int = 64
    mode: Mode = "affine"
    dtype_bytes: int = 2
    layers: Mapping[str, Any] = field(default_factory=dict)
    budget: float | None = None

    def __post_init__(self) -> None:
        if self.mode in _FLOAT_MODES:
            bits, group = _FLOAT_MODES[self.mode]
            object.__setattr__(self, "bits", bits)
            object.__setattr__(self, "group", group)
        elif self.mode != "affine":
            known = ", ".join(["affine", *_FLOAT_MODES])
            raise ConfigError(f"quantization mode is {self.mode!r}; expected one of {known}")
        if self.bits in _FLOAT_BYTES:
            object.__setattr__(self, "dtype_bytes", _FLOAT_BYTES[self.bits])
        elif self.mode == "affine" and self.bits not in AFFINE_BITS:
            raise ConfigError(
                f"bits is {self.bits!r}; expected 2, 3, 4, 5, 6, 8, 16 or 32, or the name of a "
                "format: mxfp4, mxfp8, nvfp4"
            )
        if self.packs and self.mode == "affine" and self.group not in AFFINE_GROUPS:
            raise ConfigError(f"group size is {self.group!r}; expected 32, 64 or 128")

    @property
    def packs(self) -> bool:
        """False for plain numbers."""
        return self.bits not in _FLOAT_BYTES

    @property
    def name(self) -> str:
        """Such as "4 bits in groups of 64"."""
        if not self.packs:
            return f"float{self.bits}"
        if self.budget is not None:
            return f"{self.budget:g} bits per weight"
        mixed = ", mixed" if self.layers else ""
        if self.mode != "affine":
            return self.mode + mixed
        return f"{self.bits} bits in groups of {self.group}{mixed}"

    def of_layer(self, path: str) -> Quantization | None:
        """The settings of one layer; None where it is left alone."""
        own = self.layers.get(path, True)
        if own is False:
            return None
        if own is True:
            return self
        if not isinstance(own, Mapping):
            raise ConfigError(f"quantization of {path} is {own!r}; expected settings, or false")
        return from_config(own, self.dtype_bytes)

    def matrix_bytes(self, matrix: Matrix) -> int:
        """Bytes of a matrix, scales included, biases of linear layers not."""
        if self.budget is not None and matrix.packable:
            return round(matrix.values * self.budget / 8)
        own = self.of_layer(matrix.path)
        plain = matrix.values * self.dtype_bytes
        if own is None or not own.packs or not matrix.packable or matrix.columns % own.group:
            return plain
        scale = 1 if own.mode != "affine" else 2 * self.dtype_bytes
        return matrix.values * own.bits // 8 + matrix.values // own.group * scale


def from_config(values: Mapping[str, Any], dtype_bytes: int = 2) -> Quantization:
    """The "quantization" entry of a `config.json` of mlx-lm.

    Raises:
        ConfigError: a format that MLX does not have.
    """
    bits, group = values.get("bits", 4), values.get("group_size", 64)
    if not isinstance(bits, int) or not isinstance(group, int):
        raise ConfigError(
            f"quantization says bits {bits!r}, group_size {group!r}; expected numbers"
        )
    return Quantization(
        bits,
        group,
        values.get("mode", "affine"),
        dtype_bytes,
        {k: v for k, v in values.items() if k not in ("bits", "group_size", "mode")},
    )


@dataclass(frozen=True)
class Matrix:
    """One matrix, or the stack of the same matrix of several experts.

    Args:
        path: of its layer, as mlx-lm names it.
        rows, columns: outputs and inputs, of one expert.
        role: "embedding" and "table" are looked up; a tied embedding is also the head.
        experts: how many are stacked.
        share: part of it that one token reads.
        packable: whether quantizing changes it.
    """

    path: str
    rows: int
    columns: int
    role: Role = "linear"
    experts: int = 1
    share: float = 1.0
    packable: bool = True

    @property
    def values(self) -> int:
        """Numbers in it."""
        return self.experts * self.rows * self.columns

    @property
    def name(self) -> str:
        """The last part of its path, which adapters' targets name."""
        return self.path.rpartition(".")[2]


@dataclass(frozen=True)
class Attention:
    """Attention of one layer.

    Args:
        heads: of queries.
        kv_heads: of keys and values.
        key_width, value_width: of a head.
        window: positions that are kept; None for all.
    """

    heads: int
    kv_heads: int
    key_width: int
    value_width: int
    window: int | None = None

    @property
    def cached(self) -> int:
        """Numbers that one position adds to the cache."""
        return self.kv_heads * (self.key_width + self.value_width)

    def positions(self, context: int) -> int:
        """Positions that are kept of so many."""
        return context if self.window is None else min(context, self.window)


@dataclass(frozen=True)
class ModelShape:
    """A model without its weights.

    Args:
        name: what it is called.
        family: `model_type`.
        width: D.
        vocabulary: V.
        matrices: all of them.
        vector_values: numbers in norms and biases.
        attention: one per layer.
        hidden: width of each layer's feed-forward as one token sees it.
        gated: whether that is two matrices and a product (SwiGLU).
        context: most positions that it was made for; None where the configuration does not say.
        generates: False for an encoder.
        unit: what a position is.
    """

    name: str
    family: str
    width: int
    vocabulary: int
    matrices: tuple[Matrix, ...]
    vector_values: int
    attention: tuple[Attention, ...]
    hidden: tuple[int, ...]
    gated: bool = True
    context: int | None = None
    generates: bool = True
    unit: Literal["token", "byte"] = "token"

    @property
    def layers(self) -> int:
        """Transformer layers."""
        return len(self.attention)

    @property
    def parameters(self) -> int:
        """Numbers in all weights."""
        return sum(matrix.values for matrix in self.matrices) + self.vector_values

    @property
    def active_parameters(self) -> int:
        """Numbers that one token is multiplied with; looking up a row of a table is not that."""
        return round(sum(m.values * m.share for m in self.matrices)) + self.vector_values

    def weight_bytes(self, quantization: Quantization) -> int:
        """Bytes of all weights."""
        packed = sum(quantization.matrix_bytes(matrix) for matrix in self.matrices)
        return packed + self.vector_values * quantization.dtype_bytes

    def read_bytes(self, quantization: Quantization) -> int:
        """Bytes of weights that making one token reads."""
        packed = sum(quantization.matrix_bytes(matrix) * matrix.share for matrix in self.matrices)
        return round(packed) + self.vector_values * quantization.dtype_bytes

    def bits_per_weight(self, quantization: Quantization) -> float:
        """Mean over all weights, scales included."""
        return 8 * self.weight_bytes(quantization) / self.parameters
