"""A smaller adapter out of a trained one: the best of a lower rank, in fewer bytes.

    report = shrink(model, rank=4, dtype="float16")
    report.worst.kept                    # share of that layer's update that is left, 0-1

A trained update rarely needs all of its rank: its product is factored again, and the smallest
singular values are left out, which is the best that the rank allows in every layer. Train with a
comfortable rank, then ship a small one; measure before and after, as `kept` is about weights and
not about answers.

Reference: Eckart & Young 1936 (truncated singular values are the best approximation).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_companion.errors import AdapterError
from mlx_companion.lora.attach import (
    attach,
    attached_config,
    detach,
    get_multiplier,
    load_parameters,
    require_adapters,
    set_multiplier,
)
from mlx_companion.lora.config import AdapterDtype


@dataclass(frozen=True)
class ShrunkLayer:
    """One layer: `kept` is the share of the update's sum of squares that is left, 0-1."""

    path: str
    kept: float


@dataclass(frozen=True)
class ShrinkReport:
    """What shrinking left, layer by layer."""

    layers: tuple[ShrunkLayer, ...]

    @property
    def worst(self) -> ShrunkLayer:
        """The layer that kept the least."""
        return min(self.layers, key=lambda layer: layer.kept)

    @property
    def kept(self) -> float:
        """Mean over layers."""
        return float(np.mean([layer.kept for layer in self.layers]))


def shrink(model: nn.Module, rank: int, *, dtype: AdapterDtype = "float32") -> ShrinkReport:
    """Replace the model's adapter by its best approximation of a lower rank.

    Args:
        model: carries an adapter of this package; changed in place.
        rank: of every layer afterwards; layers of a lower rank are filled up with zeros.
        dtype: what A and B are kept and saved in.

    Raises:
        AdapterError: no adapter, or one with DoRA, whose update is no product of low rank.
        ConfigError: the rank is under 1.
    """
    layers = require_adapters(model)
    config = attached_config(model)
    if config is None:
        raise AdapterError("the adapter was not attached by this package; import it first")
    if config.dora:
        raise AdapterError("an adapter with DoRA has no low rank to shrink; train one without")
    smaller = replace(
        config, rank=rank, alpha=float(rank), scaling="standard", init="kaiming",
        rank_pattern={}, alpha_pattern={}, dtype=dtype,
    )  # fmt: skip
    weights: dict[str, mx.array] = {}
    report = []
    for path, layer in layers.items():
        a, b = (np.array(part.astype(mx.float32), dtype=np.float64) for part in layer.factors())
        new_a, new_b, kept = _best(a * layer.scale, b, rank)
        weights |= {f"{path}.lora_a": mx.array(new_a), f"{path}.lora_b": mx.array(new_b)}
        report.append(ShrunkLayer(path, kept))
    multiplier = get_multiplier(model)
    detach(model)
    attach(model, smaller)
    load_parameters(model, weights)
    set_multiplier(model, multiplier)
    return ShrinkReport(tuple(report))


def _best(a: np.ndarray, b: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Factors (n, rank), (rank, m) nearest to a b, and the share of squares that they keep."""
    left, inner_left = np.linalg.qr(a)
    right, inner_right = np.linalg.qr(b.T)
    u, values, vt = np.linalg.svd(inner_left @ inner_right.T)
    count = min(rank, values.size)
    root = np.sqrt(values[:count])
    new_a, new_b = np.zeros((a.shape[0], rank)), np.zeros((rank, b.shape[1]))
    new_a[:, :count] = left @ u[:, :count] * root
    new_b[:count] = root[:, None] * (vt[:count] @ right.T)
    total = float((values**2).sum())
    kept = float((values[:count] ** 2).sum()) / total if total else 1.0
    return new_a.astype(np.float32), new_b.astype(np.float32), kept
