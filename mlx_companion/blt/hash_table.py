"""The embedding table of hash n-grams: in memory, quantized, or left in its file.

The table holds most of a model's parameters (3.1 of the released "1B" model's 4.6 billion) and is
never multiplied, only gathered: G rows per byte. So it may be quantized with little loss, and a
file of it may stay on the disk, where the system reads the few pages that are touched. The three
classes answer the same call::

    table = HashEmbedding(rows, width)
    e = table(ids, config)                           # (B, N) -> (B, N, D), summed over G tables
    table = table.to_quantized(group_size=64, bits=8)          # or nn.quantize on the model
    table = MappedHashEmbedding("model.safetensors", "model.encoder_hash_tok_embedding.weight")
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_companion.blt.config import HashConfig
from mlx_companion.blt.hashing import hash_ids, hashed_by
from mlx_companion.errors import ModelNotFoundError, WeightsError
from mlx_companion.kernels.hash_embed import hash_embed
from mlx_companion.kernels.matrix import Matrix

# How safetensors names number types, as NumPy reads them; NumPy has no bfloat16.
_TYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "U32": "<u4"}
_HEADER_LIMIT = 100_000_000
# Up to so many gathered rows, the number of operations is what takes time.
_AT_ONCE = 1024


class HashEmbedding(nn.Module):
    """A table whose gathered rows are summed.

    Args:
        rows: of all tables together, see `HashConfig.rows`.
        width: D.

    `weight` is (rows, D); its name in weight files is `model.encoder_hash_tok_embedding.weight`.
    """

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.weight = mx.random.normal((rows, width)) * math.sqrt(1 / width)

    def __call__(
        self,
        ids: mx.array,
        config: HashConfig,
        documents: mx.array | None = None,
        *,
        last: int | None = None,
    ) -> mx.array:
        """The summed rows of the n-grams that end at each position: (B, N) int -> (B, N, D).

        Arguments as for `hashing.hash_ids`; with `last` (B, last, D).
        """
        return _embedded(self.matrix, ids, config, documents, last)

    @property
    def matrix(self) -> Matrix:
        """The table as the ops of `kernels` take it."""
        return Matrix(self.weight)

    def to_quantized(
        self, group_size: int | None = None, bits: int | None = None, mode: str = "affine"
    ) -> QuantizedHashEmbedding:
        """The same table in fewer bits; MLX's `nn.quantize` calls this.

        Args:
            group_size: values that share a scale; D must be a multiple.
            bits: per value.
            mode: of `mx.quantize`.
        """
        group_size, bits = _quantization(mode, group_size, bits)
        parts = mx.quantize(self.weight, group_size, bits, mode=mode)
        return QuantizedHashEmbedding(*parts, group_size=group_size, bits=bits, mode=mode)

    def _extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, {self.weight.shape[1]}"


class QuantizedHashEmbedding(nn.Module):
    """A quantized table: the gathered rows are dequantized, nothing else is.

    Args:
        weight, scales, biases: of `mx.quantize`; `biases` is None in modes without.
        group_size, bits, mode: of `mx.quantize`.
    """

    def __init__(
        self,
        weight: mx.array,
        scales: mx.array,
        biases: mx.array | None = None,
        *,
        group_size: int,
        bits: int,
        mode: str = "affine",
    ) -> None:
        super().__init__()
        self.group_size, self.bits, self.mode = group_size, bits, mode
        self.weight, self.scales = weight, scales
        if biases is not None:
            self.biases = biases
        self.freeze()

    def __call__(
        self,
        ids: mx.array,
        config: HashConfig,
        documents: mx.array | None = None,
        *,
        last: int | None = None,
    ) -> mx.array:
        """As `HashEmbedding`; there is no gradient of the table."""
        return _embedded(self.matrix, ids, config, documents, last)

    @property
    def matrix(self) -> Matrix:
        """The table as the ops of `kernels` take it."""
        parts = (self.weight, self.scales, self.get("biases"))
        return Matrix(*parts, self.group_size, self.bits, self.mode)

    def _extra_repr(self) -> str:
        rows, width = self.scales.shape[0], self.scales.shape[1] * self.group_size
        return f"{rows}, {width}, group_size={self.group_size}, bits={self.bits}, mode={self.mode}"


class MappedHashEmbedding(nn.Module):
    """A table that stays in its safetensors file; only the pages of gathered rows are read.

    It has no parameters, gives no gradient, and computes its ids on the spot, so it is for
    inference outside of `mx.compile`. The file must not be changed in place while it is in use.

    Args:
        path: the file.
        key: the tensor, (rows, D) in float32, float16 or bfloat16; or the packed `weight` of a
            quantized table, whose `scales` and `biases` lie beside it.
        group_size, bits: of a quantized table.

    Raises:
        ModelNotFoundError: there is no such file.
        WeightsError: the file is truncated, or has no such tensor of a type that is read here.
    """

    def __init__(
        self,
        path: str | Path,
        key: str,
        *,
        group_size: int | None = None,
        bits: int | None = None,
    ) -> None:
        super().__init__()
        self.path, self.key = Path(path), key
        self.group_size, self.bits = group_size, bits
        tensors = _MappedFile(self.path)
        names = [key]
        if bits is not None:
            stem = key.removesuffix("weight")
            names += [stem + "scales", stem + "biases"]
        # A tuple of NumPy arrays would be taken for parameters.
        self._parts = _Parts([tensors.open(name) for name in names])

    def __call__(
        self,
        ids: mx.array,
        config: HashConfig,
        documents: mx.array | None = None,
        *,
        last: int | None = None,
    ) -> mx.array:
        """As `HashEmbedding`; the rows are computed and read at once."""
        rows = hash_ids(ids, config, documents, last=last)
        if not rows.size:
            return mx.zeros((*rows.shape[1:], self.width))
        return _summed(self._rows, rows)

    @property
    def width(self) -> int:
        """D."""
        columns = self._parts.arrays[-1][0].shape[1]
        return columns * self.group_size if self.bits is not None else columns

    def _rows(self, ids: mx.array) -> mx.array:
        parts = self._parts.gather(np.array(ids))
        if self.bits is None:
            return parts[0]
        weight, scales, biases = parts
        return mx.dequantize(weight, scales, biases, group_size=self.group_size, bits=self.bits)

    def _extra_repr(self) -> str:
        return f"{self._parts.arrays[0][0].shape[0]}, {self.width}, {self.path.name}:{self.key}"


class _Parts:
    """Mapped tensors with the same rows: pairs of an array and its type's name in the file."""

    def __init__(self, arrays: list[tuple[np.ndarray, str]]) -> None:
        self.arrays = arrays

    def gather(self, rows: np.ndarray) -> list[mx.array]:
        gathered = [(mx.array(array[rows]), kind) for array, kind in self.arrays]
        return [rows.view(mx.bfloat16) if kind == "BF16" else rows for rows, kind in gathered]


