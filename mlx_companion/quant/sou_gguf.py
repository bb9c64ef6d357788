"""A GGUF file of the llama family as the content of a `.sou` file.

Packed weights stay packed (MLX's affine groups of 32, 4 or 8 bits), scales stay float16; the
configuration says which layer has how many bits, and the tokenizer becomes files. Numbers that
are float32 in the file are stored as float16 where that is exact.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from mlx_companion.errors import SouError
from mlx_companion.models.gguf import load_gguf
from mlx_companion.models.gguf_header import read_header
from mlx_companion.models.hashing import content_sha256
from mlx_companion.models.tokenizer import wrap_gguf_tokenizer
from mlx_companion.quant.sou_layout import Kind
from mlx_companion.quant.sou_pack import Content
from mlx_companion.quant.sou_tensors import DTYPES, TensorEntry
from mlx_companion.quant.sou_writer import TensorSet, TensorSource, file_part

_BY_MLX = {dtype.mlx: dtype for dtype in reversed(DTYPES)}


def gather_gguf(path: Path) -> Content:
    """Read a GGUF file.

    Raises:
        WeightsError: see `models.gguf.load_gguf`.
        SouError: it stretches its rotary positions by stored factors, which mlx-lm's
            configuration cannot say.
    """
    if "rope_freqs.weight" in read_header(path).tensors:
        raise SouError(
            f"{path} stretches its rotary positions by factors that a configuration cannot hold; "
            "pack the original model from the hub"
        )
    model, header, config = load_gguf(path, dequantize=False, dtype=mx.float32)
    tokenizer = wrap_gguf_tokenizer(header.metadata)
    config |= {"eos_token_id": sorted(tokenizer.eos_token_ids)}
    bits = layer_bits(model)
    if bits:
        config["quantization"] = bits
    content = Content(source="gguf", base_sha256=content_sha256([path]))
    content.add_json(Kind.CONFIG, "config.json", config)
    with tempfile.TemporaryDirectory(prefix="sou-") as folder:
        tokenizer._tokenizer.save_pretrained(folder)
        for file in sorted(Path(folder).iterdir()):
            # Small, and read now: the folder is gone when the rest is written.
            content.add(file_part(Kind.TOKENIZER, file.name, file))
    content.sets["model"] = TensorSet("model", array_sources(_exact(model)))
    return content


def layer_bits(model: nn.Module) -> dict[str, Any]:
    """The `quantization` of a configuration: the commonest setting, and what differs by layer."""
    found = {
        name: {"group_size": layer.group_size, "bits": layer.bits}
        for name, layer in model.named_modules()
        if hasattr(layer, "bits") and hasattr(layer, "scales")
    }
    if not found:
        return {}
    every = list(found.values())
    common = max(every, key=every.count)
    return common | {name: one for name, one in sorted(found.items()) if one != common}


def array_sources(arrays: dict[str, mx.array]) -> list[TensorSource]:
    """Arrays in memory as tensors to be written, in the order of their names."""
    return [_source(name, array) for name, array in sorted(arrays.items())]


def _source(name: str, array: mx.array) -> TensorSource:
    dtype = _BY_MLX[str(array.dtype).removeprefix("mlx.core.").replace("bool", "bool_")]
    return TensorSource(TensorEntry(name, dtype, tuple(array.shape)), partial(_chunks, array))


def _chunks(array: mx.array) -> list[bytes]:
    whole = array.view(mx.uint16) if array.dtype == mx.bfloat16 else array
    return [np.array(whole).tobytes()]


def _exact(model: nn.Module) -> dict[str, mx.array]:
    arrays = dict(tree_flatten(model.parameters()))
    return {name: _smaller(array) for name, array in arrays.items()}


def _smaller(array: mx.array) -> mx.array:
    if array.dtype != mx.float32:
        return array
    half = array.astype(mx.float16)
    return half if mx.array_equal(half.astype(mx.float32), array).item() else array
