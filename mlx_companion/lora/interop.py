"""Adapters for other programs: mlx-lm's folder layout.

export_mlx_lm(model, "out")     # then: mlx_lm.generate --adapter-path out
"""

from __future__ import annotations

from pathlib import Path

import mlx.nn as nn

from mlx_companion.errors import AdapterError
from mlx_companion.lora.attach import adapter_parameters, attached_config, require_adapters
from mlx_companion.lora.io import CONFIG_FILE, WEIGHTS_FILE, write_json, write_weights
from mlx_companion.runtime.files import atomic_dir


def export_mlx_lm(model: nn.Module, folder: str | Path) -> Path:
    """Write the model's adapter as mlx-lm's `load_adapters` reads it.

    Args:
        model: carries the adapter; its multiplier goes into the exported scale.
        folder: where to; replaced in one step.

    Returns:
        The folder.

    Raises:
        AdapterError: no adapter, or layers that differ in rank or strength (mlx-lm has one each).
    """
    layers = require_adapters(model)
    ranks = {layer.lora_a.shape[1] for layer in layers.values()}
    scales = {layer.scale * layer.multiplier for layer in layers.values()}
    if len(ranks) > 1 or len(scales) > 1:
        raise AdapterError("mlx-lm's format has one rank and one scale; these layers differ")
    config = attached_config(model)
    head = {
        "fine_tune_type": "lora",
        "num_layers": len(model.layers),
        "lora_parameters": {
            "rank": ranks.pop(),
            "scale": scales.pop(),
            "dropout": config.dropout if config else 0.0,
            # Whole paths, because names within a block would adapt every block.
            "keys": list(layers),
        },
    }
    with atomic_dir(folder) as temporary:
        write_weights(temporary / WEIGHTS_FILE, adapter_parameters(model))
        write_json(temporary / CONFIG_FILE, head)
    return Path(folder)
