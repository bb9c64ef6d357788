"""Fold adapters into the base weights, and measure whether they survived.

Rounding can lose an adapter: a 4-bit grid is coarser than most fine-tuning updates, so
adding one and quantizing again mostly restores the old weights (cosine between what was
added and what remains: 0.05 for an update of 1 % of the weights' spread). `fuse` therefore
computes that cosine for every layer before it changes any.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_companion.errors import AdapterError
from mlx_companion.lora.attach import replace_modules, require_adapters, restore_trainable
from mlx_companion.lora.layers import Adapter as LoRALinear

MIN_COSINE = 0.9


@dataclass(frozen=True)
class FusedLayer:
    """One fused layer: its path, what it became, and the cosine of its realised update."""

    path: str
    kind: str
    cosine: float


@dataclass(frozen=True)
class FuseReport:
    """What fusing did, layer by layer."""

    layers: tuple[FusedLayer, ...]

    @property
    def worst(self) -> FusedLayer:
        """The layer that kept the least of its update."""
        return min(self.layers, key=lambda layer: layer.cosine)


def fuse(
    model: nn.Module, *, dequantize: bool = False, min_cosine: float = MIN_COSINE
) -> FuseReport:
    """Replace every adapted layer by a plain one with the update in its weights.

    Args:
        model: carries adapters; changed in place, or not at all when an error is raised.
        dequantize: turn quantized layers into float ones first (more memory, nothing lost), and
            half-precision ones into float32 where they would lose too much.
        min_cosine: least cosine allowed between the update meant and the one realised.

    Returns:
        The cosine of every layer.

    Raises:
        AdapterError: no adapter is attached, or a layer would keep too little of its update.
    """
    layers = require_adapters(model)
    # Measured first and fused in a second pass, so that a refusal changes nothing and the
    # memory of only one layer is needed at a time.
    report = FuseReport(
        tuple(_measured(path, layer, dequantize, min_cosine) for path, layer in layers.items())
    )
    if report.worst.cosine < min_cosine:
        lost = sum(layer.cosine < min_cosine for layer in report.layers)
        raise AdapterError(
            f"fusing would lose the adapter in {lost} of {len(layers)} layers: rounding leaves "
            f"a cosine of {report.worst.cosine:.2f} to the update in {report.worst.path} "
            f"(at least {min_cosine} is wanted); keep the adapter separate, or pass "
            "dequantize=True to get float layers"
        )
    for path, layer in layers.items():
        replace_modules(model, {path: _fused(layer, dequantize, min_cosine)[0]})
    restore_trainable(model)
    return report


def _measured(path: str, layer: LoRALinear, dequantize: bool, min_cosine: float) -> FusedLayer:
    fused, cosine = _fused(layer, dequantize, min_cosine)
    return FusedLayer(path, type(fused).__name__, cosine)


def _fused(layer: LoRALinear, dequantize: bool, min_cosine: float) -> tuple[nn.Module, float]:
    """The plain layer that takes an adapted one's place, and the cosine of its update."""
    base, delta = layer.base, layer.delta()
    before = _float_weight(base)
    if isinstance(base, nn.QuantizedLinear) and not dequantize:
        fused = nn.QuantizedLinear.from_linear(
            _linear(before + delta, base, base.scales.dtype),
            group_size=base.group_size,
            bits=base.bits,
            mode=base.mode,
        )
        return fused, _cosine(_float_weight(fused) - before, delta)
    fused = _linear(before + delta, base, _dtype(base))
    cosine = _cosine(_float_weight(fused) - before, delta)
    if dequantize and cosine < min_cosine:
        # bfloat16 has 8 bits of mantissa: too coarse for small updates as well.
        fused = _linear(before + delta, base, mx.float32)
        cosine = _cosine(_float_weight(fused) - before, delta)
    return fused, cosine


def _linear(weight: mx.array, base: nn.Module, dtype: mx.Dtype) -> nn.Linear:
    # Built around a 1 x 1 layer: a full-size one would draw random weights to throw away.
    linear = nn.Linear(1, 1, bias=False)
    linear.weight = weight.astype(dtype)
    if "bias" in base:
        linear.bias = base.bias
    mx.eval(linear.parameters())
    linear.freeze()
    linear.train(base.training)
    return linear


def _dtype(base: nn.Module) -> mx.Dtype:
    quantized = isinstance(base, nn.QuantizedLinear)
    dtype = base.scales.dtype if quantized else base.weight.dtype
    return dtype if mx.issubdtype(dtype, mx.floating) else mx.float32


def _float_weight(layer: nn.Module) -> mx.array:
    if not isinstance(layer, nn.QuantizedLinear):
        return layer.weight.astype(mx.float32)
    weight = mx.dequantize(
        layer.weight,
        layer.scales,
        layer.get("biases"),
        group_size=layer.group_size,
        bits=layer.bits,
        mode=layer.mode,
    )
    return weight.astype(mx.float32)


def _cosine(realised: mx.array, meant: mx.array) -> float:
    """Cosine of two updates; 1 when there was nothing to add."""
    wanted, found = mx.linalg.norm(meant), mx.linalg.norm(realised)
    if not wanted.item():
        return 1.0
    if not found.item():
        return 0.0
    cosine: Any = (mx.sum(realised * meant) / (wanted * found)).item()
    return float(cosine)
