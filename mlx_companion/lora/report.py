"""What fusing did: one line per layer, as a table, and as a configuration that loads again."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class FusedLayer:
    """One layer of a `FuseReport`.

    Attributes:
        path: where it is in the model.
        kind: the class that it has now.
        cosine: between the update that was meant and the one that the new weight realises; of a
            kept layer, what fusing would have left.
        norm_ratio: size of the realised update over that of the one meant.
        bits, group_size, mode: of a quantized layer; None of a float one.
        dtype: number type of the weight, or of its scales.
        old_bits: what it had before; None of a float one.
        kept: not fused: the adapter is still there.
    """

    path: str
    kind: str
    cosine: float
    norm_ratio: float = 1.0
    bits: int | None = None
    group_size: int | None = None
    mode: str | None = None
    dtype: str = "float32"
    old_bits: int | None = None
    kept: bool = False

    @property
    def changed_bits(self) -> bool:
        """Whether the layer has another number of bits than before."""
        return not self.kept and self.bits != self.old_bits


@dataclass(frozen=True)
class FuseReport:
    """What fusing did, layer by layer."""

    layers: tuple[FusedLayer, ...]

    @property
    def worst(self) -> FusedLayer:
        """The fused layer that kept the least of its update (of all, when none was fused)."""
        fused = [layer for layer in self.layers if not layer.kept]
        return min(fused or self.layers, key=lambda layer: layer.cosine)

    @property
    def kept(self) -> tuple[str, ...]:
        """Paths of the layers whose adapter is still beside the model."""
        return tuple(layer.path for layer in self.layers if layer.kept)

    def table(self) -> str:
        """One line per layer, widths aligned."""
        head = ("layer", "bits", "cosine", "norm", "")
        rows = [head, *(_cells(layer) for layer in self.layers)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
        lines = [
            "  ".join(
                cell.ljust(width) if column in (0, 4) else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        return "\n".join(lines)

    def updated_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """A model's `config.json` with the bits that its layers have now, as mlx-lm reads them.

        Args:
            config: the configuration that the model was loaded with; not changed.

        Returns:
            The same with an entry under "quantization" for each layer whose bits were changed:
            its own settings, or False for a float layer.
        """
        new = copy.deepcopy(dict(config))
        quantization = new.get("quantization")
        if not isinstance(quantization, dict):
            return new
        for layer in self.layers:
            if layer.changed_bits:
                quantization[layer.path] = _settings(layer)
        new["quantization_config"] = quantization
        return new


def _settings(layer: FusedLayer) -> dict[str, Any] | bool:
    if layer.bits is None:
        return False
    return {"group_size": layer.group_size, "bits": layer.bits, "mode": layer.mode}


def _cells(layer: FusedLayer) -> tuple[str, str, str, str, str]:
    bits = str(layer.bits or layer.dtype)
    if layer.changed_bits:
        bits = f"{layer.old_bits} -> {bits}"
    note = "adapter kept" if layer.kept else ""
    return (
        layer.path,
        "" if layer.kept else bits,
        f"{layer.cosine:.4f}",
        f"{layer.norm_ratio:.3f}",
        note,
    )