class _MappedFile:
    """The tensors of a safetensors file: 8 bytes of header length, a JSON header, the data."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self.memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError as error:
            raise ModelNotFoundError(f"there is no file {path}") from error
        except (OSError, ValueError) as error:
            raise WeightsError(f"{path} cannot be mapped: {error}") from error
        if hasattr(mmap, "MADV_RANDOM"):
            # Otherwise each row that is touched would have its neighbours read in advance.
            self.memory.madvise(mmap.MADV_RANDOM)
        size = int.from_bytes(self.memory[:8], "little")
        if not 2 <= size <= min(len(self.memory) - 8, _HEADER_LIMIT):
            raise WeightsError(f"{path} is no safetensors file, or is truncated; fetch it again")
        self.start = 8 + size
        try:
            self.header = dict(json.loads(self.memory[8 : self.start]))
        except (TypeError, ValueError) as error:
            raise WeightsError(f"{path} has no readable safetensors header: {error}") from error

    def open(self, name: str) -> tuple[np.ndarray, str]:
        """A tensor (rows, columns) that is not read yet, and the name of its type."""
        entry = self.header.get(name)
        if entry is None:
            raise WeightsError(f"{self.path} has no tensor '{name}'; see its header for the names")
        kind, shape = entry["dtype"], entry["shape"]
        begin, end = (self.start + offset for offset in entry["data_offsets"])
        if kind not in _TYPES or len(shape) != 2:
            raise WeightsError(
                f"{self.path}: '{name}' is {kind} of shape {shape}; expected two dimensions of "
                f"{', '.join(_TYPES)}"
            )
        count = math.prod(shape)
        if end > len(self.memory) or end - begin != count * np.dtype(_TYPES[kind]).itemsize:
            raise WeightsError(f"{self.path} ends inside '{name}'; fetch it again")
        values = np.frombuffer(self.memory, _TYPES[kind], count, begin)
        return values.reshape(shape), kind


def _embedded(
    table: Matrix, ids: mx.array, config: HashConfig, documents: mx.array | None, last: int | None
) -> mx.array:
    return hash_embed(ids, table, **hashed_by(config), documents=documents, last=last)


def _summed(read: Callable[[mx.array], mx.array], rows: mx.array) -> mx.array:
    """Sum over the tables, in float32: `read` gives the rows (..., D) for ids (G, ...)."""
    if rows.size <= _AT_ONCE:
        found = read(rows)
        return found.astype(mx.float32).sum(axis=0).astype(found.dtype)
    found = read(rows[0])
    total = found.astype(mx.float32)
    for table in range(1, rows.shape[0]):
        total = total + read(rows[table])
        # Otherwise what was read of all tables would wait in memory.
        mx.eval(total)
    return total.astype(found.dtype)


def _quantization(mode: str, group_size: int | None, bits: int | None) -> tuple[int, int]:
    """MLX's defaults of a mode."""
    standard = {"affine": (64, 4), "mxfp4": (32, 4), "nvfp4": (16, 4), "mxfp8": (32, 8)}
    size, count = standard.get(mode, standard["affine"])
    return group_size or size, bits or count
