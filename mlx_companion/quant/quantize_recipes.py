"""The ways to pack a whole model: mlx-lm's, and what is built from them here.

    packed = rounded_by_mlx(subject, plan)              # mlx-lm's quantize_model
    packed = awq(subject, Packing(4, 64), windows)      # mlx-lm's awq_quantize
    packed = gptq(subject, Packing(3, 64), windows)     # mlx-lm's gptq_quantize, any number of bits
    grids = fitted(subject, plan, seen)                 # each layer by its own packing

A plan says for each layer (by path) how it is packed, None for 16-bit numbers. Every recipe leaves
the subject's model alone and gives a twin.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.quant import awq as mlx_awq
from mlx_lm.quant import gptq as mlx_gptq
from mlx_lm.utils import quantize_model

from mlx_companion.errors import ConfigError
from mlx_companion.quant.levels import GROUPS, Packing, fitting
from mlx_companion.quant.quantize_grid import Array, Grid, nearest, pack_codes, with_feedback
from mlx_companion.quant.quantize_layers import (
    Seen,
    dense,
    grid_of,
    mode_layer,
    packable,
    packed_layer,
    packing_of,
    place,
    twin,
)
from mlx_companion.quant.quantize_mended import mended
from mlx_companion.quant.quantize_sensitivity import moment_of
from mlx_companion.quant.quantize_subjects import LanguageSubject, Subject

Plan = Mapping[str, Packing | None]


def uniform_plan(model: nn.Module, packing: Packing | None) -> dict[str, Packing | None]:
    """One packing for all layers, in smaller groups where widths need it."""
    return {
        path: None if packing is None else fitting(packing, layer.weight.shape[-1])
        for path, layer in packable(model).items()
    }


def rounded_by_mlx(subject: Subject, plan: Plan) -> nn.Module:
    """Packed by mlx-lm's `quantize_model`.

    It tests widths against one group size for the whole model, so that a layer for which smaller
    groups were chosen stays unpacked without a word; it is given the smallest that there is.
    """
    model = twin(subject.model)
    with redirect_stdout(StringIO()):
        modes = {p.mode for p in plan.values() if p is not None}
        if modes <= {"affine"}:
            quantize_model(model, {}, min(GROUPS), 4, quant_predicate=_predicate(plan))
        else:
            nn.quantize(model, class_predicate=_predicate(plan))
    return model


def _predicate(plan: Plan) -> Callable[[str, nn.Module], bool | dict[str, Any]]:
    def choose(path: str, _: nn.Module) -> bool | dict[str, Any]:
        packing = plan.get(path)
        return False if packing is None else packing.to_config()

    return choose


def awq(subject: Subject, packing: Packing, windows: mx.array) -> nn.Module:
    """Packed by mlx-lm's `awq_quantize`, embedding and head in the same packing.

    Args:
        subject: a language model of a family that mlx-lm has scales for.
        packing: affine.
        windows: calibration, (N, L) int.

    Raises:
        ConfigError: another kind of model, or layers that this packing does not divide.
    """
    family = _family(subject, "awq")
    settings = mlx_awq.AWQ_MODEL_CONFIGS.get(family)
    if settings is None:
        known = ", ".join(sorted(mlx_awq.AWQ_MODEL_CONFIGS))
        raise ConfigError(f"awq knows no scales of '{family}' models, only of {known}; use 'auto'")
    _check_widths(subject, packing, "awq")
    _check_unadapted(subject, "awq")
    model = twin(subject.model)
    size, bits = packing.group_size, packing.bits
    with mended(mlx_awq, model):
        mlx_awq.awq_quantize(
            model,
            windows,
            settings,
            group_size=size,
            bits=bits,
            embed_group_size=size,
            embed_bits=bits,
        )
    return model


def gptq(subject: Subject, packing: Packing, windows: mx.array) -> nn.Module:
    """Packed by mlx-lm's `gptq_quantize`; the embedding, which it only rounds, in the same packing.

    mlx-lm's stops at 3, 5 and 6 bits ("Unsupported bits"); our packing of codes is put in place of
    its own.

    Raises:
        ConfigError: not a language model, or layers that this packing does not divide.
    """
    _family(subject, "gptq")
    _check_widths(subject, packing, "gptq")
    model = twin(subject.model)
    size, bits = packing.group_size, packing.bits
    with mended(mlx_gptq, model, {"quantize": packed_words}):
        mlx_gptq.gptq_quantize(model, windows, bits, size, bits, size, batch_size=2)
    return model


def packed_words(w: mx.array, bits: int, scales: mx.array, biases: mx.array) -> mx.array:
    """In place of mlx-lm's `gptq.quantize`: any number of bits. Arguments and result as there."""
    groups = mx.unflatten(w, -1, (scales.shape[-1], -1))
    codes = mx.round((groups - biases[..., None]) / scales[..., None])
    codes = mx.clip(codes, 0, 2**bits - 1).astype(mx.uint8).flatten(-2, -1)
    shape = codes.shape[:-1]
    found = pack_codes(np.array(codes.reshape(-1, codes.shape[-1])), bits)
    return mx.array(found).reshape(*shape, -1)


