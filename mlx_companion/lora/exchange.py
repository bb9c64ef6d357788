"""What reading and writing other programs' adapters has in common: parts, names, configs.

Whatever the format, an adapter is a `Part` per layer: A and B in this package's layout, a magnitude
where it is DoRA, and what the product is multiplied by. `config_for` finds the shortest config that
gives these layers these ranks and strengths, and `install` puts the parts on a model.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_companion.errors import AdapterError
from mlx_companion.lora.attach import (
    attach_layers,
    attached_config,
    check_shapes,
    detach,
    expected_shapes,
    load_stored,
    require_adapters,
)
from mlx_companion.lora.config import LoraConfig, TiedUse
from mlx_companion.lora.layers import LoRAEmbedding
from mlx_companion.lora.targets import base_layers, match_targets, tied_embedding

_CLOSE = 1e-6


@dataclass(frozen=True)
class Part:
    """The adapter of one layer.

    Attributes:
        a, b: (inputs, r) and (r, outputs).
        scale: what their product is multiplied by, multiplier included.
        magnitude: DoRA's, (outputs,).
        embedding: whether the layer is one.
        use: of an embedding that is also the head, see `LoraConfig.tied`.
    """

    a: mx.array
    b: mx.array
    scale: float
    magnitude: mx.array | None = None
    embedding: bool = False
    use: TiedUse = "both"

    @property
    def rank(self) -> int:
        return int(self.a.shape[1])


def parts_of(model: nn.Module) -> dict[str, Part]:
    """The adapters on a model, PiSSA's as plain ones of twice the rank, by path.

    Raises:
        AdapterError: there is none, or a DoRA adapter is at another strength than 1.
    """
    tied = tied_embedding(model)
    parts = {}
    for path, layer in require_adapters(model).items():
        if layer.dora and layer.multiplier != 1:
            raise AdapterError(
                f"the multiplier is {layer.multiplier}, which other programs cannot tell a DoRA "
                "adapter; set_multiplier(model, 1) first"
            )
        a, b = layer.factors()
        embedding = isinstance(layer, LoRAEmbedding)
        parts[path] = Part(
            a.astype(mx.float32),
            b.astype(mx.float32),
            layer.scale * layer.multiplier,
            layer.lora_m.astype(mx.float32) if layer.dora else None,
            embedding,
            layer.use if path == tied and isinstance(layer, LoRAEmbedding) else "both",
        )
    return parts


def install(model: nn.Module, parts: Mapping[str, Part], hints: LoraConfig) -> LoraConfig:
    """Put parts on a model, in place of adapters that it carries; nothing changes on an error.

    Args:
        model: the base model.
        parts: by path.
        hints: what the other program said; patterns that are not true are replaced.

    Returns:
        The config that they are attached with.

    Raises:
        AdapterError: a tensor does not fit the model.
    """
    uses = {part.use for part in parts.values() if part.use != "both"}
    hints = replace(hints, tied=uses.pop() if uses else "both", init="kaiming")
    config = config_for(model, parts, hints)
    weights = {}
    for path, part in parts.items():
        weights[f"{path}.lora_a"], weights[f"{path}.lora_b"] = part.a, part.b
        if part.magnitude is not None:
            weights[f"{path}.lora_m"] = part.magnitude
    check_shapes(expected_shapes(model, config), weights)
    weights = {name: mx.contiguous(value) for name, value in weights.items()}
    mx.eval(weights)
    detach(model)
    attach_layers(model, config, decompose=False)
    load_stored(model, weights)
    return config


def config_for(model: nn.Module, parts: Mapping[str, Part], hints: LoraConfig) -> LoraConfig:
    """The config under which the parts' layers have their ranks and scales, short where it can be.

    Raises:
        AdapterError: a part is for no layer of the model.
    """
    layers = base_layers(model)
    for path in parts:
        if path not in layers:
            raise AdapterError(f"the adapter is for the layer {path}, which the model has not")
    leaves = tuple(sorted({path.rpartition(".")[2] for path in parts}))
    config = replace(hints, targets=leaves, layers=None)
    if set(match_targets(model, config)) != set(parts):
        config = replace(config, targets=tuple(parts))
    return config if _true(config, parts) else with_patterns(config, parts)


def with_patterns(config: LoraConfig, parts: Mapping[str, Part]) -> LoraConfig:
    """The config with the most common rank and alpha, and an entry for each layer that differs."""
    power = 0.5 if config.scaling == "rslora" else 1.0
    alphas = {path: _short(part.scale * part.rank**power) for path, part in parts.items()}
    rank = Counter(part.rank for part in parts.values()).most_common(1)[0][0]
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    return replace(
        config,
        rank=rank,
        alpha=alpha,
        rank_pattern={re.escape(p): part.rank for p, part in parts.items() if part.rank != rank},
        alpha_pattern={re.escape(p): value for p, value in alphas.items() if value != alpha},
    )


def plain_config(model: nn.Module, parts: Mapping[str, Part]) -> LoraConfig:
    """The config of the parts as plain adapters, with the patterns that the model's own has.

    Raises:
        AdapterError: an adapter is switched off or reversed, which no alpha says.
    """
    off = [path for path, part in parts.items() if part.scale <= 0]
    if off:
        raise AdapterError(
            f"the multiplier of {off[0]} is not over 0, so there is no alpha for it; "
            "set_multiplier(model, 1) first"
        )
    config = attached_config(model) or LoraConfig()
    first = next(iter(parts.values()))
    own = next(iter(require_adapters(model).values()))
    wider = first.rank // own.rank
    factor = own.multiplier * (math.sqrt(wider) if config.scaling == "rslora" else wider)
    plain = replace(
        config,
        init="kaiming",
        rank=config.rank * wider,
        alpha=config.alpha * factor,
        rank_pattern={pattern: rank * wider for pattern, rank in config.rank_pattern.items()},
        alpha_pattern={p: alpha * factor for p, alpha in config.alpha_pattern.items()},
    )
    return plain if _true(plain, parts) else with_patterns(plain, parts)


def locate(name: str, layers: Mapping[str, Any]) -> str:
    """The model's path for a layer that another program may prefix differently.

    `transformer.h.0.attn.c_attn` is found as `model.h.0.attn.c_attn`: leading parts are left
    out until the rest names one layer.

    Raises:
        AdapterError: it names none, or several.
    """
    if name in layers:
        return name
    parts, found = name.split("."), list[str]()
    # The number of a block says which layer it is, so it is never left out.
    block = next((at for at, part in enumerate(parts) if part.isdigit()), len(parts))
    for start in range(1, min(block, len(parts) - 1) + 1):
        rest = ".".join(parts[start:])
        found = [path for path in layers if path == rest or path.endswith(f".{rest}")]
        if found:
            break
    if len(found) == 1:
        return found[0]
    which = f"fits several ({', '.join(found[:3])})" if found else "is not in this model"
    raise AdapterError(f"the adapter's layer {name} {which}; load the model it was trained on")


def _true(config: LoraConfig, parts: Mapping[str, Part]) -> bool:
    return all(
        config.rank_of(path) == part.rank
        and math.isclose(config.scale_of(path), part.scale, rel_tol=_CLOSE)
        for path, part in parts.items()
    )


def _short(alpha: float) -> float:
    """Without what rounding added: 5.999999999 is 6."""
    return float(f"{alpha:.7g}")
