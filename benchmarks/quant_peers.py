"""mlx-lm's own quantizers, run as mlx-lm runs them, for `benchmarks/quant.py`.

    packed = PEERS["gptq"](lm.model, Setting(4, 64, 4, 64), windows)
    keep(packed, lm, folder)                    # as mlx-lm saves it

mlx-lm's GPTQ packs 2, 4 and 8 bits only. At 3.5 bits per weight it is run as it is (2 bits for the
linear layers, the rest of the budget for the embedding) and, as "gptq-mended", with our packing of
3 bits in place of its own, which is the stronger opponent.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.quant import awq, gptq
from mlx_lm.utils import quantize_model, save_config, save_model

from mlx_companion.quant import packed_words


class Setting(NamedTuple):
    """Bits and group size of the linear layers and of the embedding."""

    bits: int
    group_size: int
    embed_bits: int
    embed_group_size: int


def rtn(model: nn.Module, setting: Setting, windows: mx.array) -> nn.Module:
    """`mlx_lm.convert -q`."""
    del windows

    def choose(path: str, _: nn.Module) -> dict[str, int]:
        embedding = path.endswith(("embed_tokens", "lm_head"))
        bits, size = setting[2:] if embedding else setting[:2]
        return {"bits": bits, "group_size": size}

    return quantize_model(model, {}, setting.group_size, setting.bits, quant_predicate=choose)[0]


def run_awq(model: nn.Module, setting: Setting, windows: mx.array) -> nn.Module:
    """`mlx_lm.awq`."""
    awq.awq_quantize(
        model,
        windows,
        awq.AWQ_MODEL_CONFIGS["llama"],
        group_size=setting.group_size,
        bits=setting.bits,
        embed_group_size=setting.embed_group_size,
        embed_bits=setting.embed_bits,
    )
    return model


def run_gptq(model: nn.Module, setting: Setting, windows: mx.array) -> nn.Module:
    """`mlx_lm.gptq`."""
    return gptq.gptq_quantize(model, windows, *setting)[0]


def run_gptq_mended(model: nn.Module, setting: Setting, windows: mx.array) -> nn.Module:
    """`mlx_lm.gptq` with codes of any number of bits."""
    own: Any = gptq.quantize
    gptq.quantize = packed_words
    try:
        return run_gptq(model, setting, windows)
    finally:
        gptq.quantize = own


def keep(model: nn.Module, lm: Any, folder: Path) -> None:
    """Write the model with mlx-lm's functions, in 16 bits like its own downloads."""
    model.set_dtype(mx.float16)
    config = awq.update_config(model, dict(lm.config))
    folder.mkdir(parents=True, exist_ok=True)
    save_model(folder, model)
    save_config(config, config_path=folder / "config.json")
    lm.tokenizer.save_pretrained(str(folder))


PEERS = {"rtn": rtn, "awq": run_awq, "gptq": run_gptq, "gptq-mended": run_gptq_mended}
