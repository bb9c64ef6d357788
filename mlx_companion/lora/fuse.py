"""Fold adapters into the base weights, and measure how much of each survived.

Rounding can lose an adapter: a 4-bit grid is coarser than most fine-tuning updates, so adding one
and quantizing again mostly restores the old weights (cosine between what was added and what
remains: 0.05 for an update of 1 % of the weights' spread). `fuse` therefore computes that cosine
for every layer before it changes any, and does as asked where it is too low:

    report = fuse(model)                          # refuses, and changes nothing
    report = fuse(model, lost="raise_bits")       # those layers get 8 bits, or floats
    report = fuse(model, lost="keep")             # those layers keep their adapter beside them
    print(report.table())
    save_config(report.updated_config(config), folder / "config.json")    # bits per layer
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

import mlx.core as mx
import mlx.nn as nn

from mlx_companion.errors import AdapterError, ConfigError
from mlx_companion.lora.attach import (
    Attachment,
    replace_modules,
    require_adapters,
    restore_trainable,
)
from mlx_companion.lora.layers import (
    QUANTIZED_TYPES,
    Adapter,
    LoRAEmbedding,
    dense_weight,
    float_dtype,
    linear_shape,
)
from mlx_companion.lora.report import FusedLayer, FuseReport

Lost = Literal["refuse", "raise_bits", "keep"]

MIN_COSINE = 0.9
_MORE_BITS = 8


class _Form(NamedTuple):
    """How a fused weight is kept: quantized when it has bits."""

    dtype: mx.Dtype
    bits: int | None = None
    group_size: int | None = None
    mode: str = "affine"


@dataclass(frozen=True)
class _Plan:
    """What becomes of one layer: a form, or None to leave the adapter beside it."""

    form: _Form | None
    cosine: float
    norm_ratio: float


def fuse(
    model: nn.Module,
    *,
    dequantize: bool = False,
    min_cosine: float = MIN_COSINE,
    lost: Lost = "refuse",
) -> FuseReport:
    """Replace every adapted layer by a plain one with the update in its weights.

    Args:
        model: carries adapters; changed in place, or not at all when an error is raised.
        dequantize: turn quantized layers into float ones first (more memory, nothing lost), and
            half-precision ones into float32 where they would lose too much.
        min_cosine: least cosine allowed between the update meant and the one realised.
        lost: what to do with a layer below that: "refuse" to fuse anything; "raise_bits" gives it
            8 bits, then the float type of the base, then float32, whichever is the first to
            suffice; "keep" leaves it as it is, with its adapter, which `save_adapter` and
            `detach` then find alone.

    Returns:
        Cosine, norm and form of every layer.

    Raises:
        AdapterError: no adapter is attached, a layer would keep too little of its update, or an
            adapter acts on one use of a tied embedding only.
        ConfigError: `lost` is none of the three.
    """
    if lost not in get_args(Lost):
        raise ConfigError(f"lost must be one of {', '.join(get_args(Lost))}, got {lost!r}")
    layers = require_adapters(model)
    # Measured first and fused in a second pass, so that a refusal changes nothing and the
    # memory of only one layer is needed at a time.
    plans = {path: _plan(layer, dequantize, min_cosine, lost) for path, layer in layers.items()}
    report = FuseReport(tuple(_line(p, layers[p], plan) for p, plan in plans.items()))
    _refuse(layers, plans, min_cosine, lost)
    for path, layer in layers.items():
        form = plans[path].form
        if form is not None:
            replace_modules(model, {path: _fused(layer, form)})
    _leave_attached(model, [path for path, plan in plans.items() if plan.form is None])
    return report


def _plan(layer: Adapter, dequantize: bool, min_cosine: float, lost: Lost) -> _Plan:
    """The first form that keeps enough; else the last one tried, or the adapter beside."""
    if isinstance(layer, LoRAEmbedding) and layer.use != "both":
        return _Plan(None, 0.0, 0.0)
    delta, before = layer.delta(), dense_weight(layer.base)
    plans = []
    for form in _forms(layer, dequantize, lost):
        fused = dense_weight(_fused(layer, form, before + delta))
        plans.append(_Plan(form, *_kept(fused - before, delta)))
        # Written so that NaN counts as lost.
        if plans[-1].cosine >= min_cosine:
            return plans[-1]
    return replace(plans[0], form=None) if lost == "keep" else plans[-1]


def _forms(layer: Adapter, dequantize: bool, lost: Lost) -> list[_Form]:
    """The forms to try, in the order in which they are preferred."""
    base, dtype = layer.base, float_dtype(layer.base)
    floats = [_Form(dtype)] + ([_Form(mx.float32)] if dtype != mx.float32 else [])
    if not isinstance(base, QUANTIZED_TYPES):
        return floats if dequantize or lost == "raise_bits" else floats[:1]
    if dequantize:
        return floats
    same = _Form(dtype, base.bits, base.group_size, base.mode)
    return [same, *_more_bits(layer, same), *floats] if lost == "raise_bits" else [same]


def _more_bits(layer: Adapter, form: _Form) -> list[_Form]:
    group_size = form.group_size if form.mode == "affine" else 32
    fits = group_size and linear_shape(layer.base)[1] % group_size == 0
    if not fits or (form.bits or 0) >= _MORE_BITS:
        return []
    return [_Form(form.dtype, _MORE_BITS, group_size)]


def _fused(layer: Adapter, form: _Form, weight: mx.array | None = None) -> nn.Module:
    """The plain layer that takes an adapted one's place."""
    base = layer.base
    if weight is None:
        weight = dense_weight(base) + layer.delta()
    # Built around a 1 x 1 layer: a full-size one would draw random weights to throw away.
    embedding = isinstance(layer, LoRAEmbedding)
    fused: Any = nn.Embedding(1, 1) if embedding else nn.Linear(1, 1, bias=False)
    fused.weight = weight.astype(form.dtype)
    if "bias" in base:
        fused.bias = base.bias
    if form.bits is not None:
        fused = fused.to_quantized(group_size=form.group_size, bits=form.bits, mode=form.mode)
    mx.eval(fused.parameters())
    fused.freeze()
    fused.train(base.training)
    return fused