def fitted(
    subject: Subject,
    plan: Plan,
    seen: Seen | None,
    *,
    feedback: bool = True,
    dtype: mx.Dtype = mx.float16,
    say: Callable[[str], Any] = lambda text: None,
) -> dict[str, Grid]:
    """Grids of all layers that the plan packs in affine form; layers that are packed so stay so.

    Args:
        subject: the model.
        plan: packings by path.
        seen: inputs of the layers; without, errors in all columns count the same.
        feedback: round with error feedback where inputs are known.
        dtype: of scales and biases.
        say: called with each path.
    """
    grids, given = {}, packable(subject.module)
    for path, layer in packable(subject.model).items():
        packing = plan[path]
        if packing is None or packing.mode != "affine":
            continue
        say(path)
        own = grid_of(given[path]) if packing_of(given[path]) == packing else None
        grids[path] = own or fitted_grid(
            dense(layer), packing, moment_of(seen, path, layer), feedback, dtype
        )
    return grids


def fitted_grid(
    weight: Array,
    packing: Packing,
    moment: Array | None,
    feedback: bool,
    dtype: mx.Dtype = mx.float16,
) -> Grid:
    """The grid of one layer. Arguments as of `fitted`."""
    if moment is None:
        return nearest(weight, packing, dtype=dtype)
    if feedback:
        return with_feedback(weight, packing, moment, dtype)
    return nearest(weight, packing, np.diag(moment).copy(), dtype=dtype)


def with_grids(
    subject: Subject, plan: Plan, grids: Mapping[str, Grid], dtype: mx.Dtype = mx.float16
) -> nn.Module:
    """The model packed as the plan says, affine layers with the values of the grids."""
    model = twin(subject.model)
    for path, layer in packable(model).items():
        packing = plan[path]
        if packing is None:
            continue
        if packing.mode == "affine":
            place(model, path, packed_layer(layer, grids[path], dtype))
        else:
            place(model, path, mode_layer(layer, packing))
    return model


def _family(subject: Subject, method: str) -> str:
    if not isinstance(subject, LanguageSubject):
        raise ConfigError(f"{method} is for language models; use method 'auto' or 'rtn' here")
    return str(subject.lm.config.get("model_type"))


def _check_widths(subject: Subject, packing: Packing, method: str) -> None:
    if packing.mode != "affine":
        raise ConfigError(f"{method} has no {packing.mode}; use method 'rtn' or 'auto'")
    for path, layer in packable(subject.model).items():
        if not packing.fits(layer.weight.shape[-1]):
            raise ConfigError(
                f"{method} has one group size for all layers, and {packing.group_size} does not "
                f"divide the {layer.weight.shape[-1]} inputs of {path}; give group_size=32, or "
                "use method 'auto'"
            )


def _check_unadapted(subject: Subject, method: str) -> None:
    paths = packable(subject.model)
    if any(path.endswith((".base", ".linear")) for path in paths):
        raise ConfigError(f"{method} moves scales between layers, which an adapter would not "
                          "follow; detach the adapter, or use method 'auto'")  # fmt: skip
