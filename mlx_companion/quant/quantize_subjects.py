"""What can be quantized: language models, byte models and sentence encoders, seen as one thing.

    subject = subject_of(mc.load())
    windows = subject.windows(texts, 256)           # (N, L) int
    logits = subject.head(model)(subject.hidden(model, windows))

`subject.model` is unpacked, for computing; what is saved is made from its layers afterwards.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_companion.blt.byte_lm import ByteLM
from mlx_companion.blt.model import BltModel
from mlx_companion.errors import ConfigError, DataError
from mlx_companion.models.encoder import SentenceEncoder
from mlx_companion.models.heads import identity, split_head
from mlx_companion.models.load import LanguageModel
from mlx_companion.quant.quantize_layers import base_name, packable, packing_of, plain_twin
from mlx_companion.text.byte_text import BOS, encode_bytes

_LEAST = 8


class Subject(ABC):
    """A model and how to run it on text.

    Attributes:
        model: its plain twin (see `quantize_layers`).
        module: as it was given; packed layers are packed there.
        predicts: whether it gives logits of a next token; an encoder gives vectors.
    """

    predicts = True

    def __init__(self, source: Any, module: nn.Module) -> None:
        self.source, self.module = source, module
        on_cpu = mx.default_device().type == mx.DeviceType.cpu
        self.model = plain_twin(module, mx.float32 if on_cpu else None)
        self.model.eval()

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """The numbers that stand for a text."""

    @abstractmethod
    def hidden(self, model: nn.Module, windows: mx.array) -> mx.array:
        """States (N, L, D) before the output head; vectors (N, D) of an encoder."""

    @abstractmethod
    def head(self, model: nn.Module) -> Callable[[mx.array], mx.array]:
        """States (..., D) to logits (..., V)."""

    @abstractmethod
    def rebuilt(self, module: nn.Module) -> Any:
        """The same kind of object around another module."""

    def windows(self, texts: Sequence[str], length: int) -> mx.array:
        """Texts, one after the other, cut into rows of `length`: (N, L) int32.

        Raises:
            DataError: too little text.
        """
        tokens = [token for text in texts for token in self.encode(text)]
        if len(tokens) < _LEAST:
            raise DataError(f"{len(tokens)} tokens of text are too few; give at least {_LEAST}")
        length = min(length, len(tokens))
        rows = len(tokens) // length
        return mx.array(np.array(tokens[: rows * length], np.int32).reshape(rows, length))


class LanguageSubject(Subject):
    """A `LanguageModel`."""

    def __init__(self, lm: LanguageModel) -> None:
        super().__init__(lm, lm.model)
        self.lm = lm

    def encode(self, text: str) -> list[int]:
        return list(self.lm.tokenizer.encode(text))

    def hidden(self, model: nn.Module, windows: mx.array) -> mx.array:
        return split_head(model).backbone(windows)

    def head(self, model: nn.Module) -> Callable[[mx.array], mx.array]:
        return split_head(model).head

    def rebuilt(self, module: nn.Module) -> LanguageModel:
        config = {k: v for k, v in self.lm.config.items() if not k.startswith("quantization")}
        return replace(self.lm, model=module, config=config | quantization_entry(module))


class ByteSubject(Subject):
    """A byte latent transformer or a flat byte model."""

    def encode(self, text: str) -> list[int]:
        return [BOS, *encode_bytes(text)]

    def hidden(self, model: nn.Module, windows: mx.array) -> mx.array:
        logits: mx.array = model(windows)
        return logits

    def head(self, model: nn.Module) -> Callable[[mx.array], mx.array]:
        return identity

    def rebuilt(self, module: nn.Module) -> nn.Module:
        return module


class EncoderSubject(Subject):
    """A sentence encoder; a window is one text, padded with -1."""

    predicts = False

    def __init__(self, encoder: SentenceEncoder) -> None:
        super().__init__(encoder, encoder.model)
        self.encoder = encoder

    def encode(self, text: str) -> list[int]:
        return list(self.encoder.tokenizer.encode(text).ids)

    def windows(self, texts: Sequence[str], length: int) -> mx.array:
        rows = [self.encode(text)[:length] for text in texts if text.strip()]
        if len(rows) < 2:
            raise DataError(f"{len(rows)} texts are too few for an encoder; give at least 2")
        table = np.full((len(rows), max(map(len, rows))), -1, np.int32)
        for number, row in enumerate(rows):
            table[number, : len(row)] = row
        return mx.array(table)

    def hidden(self, model: nn.Module, windows: mx.array) -> mx.array:
        bert: Any = model
        own = replace(self.encoder, model=bert)
        found: mx.array = own._embed(mx.maximum(windows, 0), windows >= 0)
        return found

    def head(self, model: nn.Module) -> Callable[[mx.array], mx.array]:
        return identity

    def rebuilt(self, module: nn.Module) -> SentenceEncoder:
        model: Any = module
        return replace(self.encoder, model=model)


def subject_of(model: Any) -> Subject:
    """The subject for a model.

    Raises:
        ConfigError: something that cannot be quantized.
    """
    if isinstance(model, LanguageModel):
        return LanguageSubject(model)
    if isinstance(model, BltModel | ByteLM):
        return ByteSubject(model, model)
    if isinstance(model, SentenceEncoder):
        return EncoderSubject(model)
    raise ConfigError(
        f"a {type(model).__name__} cannot be quantized; give what load(), blt.load() or "
        "load_encoder() returns"
    )


def number_type(model: Any) -> mx.Dtype:
    """What is not packed is kept in: float16, or bfloat16 where the model was made in that.

    Activations of such a model may be too large for float16. On a CPU it is loaded as float32, but
    its configuration remembers.
    """
    if isinstance(model, LanguageModel):
        stated = model.config.get("torch_dtype") or model.config.get("dtype")
        if stated == "bfloat16":
            return mx.bfloat16
    layers = packable(model if isinstance(model, nn.Module) else model.model).values()
    kinds = {layer["scales" if "scales" in layer else "weight"].dtype for layer in layers}
    return mx.bfloat16 if mx.bfloat16 in kinds else mx.float16


def quantization_entry(module: nn.Module) -> dict[str, Any]:
    """The "quantization" of a `config.json` as mlx-lm writes it, with what differs by layer.

    Empty for a model without packed layers. The commonest packing stands at the top; a layer that
    is left plain is marked as such.
    """
    packings = {base_name(path): packing_of(layer) for path, layer in packable(module).items()}
    packed = [p for p in packings.values() if p is not None]
    if not packed:
        return {}
    common = max(sorted(set(packed)), key=packed.count)
    entry: dict[str, Any] = common.to_config()
    for path, packing in packings.items():
        if packing != common:
            entry[path] = False if packing is None else packing.to_config()
    return {"quantization": entry, "quantization_config": dict(entry)}