def _line(path: str, layer: Adapter, plan: _Plan) -> FusedLayer:
    if plan.form is None:
        return FusedLayer(path, type(layer).__name__, plan.cosine, plan.norm_ratio, kept=True)
    kind = "Embedding" if isinstance(layer, LoRAEmbedding) else "Linear"
    form = plan.form
    return FusedLayer(
        path,
        kind if form.bits is None else f"Quantized{kind}",
        plan.cosine,
        plan.norm_ratio,
        bits=form.bits,
        group_size=form.group_size,
        mode=None if form.bits is None else form.mode,
        dtype=str(form.dtype).rpartition(".")[2],
        old_bits=getattr(layer.base, "bits", None),
    )


def _refuse(
    layers: dict[str, Adapter], plans: dict[str, _Plan], min_cosine: float, lost: Lost
) -> None:
    for path, layer in layers.items():
        use = getattr(layer, "use", "both")
        if use != "both" and lost != "keep":
            raise AdapterError(
                f"{path} is also the output head, but its adapter acts on the {use} alone, which "
                "one matrix cannot hold; keep it beside the model with lost='keep'"
            )
    low = {p: plan.cosine for p, plan in plans.items() if plan.form and plan.cosine < min_cosine}
    bad = [p for p, plan in plans.items() if plan.cosine != plan.cosine]
    if bad:
        raise AdapterError(f"the adapter of {bad[0]} holds values that are not finite; train again")
    if low:
        worst = min(low, key=lambda path: low[path])
        raise AdapterError(
            f"fusing would lose the adapter in {len(low)} of {len(layers)} layers: rounding leaves "
            f"a cosine of {low[worst]:.2f} to the update in {worst} (at least {min_cosine} is "
            "wanted); keep the adapter separate, pass lost='raise_bits' for more bits or "
            "lost='keep' for an adapter in these layers alone, or dequantize=True for float layers"
        )


def _kept(realised: mx.array, meant: mx.array) -> tuple[float, float]:
    """Cosine and ratio of norms of two updates; both 1 when there was nothing to add."""
    wanted, found = float(mx.linalg.norm(meant)), float(mx.linalg.norm(realised))
    if not wanted:
        return 1.0, 1.0
    if not found:
        return 0.0, 0.0
    return float(mx.sum(realised * meant)) / (wanted * found), found / wanted


def _leave_attached(model: nn.Module, kept: list[str]) -> None:
    """Forget the attachment, or narrow it to the layers that keep their adapter."""
    attachment: Attachment | None = getattr(model, "_lora_attachment", None)
    if not kept:
        restore_trainable(model)
    elif attachment is not None:
        config = replace(attachment.config, targets=tuple(kept), layers=None)
        model._lora_attachment = replace(attachment, config=config)
